"""Training batches from datasets of any size, for any number of ranks and workers, without a shuffle buffer.

    sample number  --order-->  dataset, step  --Dataset-->  Sample  --Encoder-->  Rows  --augment-->  Batch

    step t, rank r of R, batch size B        samples  (t R + r) B  ...  (t R + r + 1) B - 1
    worker w of W                            the steps t with t mod W = w

R ranks see disjoint samples that together are those of one process with a batch R times as large, whatever the
number of workers, so a run stores only its step number to resume. Datasets that fit into memory are encoded once
and kept there (`Kept`); the others are read as they are drawn.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vla_robot.core.errors import DataError
from vla_robot.core.image import resize_lanczos
from vla_robot.core.messages import Image
from vla_robot.core.ports import ActionCodec
from vla_robot.data.formats.images import decode_image
from vla_robot.data.pipeline.mixture import Dataset, Mixture, Sample
from vla_robot.policy.vla.heads.noise import row_seed
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.train.batches.augment import Augment
from vla_robot.train.batches.frames import Batch, Rows, answers_of, ends_of, labelled, reworded
from vla_robot.train.batches.wordings import Wordings

KEPT_AT_ONCE, DECODE_THREADS = 256, 4
"""Samples that are decoded together, and threads that decode them. OpenCV and Pillow release the GIL meanwhile."""

LEAST_FREE = 500_000_000
"""Main memory that decoded frames leave to the rest of the computer [bytes]."""

REQUESTS_AT_ONCE = 16
"""Samples of a remote dataset that are read at the same time, in each process that reads."""

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20
"""mallopt(3) parameter, and the size [bytes] from which blocks are mapped."""


@dataclass(frozen=True)
class Encoder:
    """Makes batches of samples: decodes, resizes, augments, tokenises. It holds no weights, so workers can copy it.

    Attributes:
        preprocessor: turns square frames into tower inputs.
        tokenizer: turns instructions into token ids.
        codec: turns actions into token ids.
        pad_id: token id of the padding.
        proprio_dim: size of the state, or None for a policy that does not read it.
        chunk: actions of an answer, the present one first.
        cameras: camera of each image of the model, in order: roles of a mixture, or names of a recording.
        frame_shape: height and width of a resized frame [px].
        present: index of the present action in a window.
        augment: augmentation of the frames; None leaves them as they are.
        wordings: says the instructions in other words; None leaves them as they are.
        seed: seed of the random numbers of an action head; a sample's depend on it and the sample's number.
        has_head: whether an action head gives the actions, which then have no tokens.
        as_acting: True makes frames square as the policy does when it acts; False resizes them by Lanczos, as the
            reference's training data was.
    """

    preprocessor: FramePreprocessor
    tokenizer: Prompts
    codec: ActionCodec
    pad_id: int
    proprio_dim: int | None
    chunk: int
    cameras: tuple[str, ...]
    frame_shape: tuple[int, int]
    present: int = 0
    augment: Augment | None = None
    wordings: Wordings | None = None
    as_acting: bool = False
    seed: int = 0
    has_head: bool = False

    @classmethod
    def of(
        cls,
        policy: AnyVLAPolicy,
        cameras: tuple[str, ...] = ("primary",),
        augment: Augment | None = None,
        wordings: Wordings | None = None,
        *,
        as_acting: bool = False,
        seed: int = 0,
    ) -> Encoder:
        """Make the encoder of a policy.

        Raises:
            DataError: the policy uses another number of cameras.
        """
        config = policy.model.config
        if len(cameras) != (count := config.inputs.num_images):
            raise DataError(f"the policy uses {count} camera(s), got {', '.join(cameras) or 'none'}.")
        return cls(
            preprocessor=policy.preprocessor,
            tokenizer=policy.tokenizer,
            codec=policy.codec,
            pad_id=config.pad_token_id,
            proprio_dim=config.inputs.proprio_dim,
            chunk=config.chunk,
            cameras=cameras,
            frame_shape=_frame_shape(policy),
            augment=augment,
            wordings=wordings,
            as_acting=as_acting,
            seed=seed,
            has_head=config.head is not None,
        )

    def require_fit(self, mixture: Mixture) -> None:
        """Raise DataError unless all datasets have actions of one size and the state that the policy reads."""
        actions = {d.name: len(d.statistics["action"]["q01"]) for d in mixture.datasets}
        if len(set(actions.values())) > 1:
            raise DataError(f"the datasets' actions have different sizes: {actions}. One policy answers one size.")
        states = {d.name: d.table.state.shape[1] for d in mixture.datasets}
        wrong = {name: size for name, size in states.items() if size != self.proprio_dim}
        if self.proprio_dim is not None and wrong:
            raise DataError(f"the policy reads a state of {self.proprio_dim} numbers, but these datasets have {wrong}.")

    def __call__(self, samples: Sequence[Sample], numbers: NDArray[np.int64]) -> Batch:
        """Decode samples and return their batch.

        Args:
            samples: B samples.
            numbers: (B,) numbers of the samples, which seed the augmentation.

        Raises:
            DataError: a frame is damaged.
        """
        frames, is_there = self.squares(samples)
        return self.batch(self.rows(samples, frames, is_there), numbers)

    def batch(self, rows: Rows, numbers: NDArray[np.int64]) -> Batch:
        """Return rows as a batch, augmented and reworded by their (B,) sample `numbers`, and normalised."""
        rows = self._reworded(rows, numbers)
        frames = torch.from_numpy(rows.frames)
        if self.augment is not None:
            frames = self.augment(frames, torch.from_numpy(rows.is_there), numbers)
        return Batch(
            pixels=torch.from_numpy(self.preprocessor.normalise(frames.numpy())),
            input_ids=torch.from_numpy(rows.input_ids),
            labels=torch.from_numpy(rows.labels),
            state=None if rows.state is None else torch.from_numpy(rows.state),
            actions=None if rows.actions is None else torch.from_numpy(rows.actions),
            seeds=torch.tensor([row_seed(self.seed, int(number)) for number in numbers]) if self.has_head else None,
        )

    def rows(self, samples: Sequence[Sample], frames: NDArray[np.uint8], is_there: NDArray[np.bool_]) -> Rows:
        """Return rows of samples: their frames, tokenised instructions, answers and state.

        Raises:
            DataError: a window holds fewer actions than the policy answers.
        """
        actions = np.stack([sample.actions for sample in samples])  # (B, K, D)
        said = actions[:, self.present : self.present + self.chunk]
        if said.shape[1] != self.chunk:
            raise DataError(f"the policy answers {self.chunk} actions, but the windows hold only {said.shape[1]}.")
        answers = ends_of(said, self.tokenizer) if self.has_head else answers_of(said, self.codec, self.tokenizer)
        prompts = {text: self.tokenizer(text) for text in {sample.instruction for sample in samples}}
        input_ids, labels = labelled([prompts[sample.instruction] for sample in samples], answers, self.pad_id)
        reads_state = self.proprio_dim is not None
        state = np.stack([sample.state[-1] for sample in samples]).astype(np.float32) if reads_state else None
        learned = said if self.has_head else actions  # tokens have the answer, so that a batch keeps the whole window
        instructions = np.array([sample.instruction for sample in samples]) if self.wordings else None
        return Rows(frames, is_there, input_ids, labels, state, learned.astype(np.float32), instructions)

    def _reworded(self, rows: Rows, numbers: NDArray[np.int64]) -> Rows:
        if self.wordings is None or rows.instructions is None:
            return rows
        said = [self.wordings(str(text), int(n)) for text, n in zip(rows.instructions, numbers, strict=True)]
        prompts = {text: self.tokenizer(text) for text in set(said)}
        return reworded(rows, [prompts[text] for text in said], self.pad_id)

    def squares(self, samples: Sequence[Sample]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return (B, N, S, S, 3) frames and (B, N) False where a camera is missing and the frame black."""
        squares = np.zeros((len(samples), len(self.cameras), *self.frame_shape, 3), dtype=np.uint8)
        files = self.files(samples)
        is_there = np.array([bool(file.data) for file in files]).reshape(squares.shape[:2])
        for row, column, file in zip(*np.nonzero(is_there), (file for file in files if file.data), strict=True):
            squares[row, column] = self.square(file)
        return squares, is_there

    def files(self, samples: Sequence[Sample]) -> list[_File]:
        """Return the encoded frames of the present step, sample by sample and camera by camera."""
        return [
            _File(f"{sample.dataset}, camera {camera}", sample.frames[camera][-1])
            for sample in samples
            for camera in self.cameras
        ]

    def square(self, file: _File) -> Image:
        """Decode and resize a frame. Raises DataError if it is damaged."""
        image = decode_image(file.data, "uint8", file.origin)
        return self.preprocessor.resized(image) if self.as_acting else resize_lanczos(image, *self.frame_shape)


