"""Reads demonstrations of robomimic and robosuite, and those of LIBERO: one HDF5 file, a group per demonstration.

    data/            attributes: env_args (JSON: the simulator and its control rate), problem_info (LIBERO: the task)
      demo_0/        attributes: num_samples, ep_meta (robosuite 1.5: the task in its field "lang")
        actions      (T, D)
        rewards dones states
        obs/NAME     (T, ...) numbers, or (T, H, W, 3) uint8 frames
        next_obs/    the same, one step later: not read, since obs has it
    mask/NAME        names of demonstrations that form a split (optional)

Fields are named as in other sources: obs/NAME is "observation/NAME", and "actions", "rewards", "dones" lose their s.
A file with only `states` and `actions`, as robosuite's collection writes it, has no frames until robomimic's
dataset_states_to_obs.py has rendered them; it reads as it is.

Source: robomimic 0.5, docs/datasets/overview.md; robosuite 1.5.1, scripts/collect_human_demonstrations.py.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.optional import require
from vla_robot.core.untrusted import MALFORMED, parse_json, shortened
from vla_robot.record import png
from vla_robot.record.bounds import (
    MAX_COLUMN_BYTES,
    MAX_STEPS,
    hdf5_attribute,
    hdf5_datasets,
    hdf5_find,
    hdf5_texts,
    require_bytes,
)
from vla_robot.record.part import episodes_of
from vla_robot.record.source import Column, Episode, Field, require_fields, require_index

if TYPE_CHECKING:
    import h5py

TRAIN = "train"
INSTRUCTION = "language_instruction"
OBSERVATIONS = "obs/"
RENAMED = {"actions": "action", "rewards": "reward", "dones": "done"}
LEFT_OUT = ("next_obs/",)
SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class RawFrames:
    """Frames that are stored as plain pixels; each is read when it is asked for.

    Attributes:
        path: the file.
        dataset: the frames' place in it.
        length: how many.
    """

    path: Path
    dataset: str
    length: int

    def __len__(self) -> int:
        return self.length

    def encoded(self, step: int) -> bytes:
        return png.encode(self.decode(step))

    def decode(self, step: int) -> NDArray[Any]:
        with _opened(self.path) as file:
            return np.asarray(_dataset(file, self.dataset)[step])


class Hdf5Dataset:
    """Demonstrations of one file, in order. An `EpisodeSource`; open it with `open_hdf5`."""

    def __init__(self, path: Path, split: str) -> None:
        """
        Args:
            path: the file.
            split: "train" (all, unless the file has masks), the name of a mask, a part of one, or "all".

        Raises:
            DataError: no such file, not one of demonstrations, or an unknown split.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("h5py", "data", f"reading {path}")
        self._path, self._split = path, split
        with _opened(path) as file:
            demos = _demonstrations(file, path)
            self._splits = _splits(file, demos)
            chosen = episodes_of(split, self._splits, str(path))
            self._demos = [demos[i] for i in chosen]
            first = dict(hdf5_datasets(hdf5_find(file, f"data/{demos[0]}"), LEFT_OUT))
            self._places = {_field_name(place): place for place in sorted(first)}
            self._fields = {name: _field(name, first[place]) for name, place in self._places.items()}
            self._rate_hz = _rate_hz(file)
            self._instructions = [_instruction(file, demo) for demo in self._demos]
            self._lengths = np.array([_length(file, demo, path) for demo in self._demos], dtype=np.int64)
        if self._demos and all(self._instructions):
            self._fields[INSTRUCTION] = Field(INSTRUCTION, "text", "str", ())

    def __reduce__(self) -> tuple[Callable[[], Hdf5Dataset], tuple[()]]:
        return functools.partial(Hdf5Dataset, self._path, self._split), ()

    def __len__(self) -> int:
        return len(self._demos)

    @property
    def name(self) -> str:
        return self._path.stem

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def splits(self) -> Mapping[str, int]:
        """Every split and how many episodes it has."""
        return {name: len(episodes) for name, episodes in self._splits.items()}

    @property
    def fields(self) -> dict[str, Field]:
        return self._fields

    @property
    def metadata_fields(self) -> dict[str, Field]:
        return {"demonstration": Field("demonstration", "text", "str", ())}

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._lengths

    @property
    def rate_hz(self) -> float | None:
        return self._rate_hz

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        demo, length = self._demos[index], int(self._lengths[index])
        where = f"{self._path}, data/{demo}"
        with _opened(self._path) as file:
            names = require_fields(fields, self._fields, str(self._path))
            steps = {name: self._column(file, name, index, length, where) for name in names}
        return Episode(index, {"demonstration": demo}, steps, length, where)

    def encoded(self, index: int, field: str, step: int) -> bytes:
        require_index(index, len(self), "episode")
        require_index(step, int(self._lengths[index]), "step")
        cameras = {name: field for name, field in self._fields.items() if field.kind == "image"}
        require_fields([field], cameras, f"{self._path}, cameras")
        return RawFrames(self._path, f"data/{self._demos[index]}/{self._places[field]}", step + 1).encoded(step)

    def _column(self, file: h5py.File, name: str, index: int, length: int, where: str) -> Column:
        if name == INSTRUCTION:
            return (self._instructions[index],) * length
        place = f"data/{self._demos[index]}/{self._places[name]}"
        values, field = _dataset(file, place), self._fields[name]
        if len(values) != length:
            raise DataError(f"{where}: field '{name}' has {len(values)} values, but the episode {length} steps.")
        if _field(name, values) != field:
            raise DataError(f"{where}: field '{name}' is {_field(name, values)}, in the first demonstration {field}.")
        if field.kind == "image":
            return RawFrames(self._path, place, length)
        require_bytes(values.nbytes, MAX_COLUMN_BYTES, f"{where}: field '{name}'")
        return np.asarray(values)


