"""Opens a dataset of any format."""

from __future__ import annotations

from pathlib import Path

from vla_robot.core.episode import OnProgress
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.data.formats.kinds import format_at, format_named
from vla_robot.data.formats.rlds.reader import index_rlds


def open_source(
    location: str | Path,
    split: str = "train",
    *,
    format: str | None = None,
    skip_corrupt: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> EpisodeSource:
    """Open a dataset, or a part of it.

    Args:
        location: the folder of an RLDS or LeRobot dataset, a robomimic HDF5 file or a folder of them, the URL of an
            RLDS dataset, or what an installed package's format recognises.
        split: "train", "val", "train[:95%]", "train[10:20]", "train+val" or "all".
        format: name of the format; None recognises it.
        skip_corrupt: leave damaged episodes out, which `skipped` lists.
        on_progress: called with shards done and shards in all while an RLDS dataset is indexed.

    Raises:
        DataError: there is no dataset of a known format, it is damaged, or the split does not exist.
        RecipeError: the plugin of the named format cannot be used.
        MissingDependencyError: the extra [data] is not installed.
    """
    return format_named(format or format_at(location)).open(str(location), split, skip_corrupt, on_progress)


def open_by(
    runner: TaskRunner,
    location: str,
    split: str = "train",
    skip_corrupt: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> EpisodeSource:
    """Open a dataset as `open_source` does; shards that have no index are read where a runner's tasks run.

    Raises:
        VlaError: as `open_source`.
    """
    if not runner.is_here and format_at(location) == "rlds":
        index_rlds(location, runner, on_progress)
    return open_source(location, split, skip_corrupt=skip_corrupt, on_progress=on_progress)
