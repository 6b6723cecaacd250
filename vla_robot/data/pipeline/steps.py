"""Writes all standard steps of a dataset to one table on the disk, which all processes map into memory.

    HASH/actions.npy         (N, D) float32, in units
    HASH/state.npy           (N, P) float32
    HASH/instructions.npy    (N,) int32, index into the texts
    HASH/episodes.npy        (E,) the rows of each episode
    HASH/about.json          texts, and the statistics in the schema of dataset_statistics.json

The numbers of a step take about 60 bytes; frames stay in the dataset. HASH is a hash of the recipe and of the names,
sizes and times of the dataset's files, so that a change of either makes a new table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from vla_robot.cluster.local import LocalRunner
from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import make_folder, rename, sync_tree, writing
from vla_robot.core.host.user_cache import user_cache
from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.data.pipeline.standardise import require_fit
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.data.pipeline.step_parts import read_part, standard_parts
from vla_robot.recipe.oxe import SourceRecipe

FORMAT = 1
ABOUT = "about.json"
NOT_IN_STEPS = ("description", "published")
"""Fields of a recipe that change no step."""
SINCE = ("format",)
"""Fields that older recipes lack: without a value, tables that were made before stay valid."""


@dataclass(frozen=True)
class StepTable:
    """N standard steps of E episodes.

    Attributes:
        folder: folder of the table; None for one in memory.
        actions: (N, D) float32; float64 for a table in memory.
        state: (N, P) float32; float64 for a table in memory.
        text_of: (N,) int32, index into `texts`.
        texts: all instructions, each once.
        episodes: (E,) EPISODE, of the episodes with at least one step.
        statistics: the dataset's block of dataset_statistics.json.
    """

    folder: Path | None
    actions: NDArray[np.floating]
    state: NDArray[np.floating]
    text_of: NDArray[np.integer]
    texts: tuple[str, ...]
    episodes: NDArray[Any]
    statistics: dict[str, Any]

    def __reduce__(self) -> tuple[Callable[..., StepTable], tuple[Any, ...]]:
        """Pickle the folder, so that another process maps the same files; numpy would pickle a copy of the arrays."""
        return (StepTable, tuple(vars(self).values())) if self.folder is None else (open_table, (self.folder,))

    def __len__(self) -> int:
        return len(self.actions)


def step_table(
    name: str,
    recipe: SourceRecipe,
    parts: Sequence[EpisodeSource],
    cache: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
    runner: TaskRunner | None = None,
) -> StepTable:
    """Open the table of a dataset; make it first if it does not exist.

    Args:
        name: the dataset's name.
        recipe: the dataset's recipe.
        parts: all parts of the dataset, e.g. its splits: statistics cover training and validation.
        cache: folder for tables; None takes the user's cache folder.
        on_progress: called while the table is made.
        runner: where the episodes are read; None for this process.

    Raises:
        DataError: the dataset does not fit the recipe, is damaged, or has no step.
    """
    folder = (cache or usual_cache()) / fingerprint(name, recipe, parts)
    if not (folder / ABOUT).is_file():
        for part in parts:
            require_fit(recipe, part.fields, part.location)
        _make(folder, name, recipe, parts, on_progress, runner or LocalRunner())
    return open_table(folder)


def open_table(folder: Path) -> StepTable:
    """Open a table that exists.

    Raises:
        DataError: the table is damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
        actions, state, text_of, episodes = arrays
        return StepTable(folder, actions, state, text_of, tuple(about["texts"]), episodes, about["statistics"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the table {folder} is damaged ({error}). Remove that folder; it is made anew.") from error


def normalised(
    values: NDArray[np.floating], block: Mapping[str, Any], keep_constants: bool = False
) -> NDArray[np.floating]:
    """Return values (..., D) normalised by a block of the statistics, with the dtype of the values.

    A dimension that never changes becomes 0, as in the reference, even where the mask leaves it as it is;
    `keep_constants` leaves it as it is there.
    """
    scaled = normalise(values, QuantileStats.from_dict(block))
    if not keep_constants:
        scaled = np.where(np.asarray(block["min"]) == np.asarray(block["max"]), 0, scaled)
    return scaled.astype(values.dtype)


def is_absolute(recipe: SourceRecipe) -> NDArray[np.bool_]:
    """Return whether each dimension of an action is absolute, (D,)."""
    return np.array(recipe.is_absolute)


def fingerprint(name: str, recipe: SourceRecipe, parts: Sequence[EpisodeSource]) -> str:
    """Return a hash of the recipe and the dataset's files. It does not depend on the dataset's location."""
    content = {
        "format": FORMAT,
        "name": name,
        "recipe": _said(recipe),
        "parts": [[part.name, hashlib.sha256(part.lengths.tobytes()).hexdigest()] for part in parts],
        "files": [_stamps(location) for location in dict.fromkeys(part.location for part in parts)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _said(recipe: SourceRecipe) -> dict[str, Any]:
    fields = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in NOT_IN_STEPS}
    return {key: value for key, value in fields.items() if key not in SINCE or value is not None}


def usual_cache() -> Path:
    """Return the folder for tables in the user's cache folder."""
    return user_cache("steps")


_ARRAYS = ("actions", "state", "instructions", "episodes")


def _stamps(location: str) -> list[list[Any]]:
    """Return names, sizes and times of a dataset's files; none for a URL, where only the lengths are hashed."""
    root = Path(location)
    if "://" in location or not root.exists():
        return []
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    visible = [path for path in files if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    return [[str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns] for p in visible]


def _make(
    folder: Path,
    name: str,
    recipe: SourceRecipe,
    parts: Sequence[EpisodeSource],
    on_progress: OnProgress,
    runner: TaskRunner,
) -> None:
    """Write a table in another folder and rename it, so that it is never partial, even with several processes."""
    try:
        make_folder(folder.parent)
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"cannot write below {folder.parent}: {error.strerror}. Set XDG_CACHE_HOME.") from error
    try:
        with writing(building), _place_of_parts(folder, building, runner) as store:
            _Writer(building, name, recipe, parts).write(store, runner, on_progress)
            sync_tree(building)
            try:
                rename(building, folder)
            except OSError:  # another process was faster; its table is the same
                if not (folder / ABOUT).is_file():
                    raise
            shutil.rmtree(store, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def _place_of_parts(folder: Path, building: Path, runner: TaskRunner) -> Iterator[Path]:
    """Yield the folder of the parts: one that outlives a killed command where they cost a cluster's time."""
    if runner.is_here:
        with tempfile.TemporaryDirectory(prefix=f"{building.name}.parts.", dir=folder.parent) as store:
            yield Path(store)
    else:
        store = folder.with_name(f"{folder.name}.parts")
        with Claim(store):
            yield store


class _Writer:
    """A writer that fills the arrays of a table with the standard steps of all pieces, in order."""

    def __init__(self, folder: Path, name: str, recipe: SourceRecipe, parts: Sequence[EpisodeSource]) -> None:
        self._folder, self._name, self._recipe, self._parts = folder, name, recipe, parts
        lost = recipe.skip_first + recipe.skip_last
        self._total = sum(int(np.maximum(part.lengths - lost, 0).sum()) for part in parts)
        if self._total == 0:
            places = ", ".join(dict.fromkeys(part.location for part in parts))
            raise DataError(f"{places}: the dataset has no step to learn from.")
        self._arrays: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, int] = {}
        self._episodes: list[NDArray[Any]] = []

    def write(self, store: Path, runner: TaskRunner, on_progress: OnProgress) -> None:
        files = standard_parts(self._recipe, self._parts, store, runner, on_progress)
        start = 0
        for path in files:
            part = read_part(path)
            rows = slice(start, start + len(part.actions))
            if len(part.actions):
                self._array("actions", part.actions)[rows] = part.actions
                self._array("state", part.state)[rows] = part.state
                codes = [self._texts.setdefault(text, len(self._texts)) for text in part.texts]
                self._array("instructions", np.empty(0, np.int32))[rows] = np.array(codes, np.int32)[part.text_of]
                episodes = part.episodes.copy()
                episodes["start"] += start
                self._episodes.append(episodes)
            start = rows.stop
        np.save(self._folder / "episodes.npy", np.concatenate(self._episodes))
        self._write_about()

    def _array(self, name: str, like: NDArray[Any]) -> NDArray[Any]:
        if name not in self._arrays:
            shape = (self._total, *like.shape[1:])
            path = self._folder / f"{name}.npy"
            self._arrays[name] = open_memmap(path, mode="w+", dtype=like.dtype, shape=shape)
            _allocate(path)
        return self._arrays[name]

    def _write_about(self) -> None:
        actions, state = self._arrays["actions"], self._arrays["state"]
        # The reference writes zeros, one for each dimension of the action, where there is no state.
        proprio = state if state.shape[1] else np.broadcast_to(np.float32(0), actions.shape)
        statistics = dataset_statistics(
            self._name, actions, proprio, sum(map(len, self._episodes)), self._recipe.action_mask
        )
        about = {"texts": list(self._texts), "statistics": statistics[self._name]}
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        (self._folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _allocate(path: Path) -> None:
    """Allocate the disk space of a sparse file. On a full disk this raises OSError; a mapped write would be SIGBUS."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
