"""Reads and writes questions about pictures with their answers, which keep a policy's language beside robot data.

    FOLDER/train.jsonl       one question a line, for training
    FOLDER/held_out.jsonl    questions about other scenes, for evaluation only
    FOLDER/images/           JPEG or PNG

    {"scene": 7, "question": "which cube is left?", "answer": "green", "images": {"front": "images/7_front.jpg"}}

The key of an image is its camera, so that a policy with several cameras gets each in its place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import make_folder, sync_tree, write_whole, writing
from vla_robot.core.messages import Image
from vla_robot.core.untrusted import parse_json, read_file, require_inside
from vla_robot.data.formats.images import read_picture

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
JPEG_QUALITY = 90
MAX_LINES_BYTES = 2**28
KEYS: dict[str, type] = {"scene": int, "question": str, "answer": str, "images": dict}


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        scene: number of the scene, e.g. the seed that it was made with.
        question: the question in plain words.
        answer: the answer in plain words.
        images: camera name -> file.
    """

    scene: int
    question: str
    answer: str
    images: Mapping[str, Path]

    def frames(self) -> dict[str, Image]:
        """Decode the images. Return camera name -> (H, W, 3) uint8.

        Raises:
            DataError: an image cannot be read.
        """
        return {camera: read_picture(path) for camera, path in self.images.items()}


def read_questions(folder: Path) -> dict[Split, tuple[Question, ...]]:
    """Read both splits of a folder.

    Raises:
        DataError: a file is missing or damaged, a line is malformed, or a scene is in both splits.
    """
    splits: dict[Split, tuple[Question, ...]] = {split: _read_split(folder, split) for split in SPLITS}
    both = {q.scene for q in splits["train"]} & {q.scene for q in splits["held_out"]}
    if both:
        raise DataError(
            f"{folder}: scene {min(both)} is in train.jsonl and in held_out.jsonl ({len(both)} such scenes), so "
            "held-out answers could be memorised. Move all questions of a scene into one of them."
        )
    return splits


def _read_split(folder: Path, split: Split) -> tuple[Question, ...]:
    path = _file(folder, split)
    try:
        lines = read_file(path, MAX_LINES_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. `vla data questions` makes such a folder.") from error
    questions = tuple(_parse(line, folder, f"{path}:{number}") for number, line in enumerate(lines, 1))
    if not questions:
        raise DataError(f"{path} holds no question. `vla data questions` makes such a folder.")
    return questions


def _parse(line: str, folder: Path, where: str) -> Question:
    row = parse_json(line, where)
    if not isinstance(row, dict) or set(row) != set(KEYS):
        seen = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: a question has the keys {', '.join(KEYS)}, and no other; got {seen!s:.80}.")
    for key, kind in KEYS.items():
        if type(row[key]) is not kind or row[key] in ("", {}):
            raise DataError(f"{where}: {key} must be a {kind.__name__} that is not empty, got {row[key]!r:.80}.")
    images = {camera: _inside(folder, name, where) for camera, name in row["images"].items()}
    return Question(row["scene"], row["question"], row["answer"], images)


def _inside(folder: Path, name: object, where: str) -> Path:
    """Return the path of a file in the folder. Raise DataError for a name that leads out of it."""
    if not isinstance(name, str):
        raise DataError(f"{where}: an image must be the name of a file inside {folder}, got {name!r:.80}.")
    return require_inside(folder, name, where)


class QuestionWriter:
    """A writer of a folder, scene by scene. Use it in a `with` block, whose end writes the two lists."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            DataError: the folder holds questions already, another process writes it, or it cannot be written.
        """
        self._folder = folder
        self._lines: dict[Split, list[str]] = {split: [] for split in SPLITS}
        self._claim = Claim(folder)
        try:
            if any(_file(folder, split).exists() for split in SPLITS):
                raise DataError(f"{folder} holds questions already, which are never overwritten. Choose another --out.")
            with writing(folder):
                make_folder(folder / "images")
        except BaseException:
            self._claim.release()
            raise

    def write(self, split: Split, scene: int, images: Mapping[str, Image], asked: Iterable[tuple[str, str]]) -> None:
        """Write the images of one scene, and keep its questions for the lists.

        Args:
            split: split of its questions.
            scene: number of the scene.
            images: camera name -> (H, W, 3) uint8.
            asked: questions with their answers.

        Raises:
            DataError: writing to disk failed.
        """
        names = {camera: f"images/{scene}_{camera}.jpg" for camera in images}
        for camera, name in names.items():
            with writing(self._folder / name):
                (self._folder / name).write_bytes(_jpeg(images[camera]))
        for question, answer in asked:
            row = {"scene": scene, "question": question, "answer": answer, "images": names}
            self._lines[split].append(json.dumps(row) + "\n")

    def __enter__(self) -> QuestionWriter:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self._claim:
            if failure is not None:
                return
            with writing(self._folder):
                sync_tree(self._folder / "images")  # before the lists that name them
            for split, lines in self._lines.items():
                with writing(_file(self._folder, split)):
                    write_whole(_file(self._folder, split), "".join(lines).encode())


def _file(folder: Path, split: Split) -> Path:
    return folder / f"{split}.jsonl"


def _jpeg(image: Image) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