class _File(NamedTuple):
    """An encoded frame; `data` is empty where the camera is missing."""

    origin: str
    data: bytes


def _frame_shape(policy: AnyVLAPolicy) -> tuple[int, int]:
    """Return height and width of the policy's resized frames [px].

    Raises:
        DataError: they differ by camera.
    """
    cameras = policy.embodiment.cameras if policy.embodiment else ()
    shapes = {policy.preprocessor.shape(camera.height, camera.width) for camera in cameras}
    if len(shapes) > 1:
        raise DataError(f"the cameras' frames have different sizes after resizing: {sorted(shapes)}; they must agree.")
    return shapes.pop() if shapes else policy.model.config.frame


class Pictures:
    """Decoded frames. Frames whose files are equal, as of episodes that `also_ask`, are decoded and kept once."""

    def __init__(self, most: int, encoder: Encoder) -> None:
        """
        Args:
            most: number of frames that may come.
            encoder: decodes and resizes them.
        """
        self._encoder = encoder
        # The system gives memory to the pages that are written: those of frames that were there already take none.
        self._squares = np.empty((most + 1, *encoder.frame_shape, 3), dtype=np.uint8)
        self._squares[0] = 0
        self._places = {_name(b""): 0}  # a missing camera's frame is black

    def __len__(self) -> int:
        """Return the number of different frames."""
        return len(self._places) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that the frames take."""
        return len(self._places) * self._squares[0].nbytes

    def add(self, samples: Sequence[Sample], pool: ThreadPoolExecutor) -> NDArray[np.int64]:
        """Add the frames of samples. Return (B, N) their places; 0 is a missing camera's.

        Raises:
            DataError: a frame is damaged, or main memory is full.
        """
        files = self._encoder.files(samples)
        names = [_name(file.data) for file in files]
        new = {name: file for name, file in zip(names, files, strict=True) if name not in self._places}
        for name, square in zip(new, pool.map(self._encoder.square, new.values()), strict=True):
            self._squares[len(self._places)] = square
            self._places[name] = len(self._places)
        if (free := psutil.virtual_memory().available) < LEAST_FREE:
            raise DataError(
                f"the demonstrations do not fit into main memory: after {self.nbytes / 1e9:.1f} GB of frames only "
                f"{free / 1e9:.1f} GB are free, and each process of a training keeps all of them. Train on fewer "
                "episodes or with fewer processes; or give a `mixture` in place of `data`: its frames stay on the disk."
            )
        return np.array([self._places[name] for name in names]).reshape(len(samples), -1)

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (..., S, S, 3) the frames at places."""
        return self._squares[places]


