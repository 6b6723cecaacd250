"""Converts any source to an RLDS dataset that TensorFlow Datasets reads.

Fields keep their names, except that a camera's observation/images/NAME becomes observation/NAME, as in
Open-X-Embodiment. Each step gets is_first, is_last and is_terminal where the source has no such fields. A dataset that
was RLDS before gets its own features.json back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.core.episode import Column, Episode, Field, OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource, MarksGaps
from vla_robot.data.formats.conversion_metadata import (
    FILE,
    Converted,
    Options,
    Origin,
    begin,
    describe_source,
    origin_of,
    read_origin,
)
from vla_robot.data.formats.images import image_format
from vla_robot.data.formats.lerobot.source import INSTRUCTION, METADATA, TIMESTAMP, LeRobotSource
from vla_robot.data.formats.rlds.decode import STEP_MARKS
from vla_robot.data.formats.rlds.features import STEPS, Features, Leaf, parse_features
from vla_robot.data.formats.rlds.reader import RldsDataset
from vla_robot.data.formats.rlds.splits import FILE_FORMAT
from vla_robot.data.formats.rlds.writer import PARTIAL, RldsWriter, written_splits
from vla_robot.data.formats.source import instruction_text

VERSION = "1.0.0"


@dataclass(frozen=True)
class RldsConversion:
    """What a conversion of one split to RLDS writes. It is known before the first episode, and can be pickled.

    Attributes:
        features: fields of a record.
        names: field of the source -> field of a record.
        split: the split that is written.
        origin: the content of conversion.json.
        lost: what RLDS cannot hold, one line each.
        options: values that the source does not give.
    """

    features: Features
    names: dict[str, str]
    split: str
    origin: Origin
    lost: tuple[str, ...]
    options: Options

    @classmethod
    def of(cls, source: EpisodeSource, options: Options) -> RldsConversion:
        """Plan the conversion of a source."""
        before = origin_of(source)
        features, names, added = _features(source, before, options)
        split = options.split.partition("[")[0].partition("+")[0].strip()
        parts = {split: [options.split, len(source)]}
        origin = replace(describe_source(source), names=names, added=added, parts=parts)
        return cls(features, names, split, origin, tuple(_lost(source, before)), options)

    def episode(self, source: EpisodeSource, index: int) -> Episode:
        """Return an episode of the source with the fields of a record."""
        goes_on = isinstance(source, MarksGaps) and source.goes_on(index)
        return _renamed(source.episode(index), self.features, self.names, self.options, goes_on)


def to_rlds(source: EpisodeSource, destination: Path, options: Options, on_progress: OnProgress) -> Converted:
    """Convert one split to RLDS, or continue its conversion. See `convert`."""
    plan = RldsConversion.of(source, options)
    folder = destination / VERSION
    if plan.split in written_splits(folder) and read_origin(folder / FILE) is not None:
        begin(folder / FILE, plan.origin)  # raises unless it was the same conversion
        return Converted(len(source), 0, plan.lost)
    _require_no_shards(folder, plan.split)
    with RldsWriter(destination, options.name or destination.name, plan.features, VERSION, plan.split) as writer:
        begin(folder / FILE, plan.origin)
        done = writer.num_episodes
        for index in range(done, len(source)):
            writer.write(plan.episode(source, index))
            on_progress(index + 1, len(source))
        writer.finish()
        return Converted(writer.num_episodes, writer.num_episodes - done, plan.lost)


def _require_no_shards(folder: Path, split: str) -> None:
    """Raise DataError if tasks have begun to write the split; a command without them would count other shards."""
    if (folder / PARTIAL / split).is_dir() or not folder.is_dir():
        return
    if any(folder.glob(f"*-{split}.{FILE_FORMAT}-*-of-*")):
        raise DataError(
            f"{folder} holds shards of '{split}' that `--cluster` wrote, and not all. Continue with --cluster, or "
            "choose another folder."
        )


def _features(
    source: EpisodeSource, before: Origin | None, options: Options
) -> tuple[Features, dict[str, str], list[str]]:
    """Return the features of a record, field of the source -> field of the destination, and fields that are added."""
    instruction = {} if options.instruction is None else {INSTRUCTION: _step(Field(INSTRUCTION, "text", "str", ()))}
    if isinstance(source, RldsDataset):
        steps = {**source.features.steps, **instruction}
        return replace(source.features, steps=steps), {name: name for name in source.fields}, []
    if isinstance(source, LeRobotSource) and before is not None and before.kind == "rlds":
        return _features_of_before(source, before)
    names = _nested_names(source.fields)
    first = source.episode(0)
    steps = {names[name]: _leaf(names[name], field, first) for name, field in source.fields.items()}
    steps |= instruction
    added = [name for name in STEP_MARKS if name not in steps]
    steps |= {name: _step(Field(name, "number", "bool", ())) for name in added}
    metadata = {f"episode_metadata/{name}": field for name, field in source.metadata_fields.items()}
    episode = {name: Leaf(name, replace(field, name=name), 0) for name, field in metadata.items()}
    return Features(steps, episode), names, added


def _features_of_before(source: LeRobotSource, before: Origin) -> tuple[Features, dict[str, str], list[str]]:
    """Return what `_features` does for a dataset that was RLDS before: its old features, without lost fields."""
    described = parse_features(before.features, FILE)
    field_of = {source.column_of(name): name for name in source.fields if name != INSTRUCTION}
    names = {field_of[column]: name for name, column in before.names.items() if column in field_of}
    instruction = instruction_text({name: leaf.field for name, leaf in described.steps.items()})
    if instruction is not None:
        names[INSTRUCTION] = instruction
    if TIMESTAMP in described.steps:
        names[TIMESTAMP] = TIMESTAMP
    kept = set(names.values())
    steps = {name: leaf for name, leaf in described.steps.items() if name in kept}
    told = source.episode(0, []).metadata
    episode = {name: leaf for name, leaf in described.episode.items() if leaf.field.dtype != "bytes" or name in told}
    return Features(steps, episode), names, []


def _nested_names(fields: Mapping[str, Field]) -> dict[str, str]:
    """Return field -> name in RLDS: observation/NAME for cameras, and "." for "/" below the name of another field."""
    wanted = {
        name: name.replace("observation/images/", "observation/", 1) if field.kind == "image" else name
        for name, field in fields.items()
    }
    taken = set(wanted.values())
    names: dict[str, str] = {}
    for name, new in wanted.items():
        parents = [new[:i] for i, letter in enumerate(new) if letter == "/"]
        clash = next((parent for parent in parents if parent in taken), None)
        names[name] = new if clash is None else f"{clash}.{new.removeprefix(clash + '/')}"
    return names


def _leaf(name: str, field: Field, first: Episode) -> Leaf:
    dtype = "float32" if field.dtype == "float64" else field.dtype
    encoding = image_format(first.frames(field.name).encoded(0)) if field.kind == "image" else "none"
    return replace(_step(replace(field, name=name, dtype=dtype)), encoding=encoding)


def _step(field: Field) -> Leaf:
    return Leaf(f"{STEPS}/{field.name}", field, 1)


def _lost(source: EpisodeSource, before: Origin | None) -> list[str]:
    unread = [f"{name}: {why} is not read" for name, why in source.left_out.items()]
    if isinstance(source, RldsDataset):
        return unread
    wide = [name for name, field in source.fields.items() if field.dtype == "float64"]
    lost = [*unread, *(f"{name}: float64 is stored as float32, which keeps 7 digits" for name in wide)]
    if (
        isinstance(source, LeRobotSource)
        and (source.root / METADATA).is_file()
        and (before is None or before.kind != "rlds")
    ):
        lost.append(f"{METADATA}: episode metadata without types")
    return lost


def _renamed(
    episode: Episode, features: Features, names: Mapping[str, str], options: Options, goes_on: bool
) -> Episode:
    """Return the episode with the fields of the destination; one that ends at a gap has no terminal step."""
    count = len(episode)
    steps: dict[str, Column] = {new: episode.steps[name] for name, new in names.items() if new in features.steps}
    if options.instruction is not None and INSTRUCTION in features.steps:
        steps[INSTRUCTION] = (options.instruction,) * count
    index = np.arange(count)
    is_last = index == count - 1
    edges = {"is_first": index == 0, "is_last": is_last, "is_terminal": is_last & (not goes_on)}
    steps |= {name: edge for name, edge in edges.items() if name in features.steps and name not in steps}
    return replace(
        episode,
        steps={name: _fitted(steps[name], leaf.field) for name, leaf in features.steps.items() if name in steps},
        metadata={name: _metadatum(episode, leaf) for name, leaf in features.episode.items()},
    )


def _fitted(values: Column, field: Field) -> Column:
    """Convert values to the dtype and shape of the destination: float64 to float32, and one number to a list of one."""
    if not isinstance(values, np.ndarray):
        return values
    return values.astype(field.dtype).reshape(len(values), *(size or 0 for size in field.shape))


def _metadatum(episode: Episode, leaf: Leaf) -> Any:
    short = leaf.field.name.removeprefix("episode_metadata/")
    value = episode.metadata.get(leaf.field.name, episode.metadata.get(short))
    if value is None:
        raise DataError(f"{episode.where}: the metadata '{leaf.field.name}' is missing.")
    return np.asarray(value, leaf.field.dtype) if leaf.field.kind == "number" else value
