"""Standard steps of pieces of a dataset, each computed by one task and kept in one file until the table is whole.

    NNNNN.npz    actions, state, text_of, episodes, and texts as JSON

A table is put together from these files in the order of the pieces. It has the same bytes whatever the order, and the
number of computers, by which the pieces were computed; mean, deviation and quantiles are computed over the whole table.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, write_whole
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.data.formats.pieces import Piece, pieces_of
from vla_robot.data.pipeline.standardise import Trajectory, fields_of, standardise
from vla_robot.recipe.oxe import SourceRecipe

MOST_STEPS = 50_000
"""Most steps of a piece, unless it is one episode: a task holds the numbers of so many, and one episode."""
NEEDS = Resources(cpus=1.0, memory_mb=500)

EPISODE = np.dtype([("part", "<i4"), ("index", "<i8"), ("first", "<i4"), ("start", "<i8"), ("length", "<i8")])
"""Index of the dataset's part, and of its episode; raw step of step 0; first row and number of rows."""


@dataclass(frozen=True)
class StepPart:
    """n standard steps of a piece.

    Attributes:
        actions: (n, D) float32.
        state: (n, P) float32.
        text_of: (n,) int32, index into `texts`.
        episodes: (e,) EPISODE, whose rows count from the first of this part.
        texts: the instructions, each once, in the order in which they come.
    """

    actions: NDArray[np.float32]
    state: NDArray[np.float32]
    text_of: NDArray[np.int32]
    episodes: NDArray[Any]
    texts: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the content of a file."""
        file = io.BytesIO()
        texts = np.frombuffer(json.dumps(self.texts).encode(), np.uint8)
        arrays = {name: getattr(self, name) for name in ("actions", "state", "text_of", "episodes")}
        np.savez(file, texts=texts, **arrays)
        return file.getvalue()


def read_part(path: Path) -> StepPart:
    """Read a part.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            actions, state, text_of, episodes = (arrays[n] for n in ("actions", "state", "text_of", "episodes"))
            return StepPart(actions, state, text_of, episodes, tuple(json.loads(arrays["texts"].tobytes())))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}). Remove that file; it is made anew.") from error


def standard_parts(
    recipe: SourceRecipe, parts: Sequence[EpisodeSource], store: Path, runner: TaskRunner, on_progress: OnProgress
) -> list[Path]:
    """Compute the standard steps of all pieces that have no file yet; return the files of all, in order.

    Args:
        recipe: the dataset's recipe.
        parts: all parts of the dataset.
        store: folder of the files.
        runner: where the tasks run.
        on_progress: called with episodes done and in all.

    Raises:
        DataError: an episode is damaged or does not fit the recipe.
    """
    make_folder(store)
    pieces = [(number, piece) for number, part in enumerate(parts) for piece in pieces_of(part, MOST_STEPS)]
    files = [store / f"{number:05d}.npz" for number in range(len(pieces))]
    jobs = [(path.name, *piece) for path, piece in zip(files, pieces, strict=True) if not path.is_file()]
    total = sum(len(piece) for _, piece in pieces)
    done = total - sum(len(piece) for _, _, piece in jobs)
    if not jobs:
        return files
    count = min(len(jobs), runner.most_workers(NEEDS))
    with (
        runner.workers(nullcontext, count, NEEDS) as workers,
        closing(workers.run(Standardise(recipe), jobs)) as found,
    ):
        for name, episodes, content in found:
            write_whole(store / name, content)
            done += episodes
            on_progress(done, total)
    return files


@dataclass(frozen=True)
class Standardise:
    """A task: computes the standard steps of one piece, one episode after the other."""

    recipe: SourceRecipe

    def __call__(self, state: None, job: tuple[str, int, Piece], should_stop: ShouldStop) -> tuple[str, int, bytes]:
        """Return the file's name, the number of the piece's episodes, and the file's content."""
        name, part, piece = job
        wanted = fields_of(self.recipe)
        found: list[tuple[int, Trajectory]] = []
        for index, local in piece.episodes():
            trajectory = standardise(self.recipe, piece.source.episode(local, wanted))
            if len(trajectory):
                found.append((index, trajectory))
        return name, len(piece), _joined(part, found).to_bytes()


def _joined(part: int, found: Sequence[tuple[int, Trajectory]]) -> StepPart:
    """Return the steps of consecutive episodes, given with their numbers in a part of the dataset."""
    texts: dict[str, int] = {}
    codes = [texts.setdefault(text, len(texts)) for _, trajectory in found for text in trajectory.instructions]
    lengths = [len(trajectory) for _, trajectory in found]
    starts = np.cumsum([0, *lengths])[:-1].tolist()
    rows = [(part, index, t.first, start, len(t)) for (index, t), start in zip(found, starts, strict=True)]
    nothing = np.empty((0, 0), np.float32)
    return StepPart(
        np.concatenate([t.actions for _, t in found]) if found else nothing,
        np.concatenate([t.state for _, t in found]) if found else nothing,
        np.array(codes, np.int32),
        np.array(rows, EPISODE),
        tuple(texts),
    )
