"""Options of a conversion, and the metadata that a converted dataset stores so that converting back gives the original.

The metadata is one JSON file beside the data, conversion.json (LeRobot: in meta/). Other tools ignore it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import writing
from vla_robot.core.ports import EpisodeSource
from vla_robot.core.untrusted import MAX_JSON_BYTES, parse_json
from vla_robot.data.formats.hdf5 import Hdf5Dataset
from vla_robot.data.formats.lerobot.layout import EMBODIMENT, read_json, write_json
from vla_robot.data.formats.lerobot.source import LeRobotSource
from vla_robot.data.formats.rlds.features import to_tree
from vla_robot.data.formats.rlds.reader import RldsDataset
from vla_robot.data.formats.storage import Storage

FILE = "conversion.json"
IN_LEROBOT = f"meta/{FILE}"


@dataclass(frozen=True)
class Options:
    """Options of a conversion, for values that the formats do not give.

    Attributes:
        split: the part of the source that is being converted, as it was opened.
        rate_hz: steps per second, for LeRobot from a source without a rate.
        instruction: the instruction, for a source without one.
        name: name of the RLDS dataset; the folder's name by default.
    """

    split: str = "train"
    rate_hz: float | None = None
    instruction: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        episodes: number of episodes in the destination.
        new: number of episodes that this call wrote.
        lost: what the destination cannot hold, one line each.
    """

    episodes: int
    new: int
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """The source that a dataset was converted from.

    Attributes:
        kind: "rlds", "lerobot", "hdf5", or "other" for a format that an installed package adds.
        name: the source's name.
        parts: split of this dataset -> [part of the source, number of its episodes].
        names: field of the source -> field of this dataset.
        added: fields of this dataset that the source lacks.
        features: the source's own description of its fields: features.json, or LeRobot's features.
        rate_hz: steps per second; None when the source has no rate.
        robot: LeRobot's robot_type.
        embodiment: meta/embodiment.json, where a LeRobot dataset has one.
    """

    kind: str
    name: str
    parts: dict[str, list[Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    features: dict[str, Any] = field(default_factory=dict)
    rate_hz: float | None = None
    robot: str = ""
    embodiment: dict[str, Any] | None = None


def require_episodes(source: EpisodeSource, split: str) -> None:
    """Raise DataError if a source has no episode."""
    if not len(source):
        raise DataError(f"{source.location}, {split}: there is no episode to convert.")


def describe_source(source: EpisodeSource) -> Origin:
    """Return the metadata of a source, without parts, names and additions, which are known later."""
    common = {"name": source.name, "rate_hz": source.rate_hz}
    if isinstance(source, RldsDataset):
        return Origin("rlds", features=to_tree(source.features), **common)
    if not isinstance(source, LeRobotSource):
        return Origin("hdf5" if isinstance(source, Hdf5Dataset) else "other", **common)
    path = source.root / EMBODIMENT
    embodiment = read_json(path) if path.is_file() else None
    return Origin(
        "lerobot", features=dict(source.lerobot_features), robot=source.robot, embodiment=embodiment, **common
    )


def origin_of(source: EpisodeSource) -> Origin | None:
    """Return the dataset that a source itself was converted from; None when it was not converted by this package.

    Raises:
        DataError: the file is damaged.
    """
    if isinstance(source, LeRobotSource):
        return read_origin(source.root / IN_LEROBOT)
    if isinstance(source, RldsDataset) and "://" not in source.location:
        return read_origin(Path(source.location) / FILE)
    return None


def read_origin(path: Path) -> Origin | None:
    """Read a conversion.json. Return None when it does not exist; raise DataError when it is damaged."""
    if not path.is_file():
        return None
    return _origin(read_json(path), path)


def _origin(content: Any, where: object) -> Origin:
    try:
        return Origin(**content)
    except TypeError as error:
        raise DataError(f"{where} is no record of a conversion: {error}.") from error


def begin(path: Path, origin: Origin) -> None:
    """Write the origin before the first episode. An interrupted conversion must have the same source.

    Raises:
        DataError: the folder holds a conversion of another source.
    """
    merged = _merged(read_origin(path), origin, str(path))
    with writing(path):
        write_json(path, asdict(merged))


def begin_in(folder: Storage, name: str, origin: Origin) -> None:
    """Do as `begin` in a folder that may be behind a URL, which is made if it is missing.

    Raises:
        DataError: the folder holds a conversion of another source, or its file is damaged.
    """
    where = f"{folder.location}/{name}"
    try:
        files = folder.files()
    except DataError:  # it does not exist
        files = {}
    there = _origin(parse_json(folder.read(name, size=MAX_JSON_BYTES + 1), where), where) if name in files else None
    merged = _merged(there, origin, where)
    with folder.writing(name) as file:
        file.write(json.dumps(asdict(merged), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _merged(there: Origin | None, origin: Origin, where: str) -> Origin:
    """Return the origin with the splits that were converted before. Raises DataError if those had another source."""
    there = there or origin
    merged = replace(origin, parts={**there.parts, **origin.parts})
    same = merged == replace(there, parts=merged.parts)
    if not same or any(origin.parts.get(split, part) != part for split, part in there.parts.items()):
        parts = ", ".join(f"{part} ({count} episodes) as {split}" for split, (part, count) in there.parts.items())
        raise DataError(
            f"{where} says that this folder holds another conversion, of {there.kind} '{there.name}', {parts}. "
            "Choose another folder."
        )
    return merged
