"""Converts any source to a LeRobot dataset.

| source | LeRobot |
|---|---|
| observation/NAME, a camera | observation.images.NAME |
| action, observation/state, ... | action, observation.state, ...: "." for "/" |
| language_instruction | the task of each step |
| timestamp | timestamp; step / rate where there is none |
| episode metadata | meta/episode_metadata.jsonl |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode, Field, Frames, OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import append_line, writing
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.conversion_metadata import (
    IN_LEROBOT,
    Converted,
    Options,
    Origin,
    begin,
    describe_source,
    origin_of,
)
from vla_robot.data.formats.lerobot.layout import COUNTERS, EMBODIMENT, IMAGES, write_json
from vla_robot.data.formats.lerobot.source import INSTRUCTION, METADATA, TIMESTAMP, LeRobotSource
from vla_robot.data.formats.lerobot.tables import EpisodeTable, LeRobotTables, feature, image_feature
from vla_robot.data.formats.source import instruction_text
from vla_robot.data.pipeline.stats import count_pixels, describe_pixels

SPLIT = "train"
"""The only split of LeRobot datasets."""
MOST_DIMENSIONS = 5
"""Largest number of dimensions of LeRobot's arrays."""


@dataclass(frozen=True)
class LeRobotConversion:
    """What a conversion to LeRobot writes. It is known before the first episode, and can be pickled.

    Attributes:
        names: field of the source -> column.
        fields: the source's fields.
        described: column -> LeRobot's description from when the dataset was one before; empty if it was none.
        rate_hz: steps per second.
        origin: the content of conversion.json.
        history: where the dataset came from before; the origin if it came from nowhere.
        lost: what LeRobot cannot hold, one line each.
        options: values that the source does not give.
    """

    names: Mapping[str, str]
    fields: Mapping[str, Field]
    described: Mapping[str, Any]
    rate_hz: float
    origin: Origin
    history: Origin
    lost: tuple[str, ...]
    options: Options

    @classmethod
    def of(cls, source: EpisodeSource, options: Options) -> LeRobotConversion:
        """Plan the conversion of a source.

        Raises:
            DataError: the source lacks a value that LeRobot needs.
        """
        before = origin_of(source)
        rate_hz = _rate_hz(source, before, options)
        lost = _lost(source)
        names = _names(source, before, lost)
        origin = replace(describe_source(source), names=names, parts={SPLIT: [options.split, len(source)]})
        # A dataset that was LeRobot before gets back the metadata that RLDS cannot hold.
        history = before or origin
        described = history.features if history.kind == "lerobot" else {}
        return cls(names, source.fields, described, rate_hz, origin, history, tuple(lost.values()), options)

    def begin(self, destination: Path) -> None:
        """Write what comes before the first episode. Raises DataError if the folder holds another conversion."""
        begin(destination / IN_LEROBOT, self.origin)
        if self.history.embodiment is not None:
            with writing(destination / EMBODIMENT):
                write_json(destination / EMBODIMENT, self.history.embodiment)

    def table(self, episode: Episode) -> EpisodeTable:
        """Return an episode of the source as LeRobot stores it."""
        return _episode_table(episode, self.names, self.fields, self.described, self.options)

    def instructions(self, episode: Episode) -> tuple[str, ...]:
        """Return the instruction of each step. Raises DataError if there is none."""
        return _tasks(episode, self.options)


def to_lerobot(source: EpisodeSource, destination: Path, options: Options, on_progress: OnProgress) -> Converted:
    """Convert to a LeRobot dataset, or continue its conversion. See `convert`."""
    plan = LeRobotConversion.of(source, options)
    tables = LeRobotTables(destination)
    try:
        plan.begin(destination)
        done = tables.num_episodes
        for index in range(done, len(source)):
            episode = source.episode(index)
            note = partial(note_metadata, destination, index, metadata_of(episode))
            tables.write(plan.table(episode), plan.rate_hz, plan.history.robot, note)
            on_progress(index + 1, len(source))
        return Converted(tables.num_episodes, tables.num_episodes - done, plan.lost)
    finally:
        tables.close()


def _rate_hz(source: EpisodeSource, before: Origin | None, options: Options) -> float:
    known = source.rate_hz or (before.rate_hz if before is not None else None)
    if known is not None and options.rate_hz not in (None, known):
        raise DataError(f"{source.location} says {known:g} steps per second, but --rate-hz is {options.rate_hz:g}.")
    rate_hz = known or options.rate_hz
    if rate_hz is None:
        raise DataError(
            f"{source.location} does not say how many steps a second it has, which LeRobot needs. "
            "Give it with --rate-hz."
        )
    return rate_hz


def _lost(source: EpisodeSource) -> dict[str, str]:
    """Return field -> why LeRobot cannot hold it."""
    lost = {name: f"{name}: {why}" for name, field in source.fields.items() if (why := _why_not(field))}
    unread = {name: f"{name}: {why} is not read" for name, why in source.left_out.items()}
    return lost | _lost_bytes(source) | unread


