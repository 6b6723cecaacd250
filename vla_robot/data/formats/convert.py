"""Converts datasets between RLDS, LeRobot and (as a source) robomimic HDF5, episode by episode.

    convert(open_source("bridge_orig"), Path("data/bridge"), "lerobot", Options(rate_hz=5))

Frames are not encoded anew: a JPEG in an RLDS record is the same JPEG in a LeRobot table. An interrupted conversion
continues after its last whole episode. What the destination cannot hold is left out and listed in the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vla_robot.core.episode import OnProgress
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.conversion_metadata import Converted, Options, require_episodes
from vla_robot.data.formats.lerobot.convert import to_lerobot
from vla_robot.data.formats.lerobot.source import LeRobotSource
from vla_robot.data.formats.rlds.convert import to_rlds

Format = Literal["rlds", "lerobot"]


def convert(
    source: EpisodeSource,
    destination: Path,
    to: Format,
    options: Options,
    on_progress: OnProgress = lambda done, total: None,
) -> Converted:
    """Convert a source to another format, or continue its conversion.

    Args:
        source: the dataset to convert.
        destination: the new dataset's folder.
        to: the new dataset's format.
        options: values that the formats do not give.
        on_progress: called after each episode.

    Raises:
        DataError: the folder holds another dataset, or the source lacks a value that the format needs.
    """
    require_episodes(source, options.split)
    write = to_rlds if to == "rlds" else to_lerobot
    return write(without_nulls(source), destination, options, on_progress)


def without_nulls(source: EpisodeSource) -> EpisodeSource:
    """Return the source as it is converted: a LeRobot dataset without fields that are null in some steps."""
    return source.without_nulls() if isinstance(source, LeRobotSource) else source