def _name(data: bytes) -> bytes:
    """Return a name that only equal files have."""
    return blake2b(data, digest_size=16).digest()


class Kept:
    """Every step of some datasets, encoded once and kept in memory.

    Attributes:
        pictures: the frames.
    """

    def __init__(
        self, datasets: Sequence[Dataset], encoder: Encoder, on_frames: Callable[[int, int], None] = lambda n, of: None
    ) -> None:
        """
        Args:
            datasets: datasets with at least one step in all.
            encoder: makes the rows.
            on_frames: called with steps done and steps in all.

        Raises:
            DataError: a file is damaged, or the frames do not fit into main memory.
        """
        steps = [(dataset, step) for dataset in datasets for step in range(len(dataset))]
        self._starts = np.cumsum([0, *(len(dataset) for dataset in datasets)])
        self.pictures = Pictures(len(steps) * len(encoder.cameras), encoder)
        shown: list[NDArray[np.int64]] = []
        samples: list[Sample] = []
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for start in range(0, len(steps), KEPT_AT_ONCE):
                read = [dataset.sample(step) for dataset, step in steps[start : start + KEPT_AT_ONCE]]
                shown.append(self.pictures.add(read, pool))
                samples += [replace(sample, frames={}) for sample in read]
                on_frames(len(samples), len(steps))
        self._shown = np.concatenate(shown)
        without_frames = np.empty((len(samples), 0), dtype=np.uint8)
        self._rows = encoder.rows(samples, without_frames, self._shown > 0)

    def __call__(self, places: Sequence[tuple[int, int]]) -> Rows:
        """Return the rows of steps, each given as (dataset, step of the dataset)."""
        at = np.array([self._starts[which] + step for which, step in places])
        return replace(self._rows[at], frames=self.pictures[self._shown[at]])

    def __str__(self) -> str:
        """Tell what the frames take."""
        size = f"{self.pictures.nbytes / 1e9:.2f} GB of main memory in each process"
        return f"frames of {len(self._shown):,} steps, {len(self.pictures):,} different ones, take {size}"