def _lost_bytes(source: EpisodeSource) -> dict[str, str]:
    """Return field of bytes -> why LeRobot cannot hold it, where its values in the first episode are no text."""
    steps = [name for name, field in source.fields.items() if field.dtype == "bytes" and not field.shape]
    metadata = [name for name, field in source.metadata_fields.items() if field.dtype == "bytes"]
    if not steps and not metadata:
        return {}
    first = source.episode(0, steps)
    lost = {name: "LeRobot has no columns of bytes" for name in steps if _holds_bytes(first.steps[name])}
    lost |= {name: "JSON has no bytes" for name in metadata if isinstance(first.metadata.get(name), bytes)}
    return {name: f"{name}: {why}" for name, why in lost.items()}


def _holds_bytes(values: Column) -> bool:
    return isinstance(values, tuple) and any(isinstance(value, bytes) for value in values)


def _why_not(field: Field) -> str:
    if field.kind == "text" and field.shape:
        return "LeRobot has no lists of texts"
    if field.kind == "image" and field.dtype != "uint8":
        return f"{field.dtype} frames are not written to LeRobot"
    if field.kind == "number" and (field.is_ragged or 0 in field.shape or len(field.shape) > MOST_DIMENSIONS):
        return f"LeRobot has no columns of shape {' x '.join('?' if n is None else str(n) for n in field.shape)}"
    return ""


def _names(source: EpisodeSource, before: Origin | None, lost: Mapping[str, str]) -> dict[str, str]:
    """Return field -> column, without the instruction and the time, which LeRobot stores in columns of its own."""
    places = {instruction_text(source.fields) or INSTRUCTION, TIMESTAMP}
    added = before.added if before is not None else ()
    fields = {n: f for n, f in source.fields.items() if n not in lost and n not in places and n not in added}
    if isinstance(source, LeRobotSource):
        return {name: source.column_of(name) for name in fields}
    there = before.names if before is not None and before.kind == "lerobot" else {}
    back = {here: name.replace("/", ".") for name, here in there.items()}
    return {name: back.get(name) or _column_name(field) for name, field in fields.items()}


def _column_name(field: Field) -> str:
    if field.kind == "image":
        return IMAGES + field.name.removeprefix("observation/").replace("/", ".")
    name = field.name.replace("/", ".")
    return f"source.{name}" if name in COUNTERS else name


def _episode_table(
    episode: Episode,
    names: Mapping[str, str],
    fields: Mapping[str, Field],
    described: Mapping[str, Any],
    options: Options,
) -> EpisodeTable:
    frames = {column: episode.frames(name) for name, column in names.items() if fields[name].kind == "image"}
    columns = {column: episode.steps[name] for name, column in names.items() if fields[name].kind != "image"}
    for name in names:
        if fields[name].dtype == "bytes":
            episode.texts(name)  # raises for a field that is text in the first episode and not in this one
    pixels = {column: _count_pixels(film) for column, film in frames.items()}
    features = {column: _own(image_feature(*size), described.get(column)) for column, (size, _) in pixels.items()}
    features |= {
        column: _own(_feature(fields[name]), described.get(column))
        for name, column in names.items()
        if fields[name].kind != "image"
    }
    has_time = TIMESTAMP in episode.steps and isinstance(episode.steps[TIMESTAMP], np.ndarray)
    return EpisodeTable(
        features=features,
        columns={column: _shaped(values) for column, values in columns.items()},
        images={column: [film.encoded(step) for step in range(len(film))] for column, film in frames.items()},
        image_stats={column: describe_pixels(counts, len(episode)) for column, (_, counts) in pixels.items()},
        tasks=_tasks(episode, options),
        timestamps=episode.numbers(TIMESTAMP) if has_time else None,
    )


def _feature(field: Field) -> dict[str, Any]:
    if field.kind == "text":
        return feature("string", [1])
    return feature(field.dtype, [size or 0 for size in field.shape] or [1])


def _own(made: dict[str, Any], described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the feature with the names of its dimensions from when the dataset was a LeRobot dataset before."""
    same = described is not None and list(described["shape"]) == made["shape"]
    return {**made, "names": described["names"]} if described is not None and same else made


def _shaped(values: Column) -> Any:
    """Return (T,) for numbers (T, 1), since LeRobot does not distinguish a number from a list of one."""
    if isinstance(values, np.ndarray) and values.shape[1:] == (1,):
        return values[:, 0]
    return values


def _tasks(episode: Episode, options: Options) -> tuple[str, ...]:
    if options.instruction is not None:
        return (options.instruction,) * len(episode)
    try:
        return episode.instructions()
    except DataError as error:
        raise DataError(f"{error} LeRobot needs one; give it with --instruction.") from error


def _count_pixels(film: Frames) -> tuple[tuple[int, int], NDArray[np.int64]]:
    """Return (height, width) and the pixel counts over all frames, (3, 256)."""
    first = film.decode(0)
    counts = count_pixels(first)
    for step in range(1, len(film)):
        counts += count_pixels(film.decode(step))
    return (first.shape[0], first.shape[1]), counts


def metadata_of(episode: Episode) -> dict[str, Any]:
    """Return an episode's metadata as JSON can hold it."""
    return {name: _plain(value) for name, value in episode.metadata.items() if not isinstance(value, bytes)}


def note_metadata(root: Path, index: int, metadata: Mapping[str, Any]) -> None:
    """Append an episode's line to meta/episode_metadata.jsonl."""
    line = json.dumps({"episode": index, "metadata": metadata}, ensure_ascii=False)
    append_line(root / METADATA, line)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