def open_hdf5(path: Path | str, split: str = "train") -> Hdf5Dataset:
    """Demonstrations of one file.

    Args:
        path: the file.
        split: "train" (all, unless the file has masks), the name of a mask, a part of one, or "all".

    Raises:
        DataError: no such file, not one of demonstrations, or an unknown split.
        MissingDependencyError: the extra [data] is not installed.
    """
    return Hdf5Dataset(Path(path), split)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Opened for each access: an open file does not survive a fork, and cannot be sent to another process."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (OSError, RuntimeError, *MALFORMED) as error:
        raise DataError(f"{path} is no readable HDF5 file of demonstrations: {shortened(error)}.") from error


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Their names, demo_2 before demo_10.

    Raises:
        DataError: there are none.
    """
    demos = [name for name in _names(file, "data") if hdf5_find(file, f"data/{name}/actions") is not None]
    if not demos:
        raise DataError(
            f"{path} holds no demonstrations: there is no data/NAME/actions. It has: {', '.join(file) or 'nothing'}."
        )
    return sorted(demos, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _names(file: h5py.File, group: str) -> list[str]:
    """What a group holds; nothing when there is no such group."""
    found = hdf5_find(file, group)
    return [] if found is None else list(found)


def _splits(file: h5py.File, demos: list[str]) -> dict[str, list[int]]:
    """robomimic's masks by name; a file without them is one split, "train"."""
    number = {name: index for index, name in enumerate(demos)}
    masks = {name: hdf5_texts(_dataset(file, f"mask/{name}")) for name in _names(file, "mask")}
    splits = {name: [number[demo] for demo in entries if demo in number] for name, entries in masks.items()}
    splits = {"val" if name == "valid" else name: sorted(episodes) for name, episodes in splits.items()}
    return splits if TRAIN in splits else {TRAIN: list(range(len(demos))), **splits}


def _field_name(place: str) -> str:
    if place.startswith(OBSERVATIONS):
        return "observation/" + place.removeprefix(OBSERVATIONS)
    return RENAMED.get(place, place)


def _field(name: str, values: h5py.Dataset) -> Field:
    shape = tuple(values.shape[1:])
    is_image = values.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
    return Field(name, "image" if is_image else "number", values.dtype.name, shape)


def _dataset(file: h5py.File, place: str) -> Any:
    found = hdf5_find(file, place)
    if found is None or not hasattr(found, "dtype"):
        raise DataError(f"{file.filename} has no {place}, although the first demonstration has it.")
    return found


def _length(file: h5py.File, demo: str, path: Path) -> int:
    length = len(_dataset(file, f"data/{demo}/actions"))
    if not length:
        raise DataError(f"{path}, data/{demo}: the episode has no steps (field 'actions' is empty).")
    if length > MAX_STEPS:
        raise DataError(f"{path}, data/{demo}: the episode has {length} steps; at most {MAX_STEPS} are read.")
    return length


def _rate_hz(file: h5py.File) -> float | None:
    arguments = _json(hdf5_attribute(hdf5_find(file, "data"), "env_args"))
    rate_hz = arguments.get("env_kwargs", {}).get("control_freq")
    return None if rate_hz is None else float(rate_hz)


def _instruction(file: h5py.File, demo: str) -> str:
    """Where robosuite 1.5, LIBERO and robomimic keep it, in this order; "" when it is nowhere."""
    own, common = hdf5_find(file, f"data/{demo}"), hdf5_find(file, "data")
    said = [
        _json(hdf5_attribute(own, "ep_meta")).get("lang"),
        hdf5_attribute(own, INSTRUCTION),
        _json(hdf5_attribute(common, "problem_info")).get(INSTRUCTION),
        hdf5_attribute(common, INSTRUCTION),
    ]
    return next((" ".join(text) if isinstance(text, list) else str(text) for text in said if text), "")


def _json(text: Any) -> dict[str, Any]:
    try:
        content = parse_json(text, "an attribute") if isinstance(text, (str, bytes)) and text else {}
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}
