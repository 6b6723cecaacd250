"""Reads recordings for training: LeRobot datasets, one or several as one.

demos = open_demos(["data/lift", "data/lift_round_1"])
demos.actions                       (N, D) what should be done
demos.frames("front", 84, 84)       (N, 84, 84, 3) every frame of a camera at once
demos.images(17)                    {"front": (H, W, 3), "wrist": (H, W, 3)}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError, unknown
from vla_robot.core.host.optional import require
from vla_robot.core.image import resize
from vla_robot.core.messages import Image
from vla_robot.data.formats import png
from vla_robot.data.formats.bounds import require_pixels
from vla_robot.data.formats.lerobot.layout import (
    ACTION,
    EXECUTED,
    IMAGES,
    INFO,
    STATE,
    SUCCESS,
    TASK_INDEX,
    EpisodePlace,
    find_column,
    goes_on,
    read_embodiment,
    read_info,
    read_places,
    read_recording,
    read_table,
    read_tasks,
    require_same_embodiment,
    to_numbers,
)
from vla_robot.data.formats.lerobot.video import is_depth
from vla_robot.data.formats.source import require_finite

OnProgress = Callable[[int, int], None]
"""Called with frames done and frames in all."""

DECODE_THREADS = 4
"""Pillow lets other threads run while it decodes; beyond the number of cores more bring nothing."""


@dataclass(frozen=True)
class DemoEpisode:
    """One episode among the frames of `Demos`.

    Attributes:
        root: the dataset that it is from.
        start: its first frame.
        stop: one past its last frame.
        instruction: the task in plain words, at its first step; `Demos.instruction_at` knows it at each.
        success: the task was done at the end; None when the dataset does not say.
        seed: of the episode; None when the dataset was not recorded by `vla record`.
        driver: name of what moved the arm; None likewise.
        goes_on: it ends at a gap: the robot went on, and what it did then is not known.
    """

    root: Path
    start: int
    stop: int
    instruction: str
    success: bool | None
    seed: int | None
    driver: str | None
    goes_on: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a dataset.

    Attributes:
        path: the file.
        start: the frame that its first row is.
        stop: one past the frame of its last row.
        columns: camera -> its column.
    """

    path: Path
    start: int
    stop: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Demos:
    """N frames of demonstrations. Numbers are in memory; frames stay on disk until they are asked for.

    Attributes:
        embodiment: what the numbers mean.
        episodes: in order; they cover all frames.
        cameras: name -> (height, width) of the stored frames, in pixels.
        states: (N, S) float64, the arm's own state.
        actions: (N, D) float64, what should be done: the labels.
        executed: (N, D) float64, what the arm was given; None when a dataset does not say.
        texts: every instruction, each once.
        text_of: (N,) which of `texts` was told at each frame; one episode may have several.
        files: where the frames lie.
    """

    embodiment: Embodiment
    episodes: tuple[DemoEpisode, ...]
    cameras: Mapping[str, tuple[int, int]]
    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    executed: NDArray[np.float64] | None
    texts: tuple[str, ...]
    text_of: NDArray[np.int64]
    files: tuple[DataFile, ...]

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    def instruction_at(self, index: int) -> str:
        """What the robot was told to do at a frame."""
        return self.texts[self.text_of[index]]

    @property
    def episode_index(self) -> NDArray[np.int64]:
        """(N,) which of `episodes` each frame is from."""
        return np.repeat(np.arange(len(self.episodes)), [len(episode) for episode in self.episodes])

    def images(self, index: int) -> dict[str, Image]:
        """The frames of one step: camera -> (H, W, 3) uint8. Reads from disk; `frames` is the fast way to all of them.

        Raises:
            IndexError: there is no such frame.
            DataError: a file is damaged.
        """
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index} of {self.num_frames}")
        file = next(file for file in self.files if file.start <= index < file.stop)
        table = read_table(file.path, list(file.columns.values()))
        row = table.slice(index - file.start, 1).to_pylist()[0]
        return {name: png.decode(_png_of(row[column], file.path)) for name, column in file.columns.items()}

    def frames(
        self,
        camera: str,
        height: int | None = None,
        width: int | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> NDArray[np.uint8]:
        """All frames of a camera, decoded in threads, resized as a policy resizes them.

        Args:
            camera: its name.
            height: new height in pixels; None keeps the stored one.
            width: new width in pixels; None keeps the stored one.
            on_progress: called after each file.

        Returns:
            (N, height, width, 3) uint8: N * height * width * 3 bytes of memory, 0.5 GB for 25,000 frames of 84 x 84.

        Raises:
            DataError: no such camera, or a file is damaged.
        """
        if camera not in self.cameras:
            raise DataError(unknown("camera", camera, self.cameras))
        stored = self.cameras[camera]
        size = height or stored[0], width or stored[1]
        frames = np.empty((self.num_frames, *size, 3), dtype=np.uint8)
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for file in self.files:
                encoded = read_table(file.path, [file.columns[camera]]).column(0).to_pylist()
                decoded = pool.map(lambda cell, path=file.path: resize(png.decode(_png_of(cell, path)), *size), encoded)
                for index, image in enumerate(decoded, start=file.start):
                    frames[index] = image
                on_progress(file.stop, self.num_frames)
        return frames


def open_demos(roots: Path | str | Sequence[Path | str]) -> Demos:
    """One dataset, or several as one.

    Args:
        roots: folders of LeRobot datasets with frames stored as images. All must have the same embodiment and the same
            frame sizes.

    Raises:
        DataError: not a dataset, damaged, empty, without meta/embodiment.json, or two that do not go together.
        MissingDependencyError: the extra [data] is not installed.
    """
    require("pyarrow", "data", "a LeRobot dataset")
    folders = [Path(roots)] if isinstance(roots, (str, Path)) else [Path(root) for root in roots]
    if not folders:
        raise DataError("no dataset was named. `vla record` makes one.")
    parts = [_open_one(folder) for folder in folders]
    for folder, part in zip(folders[1:], parts[1:], strict=True):
        _require_fit(folder, part, folders[0], parts[0])
    return _joined(parts)


def _open_one(root: Path) -> Demos:
    embodiment = read_embodiment(root)
    info = read_info(root) if (root / INFO).is_file() else {}
    features: dict[str, Any] = info.get("features", {})
    cameras, columns = _cameras(root, features, embodiment) if info else ({}, {})
    places = [place for place in read_places(root, info) if place.length] if info else []
    if not places:
        raise DataError(f"{root} holds no finished episode. `vla record` makes some.")
    files = _files(places, columns)
    state, action = find_column(features, STATE), find_column(features, ACTION)
    wanted = [state, action, TASK_INDEX] + [name for name in (EXECUTED, SUCCESS) if name in features]
    table = _read_all(files, wanted)
    of_tasks = _matrix(root, places, table, TASK_INDEX, features)[:, 0].astype(np.int64)
    texts, text_of = _texts(root, read_tasks(root, info), of_tasks)
    return Demos(
        embodiment=embodiment,
        episodes=_episodes(root, places, table, texts, text_of),
        cameras=cameras,
        states=_matrix(root, places, table, state, features),
        actions=_matrix(root, places, table, action, features),
        executed=_matrix(root, places, table, EXECUTED, features) if EXECUTED in features else None,
        texts=texts,
        text_of=text_of,
        files=files,
    )


def _files(places: Sequence[EpisodePlace], columns: Mapping[str, str]) -> tuple[DataFile, ...]:
    """The data files in order. A file holds one episode when we wrote it, and many when lerobot did."""
    files: list[DataFile] = []
    start = 0
    for path, group in groupby(places, key=lambda place: place.table):
        stop = start + sum(place.length for place in group)
        files.append(DataFile(path, start, stop, columns))
        start = stop
    return tuple(files)


def _read_all(files: Sequence[DataFile], columns: list[str]) -> dict[str, Any]:
    """Column name -> pyarrow column over all files."""
    import pyarrow as pa

    tables = [read_table(file.path, columns) for file in files]
    for file, table in zip(files, tables, strict=True):
        if len(table) != file.stop - file.start:
            raise DataError(f"{file.path} has {len(table)} rows, but meta/episodes says {file.stop - file.start}.")
    whole = pa.concat_tables([table.select(columns) for table in tables])
    return {name: whole.column(name) for name in columns}


def _matrix(
    root: Path, places: Sequence[EpisodePlace], table: Mapping[str, Any], column: str, features: Mapping[str, Any]
) -> NDArray[np.float64]:
    """A column of numbers of all episodes -> (N, D).

    Raises:
        DataError: a number is null or not finite; the message names the episode and its step.
    """
    parts: list[NDArray[np.float64]] = []
    start, size = 0, math.prod(features[column]["shape"])
    for place in places:
        what = f"{root}, episode {place.number}: field '{column}'"
        values = to_numbers(table[column].slice(start, place.length), "float64", (size,), what)
        require_finite(values, what)
        parts.append(values)
        start += place.length
    return np.concatenate(parts)


def _texts(root: Path, tasks: Mapping[int, str], of_tasks: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[Any]]:
    """(every instruction, each once; (N,) which of them each frame has)."""
    used = dict.fromkeys(of_tasks.tolist())
    unknown_tasks = [task for task in used if task not in tasks]
    if unknown_tasks:
        raise DataError(f"{root}: a frame has task_index {unknown_tasks[0]}, which is none of the {len(tasks)} tasks.")
    texts = tuple(dict.fromkeys(tasks[task] for task in used))
    place = {task: texts.index(tasks[task]) for task in used}
    return texts, np.array([place[task] for task in of_tasks.tolist()], dtype=np.int64)


def _episodes(
    root: Path,
    places: Sequence[EpisodePlace],
    table: Mapping[str, Any],
    texts: tuple[str, ...],
    text_of: NDArray[np.int64],
) -> tuple[DemoEpisode, ...]:
    notes = {note["episode"]: note for note in read_recording(root)}
    stops: list[int] = np.cumsum([place.length for place in places]).tolist()
    episodes: list[DemoEpisode] = []
    for place, stop in zip(places, stops, strict=True):
        note, start = notes.get(place.number, {}), stop - place.length
        success = table[SUCCESS][stop - 1].as_py() if SUCCESS in table else None
        told_by = note.get("seed"), note.get("driver"), goes_on(note)
        episodes.append(DemoEpisode(root, start, stop, texts[text_of[start]], success, *told_by))
    return tuple(episodes)


def _cameras(
    root: Path, features: Mapping[str, Any], embodiment: Embodiment
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """(camera -> stored (height, width), camera -> its column).

    Raises:
        DataError: a camera of the embodiment is missing, gives depth, or is stored as video.
    """
    columns = {camera.name: find_column(features, IMAGES + camera.name) for camera in embodiment.cameras}
    stored = [name.removeprefix(IMAGES) for name, f in features.items() if f["dtype"] in ("image", "video")]
    sizes: dict[str, tuple[int, int]] = {}
    for name, column in columns.items():
        if column not in features:
            raise DataError(f"{root}: " + unknown(f"camera of its {embodiment.name}", name, stored))
        feature = features[column]
        if is_depth(column, feature):
            raise DataError(f"{root}: {column} holds depth; only colour is read for training.")
        if feature["dtype"] != "image":
            raise DataError(f"{root}: {column} is stored as {feature['dtype']}; only images are read so far.")
        height, width = int(feature["shape"][0]), int(feature["shape"][1])
        require_pixels(width, height, (), f"{root}: {column}")
        sizes[name] = height, width
    return sizes, columns


def _png_of(cell: Mapping[str, Any] | None, path: Path) -> bytes:
    if cell is None or not cell["bytes"]:
        raise DataError(f"{path} has a step without its frame; only frames inside the table are read.")
    return cell["bytes"]


def _require_fit(root: Path, part: Demos, first_root: Path, first: Demos) -> None:
    require_same_embodiment(root, part.embodiment, first.embodiment)
    if part.cameras != first.cameras:
        raise DataError(
            f"{root} holds frames of {dict(part.cameras)}, but {first_root} of {dict(first.cameras)} (height, width). "
            "Record both with the same --image-size."
        )


def _joined(parts: Sequence[Demos]) -> Demos:
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(part.num_frames for part in parts[:-1])]).tolist()
    pairs = list(zip(parts, offsets, strict=True))
    executed = [part.executed for part in parts if part.executed is not None]
    texts = tuple(dict.fromkeys(text for part in parts for text in part.texts))
    return Demos(
        embodiment=parts[0].embodiment,
        episodes=tuple(replace(e, start=e.start + o, stop=e.stop + o) for p, o in pairs for e in p.episodes),
        cameras=parts[0].cameras,
        states=np.concatenate([part.states for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        executed=np.concatenate(executed) if len(executed) == len(parts) else None,
        texts=texts,
        text_of=np.concatenate([np.array([texts.index(t) for t in part.texts])[part.text_of] for part in parts]),
        files=tuple(replace(f, start=f.start + o, stop=f.stop + o) for p, o in pairs for f in p.files),
    )
