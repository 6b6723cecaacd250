"""The contract of an EpisodeSource, and its check."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_robot.core.episode import Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource, MarksGaps
from vla_robot.data.formats.images import decode_image
from vla_robot.testing.contract import Contract, Sentence

CONTRACT = Contract(
    "EpisodeSource",
    {
        "says_where": Sentence(
            "name and location are texts; notes and skipped tell what a user should know.",
            "Return the dataset's name and its path or URL, and a count of skipped episodes of 0 or more.",
        ),
        "names_fields": Sentence(
            "Each field is filed under its own name, and none is both read and left out.",
            "Key `fields` and `metadata_fields` by `Field.name`.",
        ),
        "counts": Sentence(
            "lengths is (E,) int64, positive, one for each of the len() episodes.",
            "Leave episodes of 0 steps out, and convert with np.asarray(..., np.int64).",
        ),
        "splits": Sentence(
            "splits counts the episodes of the whole dataset, this part's and those that were skipped included.",
            "Give the counts of the dataset's own index.",
        ),
        "rates": Sentence("rate_hz is None or a positive number.", "Give None where the format does not say."),
        "is_whole": Sentence(
            "An episode has its index, its length, and every field that was asked for, with one value a step, of the "
            "field's kind and shape.",
            "Read all columns of an episode at once, and compare with `Field.shape`.",
        ),
        "selects": Sentence(
            "Only the fields that are asked for are in an episode.", "Leave the others out of `Episode.steps`."
        ),
        "repeats": Sentence("An episode is the same each time it is read.", "Read without a generator or a cursor."),
        "refuses_index": Sentence(
            "An episode or a step that does not exist raises IndexError; there are no negative ones.",
            "Begin with vla_robot.data.formats.source.require_index.",
        ),
        "refuses_field": Sentence(
            "A field that does not exist raises DataError.", "Begin with vla_robot.data.formats.source.require_fields."
        ),
        "encodes": Sentence(
            "encoded gives a JPEG or PNG file with the pixels of that frame.",
            "Read the same bytes as `Episode.frames`, at their place on the disk.",
        ),
        "marks": Sentence(
            "A source that marks gaps says for each episode, as a bool, whether the robot went on after it.",
            "Convert with bool(); the last part of a recording did not go on.",
        ),
        "travels": Sentence(
            "It can be handed to another process.", "Open files where they are read, and keep no open handle or lambda."
        ),
    },
)
"""Sentences that `check_episode_source` checks."""


def check_episode_source(make_source: Callable[[], EpisodeSource], *, most: int = 2) -> None:
    """Check that a dataset keeps its contract: see CONTRACT, and `vla_robot.core.ports.EpisodeSource`.

    Args:
        make_source: opens the dataset.
        most: largest number of episodes that are read.

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    source = make_source()
    _check_description(source)
    for index in range(min(most, len(source))):
        _check_episode(source, index)
        if isinstance(source, MarksGaps):
            goes_on = source.goes_on(index)
            CONTRACT.require(type(goes_on) is bool, "marks", f"{goes_on!r} for episode {index}")
    for index in (-1, len(source)):
        CONTRACT.require_refusal(lambda i=index: source.episode(i), IndexError, "refuses_index", f"episode({index})")
    if len(source):
        call = lambda: source.episode(0, ("no such field",))  # noqa: E731 - named for the reader
        CONTRACT.require_refusal(call, DataError, "refuses_field", "a field of no such name")
    try:
        pickle.dumps(source)
    except Exception as error:
        CONTRACT.require(False, "travels", f"{type(error).__name__}: {error}")


def _check_description(source: EpisodeSource) -> None:
    texts = (source.name, source.location, *source.notes)
    sound = all(isinstance(text, str) for text in texts) and bool(source.name) and source.num_skipped >= 0
    CONTRACT.require(sound, "says_where", f"{texts}, skipped {source.num_skipped}")
    for fields in (source.fields, source.metadata_fields):
        misfiled = [name for name, field in fields.items() if field.name != name]
        CONTRACT.require(not misfiled, "names_fields", f"other names under {misfiled}")
    both = set(source.fields) & set(source.left_out)
    CONTRACT.require(not both, "names_fields", f"{sorted(both)} are read and left out")
    lengths = source.lengths
    fits = lengths.dtype == np.int64 and lengths.shape == (len(source),) and bool((lengths > 0).all())
    CONTRACT.require(fits, "counts", f"{lengths.dtype} {lengths}, where there are {len(source)} episodes")
    enough = sum(source.splits.values()) >= len(source) and min(source.splits.values(), default=0) >= 0
    CONTRACT.require(enough, "splits", f"{dict(source.splits)}, where this part has {len(source)}")
    rate_hz = source.rate_hz
    CONTRACT.require(rate_hz is None or 0 < rate_hz < np.inf, "rates", f"{rate_hz}")


def _check_episode(source: EpisodeSource, index: int) -> None:
    episode = source.episode(index)
    length = int(source.lengths[index])
    fits = episode.index == index and len(episode) == length and set(episode.steps) == set(source.fields)
    seen = f"index {episode.index}, {len(episode)} steps, fields {sorted(episode.steps)}"
    CONTRACT.require(fits, "is_whole", f"{seen}, where {length} steps of {sorted(source.fields)} are announced")
    again = source.episode(index)
    for name, field in source.fields.items():
        _check_column(episode, name, field)
        same = _same(episode.steps[name], again.steps[name], length - 1)
        CONTRACT.require(same, "repeats", f"other values of '{name}' in episode {index}")
        alone = source.episode(index, (name,))
        CONTRACT.require(set(alone.steps) == {name}, "selects", f"{sorted(alone.steps)}, where '{name}' was asked for")
        if field.kind == "image":
            _check_frames(source, episode, field)


def _check_column(episode: Episode, name: str, field: Field) -> None:
    column = episode.steps[name]
    CONTRACT.require(len(column) == len(episode), "is_whole", f"{len(column)} values of '{name}'")
    if field.kind == "number" and not field.is_ragged:
        shape = column.shape[1:] if isinstance(column, np.ndarray) else None
        CONTRACT.require(shape == field.shape, "is_whole", f"'{name}' of shape {shape}, announced is {field.shape}")
    if field.kind == "text":
        sound = isinstance(column, tuple) and all(isinstance(text, (str, bytes)) for text in column)
        CONTRACT.require(sound, "is_whole", f"'{name}' holds no texts")


def _check_frames(source: EpisodeSource, episode: Episode, field: Field) -> None:
    frames, last = episode.frames(field.name), len(episode) - 1
    file = source.encoded(episode.index, field.name, last)
    try:
        pixels = decode_image(file, field.dtype, episode.where, field.shape)
    except DataError as error:
        CONTRACT.require(False, "encodes", str(error).rstrip("."))
        return
    same = np.array_equal(pixels, frames.decode(last))
    CONTRACT.require(same, "encodes", f"other pixels in '{field.name}' at step {last}")
    for step in (-1, len(episode)):
        CONTRACT.require_refusal(
            lambda s=step: source.encoded(episode.index, field.name, s), IndexError, "refuses_index", f"step {step}"
        )


def _same(first: Any, second: Any, step: int) -> bool:
    """Return whether two columns are equal; of frames, only those of one step are compared."""
    if hasattr(first, "decode"):
        return bool(np.array_equal(first.decode(step), second.decode(step)))
    pairs = zip(first, second, strict=True)
    return all(np.array_equal(a, b, equal_nan=isinstance(a, np.ndarray) and a.dtype.kind == "f") for a, b in pairs)
