"""Mixtures as training batches, of any size and for any number of ranks and workers, without a shuffle buffer.

    step t, rank r of R, batch size B        samples  (t R + r) B  ...  (t R + r + 1) B - 1
    worker w of W                            the steps t with t mod W = w

So R ranks see disjoint samples that together are those of one process with a batch R times as large, whatever the
number of workers, and "go on at step t" is all that a run must remember.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vla_robot.core.errors import DataError
from vla_robot.core.image import resize_lanczos
from vla_robot.core.messages import Image
from vla_robot.data.formats.images import decode_image
from vla_robot.data.pipeline.mixture import Mixture, Sample
from vla_robot.policy.openvla.inputs.action_tokens import ActionTokenizer
from vla_robot.policy.openvla.inputs.preprocess import Preprocessor
from vla_robot.policy.openvla.inputs.prompt import PromptTokenizer
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.train.batches.augment import openvla_augment
from vla_robot.train.batches.frames import Batch, answers_of, labelled

AUGMENT = 13
"""Sets the random stream of augmentation apart from others with the same seed."""

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20
"""mallopt(3): blocks of at least so many bytes are mapped."""


@dataclass(frozen=True)
class Encoder:
    """Samples -> a batch: decoded, resized, augmented, tokenised. Holds no weights, so workers may have a copy.

    Attributes:
        preprocessor: squares to tower inputs.
        tokenizer: instructions to ids.
        action_tokens: actions to ids.
        pad_id: fills rows up.
        proprio_dim: numbers of the state, or None for a policy without it.
        cameras: roles, in the order of the model's images.
        present: which action of a window is the present one.
        chunk: actions of an answer, from the present one on.
        augment_seed: of the augmentation; None switches it off.
    """

    preprocessor: Preprocessor
    tokenizer: PromptTokenizer
    action_tokens: ActionTokenizer
    pad_id: int
    proprio_dim: int | None
    cameras: tuple[str, ...]
    present: int = 0
    augment_seed: int | None = None
    chunk: int = 1

    @classmethod
    def of(
        cls,
        policy: OpenVLAPolicy,
        cameras: tuple[str, ...] = ("primary",),
        present: int = 0,
        augment_seed: int | None = None,
    ) -> Encoder:
        """For a policy.

        Raises:
            DataError: the policy looks at another number of cameras.
        """
        config = policy.model.config
        if len(cameras) != config.num_images:
            raise DataError(f"the policy looks at {config.num_images} camera(s), got {', '.join(cameras) or 'none'}.")
        tokens, pad_id = policy.action_tokens, config.pad_token_id
        return cls(
            policy.preprocessor,
            policy.tokenizer,
            tokens,
            pad_id,
            config.proprio_dim,
            cameras,
            present,
            augment_seed,
            config.chunk,
        )

    def require_fit(self, mixture: Mixture) -> None:
        """Raise DataError unless all datasets have one size of action, and the state that the policy reads."""
        actions = {d.name: len(d.statistics["action"]["q01"]) for d in mixture.datasets}
        if len(set(actions.values())) > 1:
            raise DataError(f"the datasets' actions have different sizes: {actions}. One policy answers one size.")
        states = {d.name: d.table.state.shape[1] for d in mixture.datasets}
        wrong = {name: size for name, size in states.items() if size != self.proprio_dim}
        if self.proprio_dim is not None and wrong:
            raise DataError(f"the policy reads a state of {self.proprio_dim} numbers, but these datasets have {wrong}.")

    def __call__(self, samples: list[Sample], numbers: NDArray[np.int64]) -> Batch:
        """A batch.

        Args:
            samples: B of them.
            numbers: (B,) which samples they are, by which augmentation is drawn.

        Raises:
            DataError: a frame is damaged.
        """
        actions = np.stack([sample.actions for sample in samples])  # (B, K, D)
        prompts = [self.tokenizer(sample.instruction) for sample in samples]
        said = actions[:, self.present : self.present + self.chunk]
        if said.shape[1] != self.chunk:
            raise DataError(f"the policy says {self.chunk} actions, the windows hold {said.shape[1]} from now on.")
        answers = answers_of(said, self.action_tokens, self.tokenizer)
        input_ids, labels = labelled(prompts, answers, self.pad_id)
        state = None
        if self.proprio_dim is not None:
            state = torch.from_numpy(np.stack([sample.state[-1] for sample in samples]))
        return Batch(
            pixels=self.preprocessor.normalise(self._squares(samples, numbers)),
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            state=state,
            actions=torch.from_numpy(actions),
        )

    def _squares(self, samples: list[Sample], numbers: NDArray[np.int64]) -> Tensor:
        """(B, N, S, S, 3) uint8. A camera that a dataset has not stays black and is not augmented."""
        size = self.preprocessor.size
        squares = torch.zeros((len(samples), len(self.cameras), size, size, 3), dtype=torch.uint8)
        is_there = torch.zeros(squares.shape[:2], dtype=torch.bool)
        for row, sample in enumerate(samples):
            for column, role in enumerate(self.cameras):
                if data := sample.frames[role][-1]:
                    squares[row, column] = torch.from_numpy(_square(data, size, f"{sample.dataset}, camera {role}"))
                    is_there[row, column] = True
        if self.augment_seed is not None:
            chance = np.stack([self._chance(int(number)) for number in numbers])
            squares[is_there] = openvla_augment(squares[is_there], torch.from_numpy(chance)[is_there])
        return squares

    def _chance(self, number: int) -> NDArray[np.float32]:
        """(N,) one number a camera, a function of the sample's number alone."""
        generator = np.random.default_rng([self.augment_seed or 0, AUGMENT, number])
        return generator.random(len(self.cameras), dtype=np.float32)