class MixtureStream(IterableDataset[Batch]):
    """Endless stream of batches; `Batches` reads it with workers and stores its position."""

    def __init__(
        self,
        mixture: Mixture,
        encoder: Encoder,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        kept: Kept | None = None,
    ) -> None:
        """
        Args:
            mixture: the mixture that samples are drawn from.
            encoder: turns samples into batches.
            batch_size: samples in this rank's batch.
            rank: rank of this process.
            ranks: number of ranks.
            kept: the mixture's datasets in memory; None reads each sample when it is drawn.

        Raises:
            DataError: the mixture does not fit the policy, or a number is out of range.
        """
        if batch_size < 1 or not 0 <= rank < ranks:
            raise DataError(f"batch_size is {batch_size} and rank {rank} of {ranks}; both must be in range.")
        encoder.require_fit(mixture)
        self._mixture, self._encoder, self._kept = mixture, encoder, kept
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self.start = 0

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Return (B,) numbers of this rank's samples in a step."""
        return (step * self._ranks + self._rank) * self._batch_size + np.arange(self._batch_size)

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step."""
        numbers = self.numbers(step)
        if self._kept is not None:
            return self._encoder.batch(self._kept([self._mixture.place(int(number)) for number in numbers]), numbers)
        return self._encoder(self._read([int(number) for number in numbers]), numbers)

    def _read(self, numbers: Sequence[int]) -> list[Sample]:
        """Return samples; those of a remote dataset are asked for at the same time, since each waits for a network."""
        if not any(dataset.is_remote for dataset in self._mixture.datasets):
            return [self._mixture.sample(number) for number in numbers]
        with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(numbers))) as pool:
            return list(pool.map(self._mixture.sample, numbers))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from step `start` on; a worker yields only its own steps."""
        _return_freed_memory()
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (self.batch(step) for step in count(self.start + first, stride))


class Batches:
    """Reads a stream with worker processes and continues exactly at a saved position.

    batches = Batches(stream, workers=2)
    for batch in batches: ...
    torch.save(batches.state_dict(), path)
    """

    def __init__(self, stream: MixtureStream, workers: int = 0) -> None:
        """
        Args:
            stream: the stream to read.
            workers: number of processes that decode; 0 decodes in this one.
        """
        self._stream = stream
        self._workers = workers
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        self._stream.start = self.step
        loader: DataLoader[Batch] = DataLoader(self._stream, batch_size=None, num_workers=self._workers)
        for batch in loader:
            self.step += 1  # before the batch is used: it counts as seen
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the number of batches that were handed out."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was handed out before `state` was taken."""
        self.step = int(state["step"])


def _return_freed_memory() -> None:
    """Make glibc map large blocks one by one, so that it returns them to the system when they are freed.

    glibc raises this threshold by itself, up to 32 MiB. A worker whose batches were freed by another thread than the
    one that makes them grew by 40 MB with each batch of 20 MB, without end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it and do not need it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
