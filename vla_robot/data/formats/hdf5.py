"""Reads demonstrations of robomimic, robosuite, MimicGen, LIBERO and Isaac Lab: HDF5 files, a group per demonstration.

    data/                attributes: env_args (JSON: simulator and control rate), problem_info (LIBERO: the task)
      demo_0/            attributes: num_samples, ep_meta (robosuite 1.5: the task in its field "lang")
        actions          (T, D)
        rewards dones states robot_states action_dict/NAME datagen_info/NAME
        obs/NAME         (T, ...) numbers, or (T, H, W, 3) uint8 frames
        next_obs/        the same, one step later: not read, since obs has it
        initial_state/   Isaac Lab: one state before the first step: not read
        src_demo_inds    MimicGen: one value for each subtask: not read, like everything without one value a step
    mask/NAME            robomimic's filter keys: names of demonstrations; they may overlap (optional)

The masks "train" and "valid" are the splits "train" and "val", and other masks are parts that can be read by name. A
folder of such files is one dataset: a LIBERO suite has ten files, each with a task of its own.

Fields are named as in other sources: obs/NAME is "observation/NAME", and "actions", "rewards", "dones" lose their s.
A file with only `states` and `actions`, as robosuite's collection writes it, has no frames until robomimic's
dataset_states_to_obs.py has rendered them; it is read without frames.

Source: robomimic 0.5, docs/datasets/overview.md, utils/file_utils.py, scripts/split_train_val.py; robosuite 1.5.1,
scripts/collect_human_demonstrations.py; MimicGen, utils/file_utils.py; LIBERO, scripts/create_dataset.py; Isaac Lab,
utils/datasets/hdf5_dataset_file_handler.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.core.host.optional import require
from vla_robot.core.untrusted import MALFORMED, parse_json, require_links_inside, shortened
from vla_robot.data.formats import png
from vla_robot.data.formats.bounds import (
    MAX_COLUMN_BYTES,
    MAX_STEPS,
    hdf5_attribute,
    hdf5_datasets,
    hdf5_find,
    hdf5_texts,
    require_bytes,
    require_pixels,
)
from vla_robot.data.formats.hdf5_heaps import require_sound_heaps
from vla_robot.data.formats.rlds.splits import ALL
from vla_robot.data.formats.source import find_damage, require_fields, require_index, tell_empty, tell_left_out
from vla_robot.data.formats.split_expression import episodes_of

if TYPE_CHECKING:
    import h5py

TRAIN, VAL, REST = "train", "val", "rest"
SPLIT_OF = {"train": TRAIN, "valid": VAL, "val": VAL}
"""robomimic's mask -> split."""
INSTRUCTION = "language_instruction"
OBSERVATIONS = "obs/"
RENAMED = {"actions": "action", "rewards": "reward", "dones": "done"}
INITIAL = "initial_state"
LEFT_OUT = ("next_obs/", f"{INITIAL}/")
SUFFIXES = (".hdf5", ".h5")
UPSIDE_DOWN = (
    'Frames are stored upside down (macros_image_convention is "opengl") and are read as they are stored; OpenVLA '
    "turned those of LIBERO by 180 degrees before training."
)
BYTES_AT_ONCE = 2**20
"""Size of the frames that are read together: 4 of 300 x 300."""
MOST_NAMED = 4
"""Largest number of demonstrations that a note names."""


@dataclass(frozen=True)
class Demo:
    """One demonstration.

    Attributes:
        path: path of its file.
        name: name of its group.
        length: number of its steps.
        instruction: its instruction; "" when the file has none.
    """

    path: Path
    name: str
    length: int
    instruction: str

    @property
    def where(self) -> str:
        """File and group, for messages."""
        return f"{self.path}, data/{self.name}"


@dataclass(frozen=True)
class Contents:
    """The contents of one file, without its numbers.

    Attributes:
        demos: demonstrations with at least one step, in the order of their numbers.
        num_empty: number of demonstrations of 0 steps.
        masks: mask -> names of demonstrations.
        fields: fields of each step, by name.
        places: field -> its path in a demonstration.
        left_out: path that is not read -> why.
        rate_hz: steps per second; None when the file has no rate.
        is_upside_down: whether the first row of a frame is the lowest.
    """

    demos: tuple[Demo, ...]
    num_empty: int
    masks: Mapping[str, Sequence[str]]
    fields: Mapping[str, Field]
    places: Mapping[str, str]
    left_out: Mapping[str, str]
    rate_hz: float | None
    is_upside_down: bool


