"""Opens a dataset, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.data.formats.hdf5 import SUFFIXES, Hdf5Dataset, hdf5_files, open_hdf5
from vla_robot.data.formats.lerobot.layout import INFO
from vla_robot.data.formats.lerobot.source import LeRobotSource, open_lerobot
from vla_robot.data.formats.rlds.reader import RldsDataset, is_rlds, open_rlds
from vla_robot.data.formats.rlds.storage import open_storage

Source = RldsDataset | LeRobotSource | Hdf5Dataset


def open_source(
    location: str | Path,
    split: str = "train",
    *,
    skip_corrupt: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Source:
    """A dataset, or a part of it.

    Args:
        location: the folder of an RLDS or LeRobot dataset, a robomimic HDF5 file or a folder of them, or the URL of an
            RLDS dataset.
        split: "train", "val", "train[:95%]", "train[10:20]", "train+val" or "all".
        skip_corrupt: leave damaged episodes out, and say which in `skipped`.
        on_progress: called with shards done and shards in all while an RLDS dataset is indexed.

    Raises:
        DataError: it is none of these, or is damaged, or the split does not exist.
        MissingDependencyError: the extra [data] is not installed.
    """
    storage = open_storage(location)
    if storage.local is not None:
        path = storage.local
        if path.suffix in SUFFIXES and path.is_file():
            return open_hdf5(path, split, skip_corrupt=skip_corrupt)
        if (path / INFO).is_file():
            return open_lerobot(path, split, skip_corrupt=skip_corrupt)
        if not path.is_dir():
            raise DataError(f"{path} does not exist, or is no dataset: expected a folder or a {SUFFIXES[0]} file.")
    if storage.local is not None and hdf5_files(storage.local) and not is_rlds(storage):
        return open_hdf5(storage.local, split, skip_corrupt=skip_corrupt)
    if not is_rlds(storage):
        there = [*sorted(storage.files()), *storage.folders()][:8]
        raise DataError(
            f"{storage.location} is no dataset: neither RLDS (dataset_info.json, or a folder 1.0.0 with it) nor "
            f"LeRobot ({INFO}) nor HDF5 files. It has: {', '.join(there) or 'nothing'}."
        )
    return open_rlds(location, split, skip_corrupt=skip_corrupt, on_progress=on_progress)
