"""The formats of datasets: ours, and those that installed packages add. A recipe may name one.

    [project.entry-points."vla_robot.datasets"]     in the package's pyproject.toml
    tape = "my_package.tape:FORMAT"                 FORMAT = DatasetFormat(description=..., recognises=..., open=...)

`vla_robot/data/formats/kinds.py` has the code of ours, and asks each format whether a dataset is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import RecipeError
from vla_robot.core.ports import EpisodeSource
from vla_robot.recipe.reading.plugins import load_plugin, plugin_names

GROUP = "vla_robot.datasets"
BUILT_IN = ("lerobot", "rlds", "hdf5")
"""In the order in which they are tried."""


@dataclass(frozen=True)
class DatasetFormat:
    """A format in which datasets are stored; the value of an entry point of the group `vla_robot.datasets`.

    Attributes:
        description: one line for `vla list` and `vla doctor`.
        recognises: (path or URL) -> whether this path holds a dataset of this format, by its names alone.
        open: (path or URL, split, skip_corrupt, on_progress) -> the dataset, or the part of it that `split` names:
            "train", "val", "train[:95%]", "train[10:20]", "train+val" or "all". With `skip_corrupt`, damaged episodes
            are left out, and `skipped` lists them. It raises DataError.
    """

    description: str
    recognises: Callable[[str], bool]
    open: Callable[[str, str, bool, OnProgress], EpisodeSource]


def format_names() -> list[str]:
    """Return the names of all formats, plugins' after ours. No plugin is imported."""
    return [*BUILT_IN, *(name for name in plugin_names(GROUP) if name not in BUILT_IN)]


def format_plugin(name: str) -> DatasetFormat:
    """Import the format that a package adds.

    Raises:
        RecipeError: no package adds it, or it cannot be used; the message names its distribution.
    """
    found = load_plugin(name, GROUP, wanted=DatasetFormat)
    if name in BUILT_IN:
        owner = plugin_names(GROUP)[name]
        raise RecipeError(f"the plugin '{name}' of {owner} cannot be used: the dataset format '{name}' is built in")
    return found