@dataclass(frozen=True)
class RawFrames:
    """Frames that are stored as plain pixels; consecutive ones are read together.

    Attributes:
        path: path of the file.
        dataset: path of the frames in it.
        length: number of frames.
        shape: shape of a frame, (H, W, 3).
    """

    path: Path
    dataset: str
    length: int
    shape: tuple[int | None, ...]

    def __len__(self) -> int:
        return self.length

    @property
    def at_once(self) -> int:
        """Number of frames that are read together."""
        return max(BYTES_AT_ONCE // math.prod(size or 1 for size in self.shape), 1)

    def encoded(self, step: int) -> bytes:
        return png.encode(self.decode(step))

    def decode(self, step: int) -> NDArray[Any]:
        block, place = divmod(range(self.length)[step], self.at_once)
        return _read_block(self, block, self.path.stat().st_mtime_ns if self.path.is_file() else 0)[place].copy()

    def check(self) -> None:
        for step in range(0, self.length, self.at_once):
            self.decode(step)


@functools.lru_cache(maxsize=4)
def _read_block(frames: RawFrames, block: int, changed_ns: int) -> NDArray[Any]:
    """Read a block of frames, (up to `at_once`, H, W, 3), since opening a file takes longer than reading a frame."""
    first = block * frames.at_once
    with _opened(frames.path) as file:
        return _values(_dataset(file, frames.dataset), slice(first, first + frames.at_once))


class Hdf5Dataset:
    """An `EpisodeSource` of the demonstrations of a file or of a folder of files. Open it with `open_hdf5`.

    Attributes:
        splits: split -> number of its demonstrations; each demonstration is in exactly one split.
        subsets: other mask -> number of its demonstrations; these masks may overlap.
        num_skipped: number of demonstrations left out; a file that cannot be opened counts as one.
    """

    def __init__(self, path: Path, split: str, damaged: Mapping[int, str] | None = None) -> None:
        """
        Args:
            path: path of the file, or of a folder of files.
            split: "train" (all, unless there are masks), the name of a mask, a part of one, or "all".
            damaged: index of a demonstration of the split that is left out -> why; None reads all, and then a file that
                cannot be opened is an error.

        Raises:
            DataError: the file does not exist or holds no demonstrations, or the split is unknown.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("h5py", "data", f"reading {path}")
        self._path, self._split, self._damaged = path, split, damaged
        self.name, self.location = path.name if path.is_dir() else path.stem, str(path)
        files, unreadable = _read_files(path, skip_corrupt=damaged is not None)
        self.skipped = (*unreadable, *(damaged or {}).values())
        self.num_skipped = len(self.skipped)
        parts = divide(files)
        self.splits = {name: len(episodes) for name, episodes in parts.splits.items()}
        self.subsets = {name: len(episodes) for name, episodes in parts.subsets.items()}
        demos = [demo for file in files for demo in file.demos]
        chosen = episodes_of(split, parts.splits, str(path), parts.subsets)
        self._demos = [demos[number] for place, number in enumerate(chosen) if place not in (damaged or {})]
        self.fields, self.left_out = _common_fields(files, path)
        self._places = files[0].places
        if any(demo.instruction for demo in demos):
            self.fields[INSTRUCTION] = Field(INSTRUCTION, "text", "str", ())
        self.rate_hz = _common_rate(files, path)
        said = ("file", "demonstration") if path.is_dir() else ("demonstration",)
        self.metadata_fields = {name: Field(name, "text", "str", ()) for name in said}
        self.notes = self._notes(files, parts)
        self.lengths = np.array([demo.length for demo in self._demos], dtype=np.int64)

    def _notes(self, files: Sequence[Contents], parts: Parts) -> tuple[str, ...]:
        masks = [f"{name} {count}" for name, count in self.subsets.items()]
        subsets = [f"Masks that are no split, and can be read by name: {', '.join(masks)}."] if masks else []
        turned = (UPSIDE_DOWN,) if any(file.is_upside_down for file in files) else ()
        num_empty = sum(file.num_empty for file in files)
        return (*parts.notes, *subsets, *turned, *tell_left_out(self.left_out), *tell_empty(num_empty))

    def __reduce__(self) -> tuple[Callable[[], Hdf5Dataset], tuple[()]]:
        return functools.partial(Hdf5Dataset, self._path, self._split, self._damaged), ()

    def __len__(self) -> int:
        return len(self._demos)

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        demo = self._demos[index]
        names = require_fields(fields, self.fields, str(self._path), self.left_out)
        with _opened(demo.path) as file:
            steps = {name: self._column(file, name, demo) for name in names}
        said = {"file": demo.path.name, "demonstration": demo.name}
        return Episode(index, {name: said[name] for name in self.metadata_fields}, steps, demo.length, demo.where)

    def encoded(self, index: int, field: str, step: int) -> bytes:
        require_index(index, len(self), "episode")
        demo = self._demos[index]
        require_index(step, demo.length, "step")
        cameras = {name: field for name, field in self.fields.items() if field.kind == "image"}
        require_fields([field], cameras, f"{self._path}, cameras", self.left_out)
        with _opened(demo.path) as file:
            return png.encode(_values(_dataset(file, f"data/{demo.name}/{self._places[field]}"), step))

    def _column(self, file: h5py.File, name: str, demo: Demo) -> Column:
        if name == INSTRUCTION:
            return (demo.instruction,) * demo.length
        place = f"data/{demo.name}/{self._places[name]}"
        values, field = _dataset(file, place), self.fields[name]
        if not values.shape or len(values) != demo.length:
            count = len(values) if values.shape else "no"
            raise DataError(f"{demo.where}: field '{name}' has {count} values, but the episode {demo.length} steps.")
        if _field(name, values) != field:
            raise DataError(
                f"{demo.where}: field '{name}' is {_field(name, values)}, in the first demonstration {field}."
            )
        if field.kind == "image":
            height, width, _ = values.shape[1:]
            require_pixels(width, height, (), f"{demo.where}: field '{name}'")
            return RawFrames(demo.path, place, demo.length, field.shape)
        require_bytes(values.nbytes, MAX_COLUMN_BYTES, f"{demo.where}: field '{name}'")
        return _values(values, ...)


def open_hdf5(path: Path | str, split: str = "train", *, skip_corrupt: bool = False) -> Hdf5Dataset:
    """Open the demonstrations of one file, or of all files of a folder.

    Args:
        path: path of the file or folder.
        split: "train" (all, unless there are masks), the name of a mask, a part of one, or "all".
        skip_corrupt: read each demonstration once and leave damaged ones out, which `skipped` lists.

    Raises:
        DataError: the file does not exist or holds no demonstrations, or the split is unknown.
        MissingDependencyError: the extra [data] is not installed.
    """
    if not skip_corrupt:
        return Hdf5Dataset(Path(path), split)
    return Hdf5Dataset(Path(path), split, find_damage(Hdf5Dataset(Path(path), split, {})))


def hdf5_files(folder: Path) -> list[Path]:
    """Return the HDF5 files in a folder, in the order of their names.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error


@dataclass(frozen=True)
class Parts:
    """The splits of a dataset. Demonstrations are numbered over all files.

    Attributes:
        splits: split -> numbers of its demonstrations; each demonstration is in exactly one split.
        subsets: other mask -> numbers of its demonstrations; these may overlap.
        notes: notes on the masks for a user.
    """

    splits: dict[str, list[int]]
    subsets: dict[str, list[int]]
    notes: tuple[str, ...]


def divide(files: Sequence[Contents]) -> Parts:
    """Divide demonstrations by robomimic's masks into splits, which do not overlap, and subsets.

    In a file without a mask "train", all demonstrations outside of "valid" are "train". A demonstration in both masks
    is in "train" only.
    """
    demos = [demo for file in files for demo in file.demos]
    number = {(demo.path, demo.name): place for place, demo in enumerate(demos)}
    masked: dict[str, set[int]] = {}
    absent: list[str] = []
    trained_without_mask: set[int] = set()
    for file in files:
        own = {demo.name: number[demo.path, demo.name] for demo in file.demos}
        if TRAIN not in file.masks:
            trained_without_mask |= set(own.values())
        for name, entries in file.masks.items():
            masked.setdefault(SPLIT_OF.get(name, name), set()).update(own[entry] for entry in entries if entry in own)
            absent += [entry for entry in entries if entry not in own]
    val = masked.pop(VAL, set())
    in_both = masked.get(TRAIN, set()) & val
    train = masked.pop(TRAIN, set()) | (trained_without_mask - val)
    rest = set(range(len(demos))) - train - val
    splits = (
        {TRAIN: sorted(train)} | ({VAL: sorted(val - train)} if val else {}) | ({REST: sorted(rest)} if rest else {})
    )
    notes = (
        *_note(
            "in both masks train and valid; they train and do not validate", [demos[i].name for i in sorted(in_both)]
        ),
        *_note(f"in neither mask train nor valid; they are the split '{REST}'", [demos[i].name for i in sorted(rest)]),
        *_note("named by a mask and not in the file", sorted(set(absent))),
    )
    return Parts(splits, {name: sorted(of) for name, of in masked.items() if name not in (*splits, ALL)}, notes)


def _note(what: str, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return (f"Demonstrations {what}: {', '.join(names[:MOST_NAMED])}{more}.",)


def _read_files(path: Path, skip_corrupt: bool) -> tuple[list[Contents], tuple[str, ...]]:
    """Return the contents of each file, and why files were left out.

    Raises:
        DataError: a file cannot be read, or none holds a demonstration.
    """
    paths = hdf5_files(path) if path.is_dir() else [path]
    if path.is_dir():
        require_links_inside(path)
    found: list[Contents] = []
    unreadable: list[str] = []
    for file in paths:
        try:
            found.append(_read_file(file))
        except DataError as error:
            if not skip_corrupt or len(paths) == 1:
                raise
            unreadable.append(str(error))
    if not found:
        raise DataError(f"{path}: no file of demonstrations can be read. The first one: {unreadable[0]}")
    return found, tuple(unreadable)


def _read_file(path: Path) -> Contents:
    with _opened(path) as file:
        status = path.stat()
        require_sound_heaps(path, status.st_size, status.st_mtime_ns)
        names = _demonstrations(file, path)
        lengths = {name: _length(file, name, path) for name in names}
        if not any(lengths.values()):
            raise DataError(f"{path}: each of its {len(names)} demonstrations has no steps (field 'actions' is empty).")
        demos = tuple(Demo(path, name, lengths[name], _instruction(file, name)) for name in names if lengths[name])
        fields, places, left_out = _schema(file, demos)
        masks = {name: hdf5_texts(_dataset(file, f"mask/{name}")) for name in _names(file, "mask")}
        return Contents(
            demos, len(names) - len(demos), masks, fields, places, left_out, _rate_hz(file), _is_upside_down(file)
        )


def _schema(file: h5py.File, demos: Sequence[Demo]) -> tuple[dict[str, Field], dict[str, str], dict[str, str]]:
    """Return the fields of a step, field -> its path, and path that is not read -> why, by the first demonstration.

    A demonstration of another length shows which datasets have one value per step only by chance.
    """
    first = demos[0]
    other = next((demo for demo in demos if demo.length != first.length), None)
    fields: dict[str, Field] = {}
    places: dict[str, str] = {}
    left_out: dict[str, str] = {}
    found = dict(hdf5_datasets(hdf5_find(file, f"data/{first.name}"), LEFT_OUT))
    elsewhere = {} if other is None else dict(hdf5_datasets(hdf5_find(file, f"data/{other.name}"), LEFT_OUT))
    for place in sorted(found):
        values = found[place]
        is_constant = place in elsewhere and elsewhere[place].shape[:1] == values.shape[:1]
        if why := _why_not(values, first.length, is_constant=is_constant):
            left_out[place] = why
        else:
            name = _field_name(place)
            fields[name], places[name] = _field(name, values), place
    left_out |= {place: f"absent in {first.name}" for place in sorted(elsewhere) if place not in found}
    if hdf5_find(file, f"data/{first.name}/{INITIAL}") is not None:
        left_out[INITIAL] = "the state before the first step"
    return fields, places, left_out


def _why_not(values: h5py.Dataset, steps: int, *, is_constant: bool) -> str:
    """Return why a dataset of a demonstration is not read; "" when it is."""
    if values.dtype.kind not in "biuf":
        return "texts" if values.dtype.kind in "OSU" else f"values of type {values.dtype}"
    if not values.shape:
        return "one number for the whole episode"
    if len(values) != steps or is_constant:
        return f"{len(values)} values that do not belong to the steps"
    return ""


def _common_fields(files: Sequence[Contents], path: Path) -> tuple[dict[str, Field], dict[str, str]]:
    """Return the fields that are equal in all files, and field that is not read -> why.

    Raises:
        DataError: the actions differ, so that the files are not one dataset.
    """
    first = files[0]
    common, left_out = dict(first.fields), {_field_name(place): why for place, why in first.left_out.items()}
    for file in files[1:]:
        for name in {*common, *file.fields}:
            ours, theirs = common.get(name), file.fields.get(name)
            if ours == theirs or name in left_out:
                continue
            here, there = first.demos[0].path.name, file.demos[0].path.name
            left_out[name] = f"{ours or 'absent'} in {here} and {theirs or 'absent'} in {there}"
            common.pop(name, None)
    if RENAMED["actions"] in left_out:
        raise DataError(
            f"{path}: its files do not make one dataset: the actions are {left_out[RENAMED['actions']]}. Open them one "
            "by one."
        )
    return common, left_out


def _common_rate(files: Sequence[Contents], path: Path) -> float | None:
    rates = {file.rate_hz: file.demos[0].path.name for file in files}
    if len(rates) > 1:
        told = ", ".join(f"{'unknown' if rate is None else f'{rate:g} Hz'} in {name}" for rate, name in rates.items())
        raise DataError(f"{path}: its files do not make one dataset: the control rate is {told}. Open them one by one.")
    return next(iter(rates))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file for one access: an open file cannot be used after a fork or sent to another process."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (OSError, RuntimeError, *MALFORMED) as error:
        raise DataError(f"{path} is no readable HDF5 file of demonstrations: {shortened(error)}.") from error


def _values(values: h5py.Dataset, which: Any) -> NDArray[Any]:
    """Read values of a dataset. Raise DataError with its name when they are damaged."""
    try:
        return np.asarray(values[which])
    except OSError as error:
        raise DataError(f"{values.file.filename}, {values.name} is damaged: {shortened(error)}.") from error


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Return the names of the demonstrations, demo_2 before demo_10.

    Raises:
        DataError: the file has no demonstrations.
    """
    demos = [name for name in _names(file, "data") if hdf5_find(file, f"data/{name}/actions") is not None]
    if not demos:
        raise DataError(
            f"{path} holds no demonstrations: there is no data/NAME/actions. It has: {', '.join(file) or 'nothing'}."
        )
    return sorted(demos, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _names(file: h5py.File, group: str) -> list[str]:
    """Return the names in a group; none when there is no such group."""
    found = hdf5_find(file, group)
    return [] if found is None else list(found)


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
    actions = _dataset(file, f"data/{demo}/actions")
    length = len(actions) if actions.shape else 0
    if length > MAX_STEPS:
        raise DataError(f"{path}, data/{demo}: the episode has {length} steps; at most {MAX_STEPS} are read.")
    return length


def _rate_hz(file: h5py.File) -> float | None:
    """Return robosuite's control rate, or Isaac Lab's, which is 1 / (`decimation` * `dt`) [Hz]; None without one."""
    arguments = _json(hdf5_attribute(hdf5_find(file, "data"), "env_args"))
    rate_hz = _positive(_part(arguments, "env_kwargs").get("control_freq"))
    period_s, decimation = (_positive(_part(arguments, "sim_args").get(key)) for key in ("dt", "decimation"))
    if rate_hz is None and period_s is not None and decimation is not None:
        return 1 / (period_s * decimation)
    return rate_hz


def _is_upside_down(file: h5py.File) -> bool:
    """Return whether LIBERO's attribute for robosuite's image convention is "opengl": the first row is the lowest."""
    return _text(hdf5_attribute(hdf5_find(file, "data"), "macros_image_convention")) == "opengl"


def _part(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a JSON object in another; empty where the key has another value or is missing."""
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else None


def _instruction(file: h5py.File, demo: str) -> str:
    """Return the instruction from where robosuite 1.5, LIBERO or robomimic store it, in this order; "" without one."""
    own, common = hdf5_find(file, f"data/{demo}"), hdf5_find(file, "data")
    said = [
        _json(hdf5_attribute(own, "ep_meta")).get("lang"),
        hdf5_attribute(own, INSTRUCTION),
        _json(hdf5_attribute(common, "problem_info")).get(INSTRUCTION),
        hdf5_attribute(common, INSTRUCTION),
    ]
    return next((text for text in map(_text, said) if text), "")


def _text(value: Any) -> str:
    """Return an attribute as text, from str, bytes, or a list or array of words; "" for anything else.

    Quotation marks around it are removed, which LIBERO's files have as its task descriptions do.
    """
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(_text, value)))
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value.strip().strip('"').strip() if isinstance(value, str) else ""


def _json(value: Any) -> dict[str, Any]:
    """Return the JSON object in an attribute; empty when there is none."""
    entries = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    text = entries[0] if len(entries) == 1 else None
    try:
        content = parse_json(text, "an attribute") if isinstance(text, (str, bytes)) and text else {}
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}