class MixtureStream(IterableDataset[Batch]):
    """An endless sequence of batches; `Batches` reads it with workers and remembers where it is."""

    def __init__(self, mixture: Mixture, encoder: Encoder, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        """
        Args:
            mixture: what is drawn from.
            encoder: makes batches of samples.
            batch_size: samples of a batch of this rank.
            rank: of this process.
            ranks: how many there are.

        Raises:
            DataError: the mixture does not fit the policy, or a number is out of range.
        """
        if batch_size < 1 or not 0 <= rank < ranks:
            raise DataError(f"batch_size is {batch_size} and rank {rank} of {ranks}; both must be in range.")
        encoder.require_fit(mixture)
        self._mixture, self._encoder = mixture, encoder
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self.start = 0

    def numbers(self, step: int) -> NDArray[np.int64]:
        """(B,) samples of this rank in a step."""
        return (step * self._ranks + self._rank) * self._batch_size + np.arange(self._batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's batch of a step."""
        numbers = self.numbers(step)
        return self._encoder([self._mixture.sample(int(number)) for number in numbers], numbers)

    def __iter__(self) -> Iterator[Batch]:
        """From step `start` on; in a worker every step that is its own."""
        _return_freed_memory()
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (self.batch(step) for step in count(self.start + first, stride))


class Batches:
    """Reads a stream with worker processes; goes on exactly where a saved one was.

    batches = Batches(stream, workers=2)
    for batch in batches: ...
    torch.save(batches.state_dict(), path)
    """

    def __init__(self, stream: MixtureStream, workers: int = 0) -> None:
        """
        Args:
            stream: what is read.
            workers: processes that decode; 0 decodes in this one.
        """
        self._stream = stream
        self._workers = workers
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        self._stream.start = self.step
        loader: DataLoader[Batch] = DataLoader(self._stream, batch_size=None, num_workers=self._workers)
        for batch in loader:
            self.step += 1  # before it is used: the batch in hand counts as seen
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is: the number of batches that were handed out."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the last batch that was handed out when the state was taken."""
        self.step = int(state["step"])


def _return_freed_memory() -> None:
    """Have large blocks mapped one by one, so that the system gets them back when they are freed.

    glibc raises the limit for that by itself, up to 32 MiB. A worker whose batches are freed by another thread than the
    one that makes them then grew by 40 MB with each batch of 20 MB, without end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries do without
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _square(data: bytes, size: int, where: str) -> Image:
    return resize_lanczos(decode_image(data, "uint8", where), size, size)
