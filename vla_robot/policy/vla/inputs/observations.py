"""Inputs: turns observations into what the model reads, for every way to generate.

Observation  --frames by camera name-->  pixels (B, N, C, S, S)  --+
             --instruction----------->   prompts, ragged ids     --+--embed-->  (B, S, D), (B,) lengths
             --state, normalised----->   state (B, P) or None    --+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, unknown
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics
from vla_robot.policy.vla.inputs.upload import Pixels
from vla_robot.policy.vla.reason.action_tokens import ActionTokenizer
from vla_robot.policy.vla.reason.stage_timer import StageTimer

PromptIds = Callable[[str], NDArray[np.int64]]
"""Turns an instruction into (L,) token ids."""


@dataclass(frozen=True)
class InputSizes:
    """What a model reads.

    Attributes:
        image_size: edge of a square image [px].
        num_images: cameras of an observation.
        proprio_dim: numbers of the arm's state, or None for a policy without proprioception.
        vocabulary: ids of a prompt are smaller.
    """

    image_size: int
    num_images: int
    proprio_dim: int | None
    vocabulary: int


@dataclass(frozen=True)
class Batch:
    """Inputs of the model.

    Attributes:
        pixels: (B, N, C, S, S) float32, squared and normalised; in main memory or on the model's device.
        prompts: B arrays of int64 ids of any lengths, BOS first.
        state: (B, proprio_dim) float32 in [-1, 1], or None for a policy without proprioception.
    """

    pixels: Tensor
    prompts: Sequence[NDArray[np.int64]]
    state: Tensor | None = None


def require_observations(observations: object) -> None:
    """Raise ContractError unless this is a list of at least one observation, each with an instruction as text."""
    if not isinstance(observations, Sequence):
        raise ContractError(
            f"act takes a list of observations, got {type(observations).__name__}: act([observation]) for one."
        )
    if not observations:
        raise ContractError("a batch needs at least one observation.")
    for each in observations:
        if not isinstance(each, Observation):
            raise ContractError(f"act takes vla_robot.core.messages.Observation, got {type(each).__name__}.")
        if not isinstance(each.instruction, str):
            raise ContractError(f"an instruction is text, got {type(each.instruction).__name__}.")


class ObservationReader[T: PromptIds]:
    """Makes batches from observations."""

    def __init__(
        self,
        sizes: InputSizes,
        pixels: Pixels,
        tokenizer: T | None,
        statistics: Statistics,
        cameras: Sequence[str] = (),
    ) -> None:
        """
        Args:
            sizes: sizes of the model's inputs.
            pixels: turns frames into tower inputs.
            tokenizer: turns instructions into ids, or None for a checkpoint without one.
            statistics: normalise the state.
            cameras: names in the order of the model's images; empty takes all of an observation, sorted by name.
        """
        self._sizes = sizes
        self._pixels = pixels
        self._tokenizer = tokenizer
        self._statistics = statistics
        self._cameras = tuple(cameras)

    @property
    def tokenizer(self) -> T:
        """The tokenizer. Raises CheckpointError when the folder has none."""
        if self._tokenizer is None:
            raise CheckpointError("this checkpoint has no tokenizer.json, so it cannot read instructions.")
        return self._tokenizer

    def __call__(self, observations: Sequence[Observation], keys: Keys | None = None) -> Batch:
        """Return a batch with one row per observation.

        Args:
            observations: observations with any instructions.
            keys: dataset of each row, whose statistics normalise the state.

        Raises:
            ContractError: there is no observation, or a camera, the state or the instruction does not fit.
        """
        require_observations(observations)
        images = [self.images(o.images) for o in observations]
        prompts = [self.tokenizer(o.instruction) for o in observations]
        return Batch(self._pixels(images), prompts, self._state(observations, keys))

    def images(self, seen: Mapping[str, Image]) -> list[Image]:
        """Return the frames that the model reads, in its order, from frames by camera name.

        Raises:
            ContractError: a camera is missing, or there are too many.
        """
        wanted = self._cameras or sorted(seen)
        missing = [name for name in wanted if name not in seen]
        if missing:
            raise ContractError(unknown("camera", missing[0], seen))
        if len(wanted) != self._sizes.num_images:
            raise ContractError(
                f"the policy reads {self._sizes.num_images} camera(s), but the observation has {len(wanted)}: "
                f"{', '.join(wanted)}."
            )
        return [seen[name] for name in wanted]

    def _state(self, observations: Sequence[Observation], keys: Keys | None) -> Tensor | None:
        """Return (B, proprio_dim) float32, normalised and clipped, or None for a policy that reads no state."""
        dim = self._sizes.proprio_dim
        if dim is None:
            return None
        for shape in (np.shape(o.state) for o in observations):
            if shape != (dim,):
                seen = f"{shape[0]}" if len(shape) == 1 else f"an array of shape {shape}"
                raise ContractError(f"the policy reads {dim} state dimensions, but the observation has {seen}.")
        state = np.stack([o.state for o in observations])
        if not np.isfinite(state).all():
            raise ContractError("the arm's state holds numbers that are not finite; check the driver.")
        stats = self._statistics.rows("proprio", len(state), keys)
        normalised = [normalise(row, s) for row, s in zip(state, stats, strict=True)]
        return torch.from_numpy(np.stack(normalised).astype(np.float32))


def committed_tokens(
    observation: Observation, stats: QuantileStats, chunk: int, tokens: ActionTokenizer
) -> NDArray[np.int64]:
    """Return the tokens that a policy of several actions must begin with: those of actions the arm executes anyway.

    Args:
        observation: its `committed` is (n, D) in units, or None.
        stats: statistics that normalise the actions.
        chunk: K, actions of an answer; at least one stays the policy's choice.
        tokens: turns actions into ids.

    Returns:
        (min(n, K - 1) * D,) int64 ids; (0,) if no action is committed.

    Raises:
        ContractError: the actions have another number of dimensions, or are not finite.
    """
    committed = observation.committed
    if committed is None or chunk == 1 or not len(committed):
        return np.empty(0, np.int64)
    if committed.shape[1] != len(stats):
        raise ContractError(
            f"the arm has committed to actions of {committed.shape[1]} numbers, but the policy's have {len(stats)}."
        )
    return tokens.encode(normalise(committed[: chunk - 1], stats)).reshape(-1)


def chunks_of(
    actions: Sequence[NDArray[np.float64]],
    observations: Sequence[Observation],
    stages: StageTimer,
    conditions: bool = False,
) -> list[ActionChunk]:
    """Return one chunk per row of (K, D) actions in units and the observation that caused it.

    `conditions`: whether the actions were generated after the observation's committed actions.
    """
    stages_ms = stages.ms  # waits for the device
    return [
        ActionChunk(
            actions=rows,
            stamp_ns=o.stamp_ns,
            step=o.step,
            stages_ms=stages_ms,
            conditioned=conditions and o.committed is not None,
        )
        for rows, o in zip(actions, observations, strict=True)
    ]


def check_image_sensitivity(
    sizes: InputSizes, preprocessor: FramePreprocessor, pixels: Pixels, answer: Callable[[Batch], Tensor]
) -> None:
    """Raise CheckpointError unless a black image and one of noise give different answers.

    A model that ignores its image repeats one action for ever, and the arm moves without visual feedback.

    Args:
        sizes: sizes of the model's inputs.
        preprocessor: knows the shape of a frame.
        pixels: turns frames into tower inputs on the model's device.
        answer: maps a batch of two rows to (2, ...) logits or actions.
    """
    # Gemma 4 without a tower normalises each patch, so that a black and a white one are the same to it.
    shape = (*preprocessor.shape(sizes.image_size, sizes.image_size), 3)
    black, noise = np.zeros(shape, dtype=np.uint8), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ids = np.array([1, 2, 3], dtype=np.int64)
    frames = [[black] * sizes.num_images, [noise] * sizes.num_images]
    state = None if sizes.proprio_dim is None else torch.zeros(2, sizes.proprio_dim)
    try:
        with torch.inference_mode():
            dark, noisy = answer(Batch(pixels(frames), [ids, ids], state))
    except PolicyError as error:
        raise CheckpointError(f"self-test failed: {error}") from error
    if torch.equal(dark, noisy):
        raise CheckpointError(
            "self-test failed: a black image and one of noise give the same answer, so the model ignores its "
            "image. The weights or the preprocessor do not belong to this architecture."
        )


def require_fit(batch: Batch, sizes: InputSizes) -> None:
    """Raise ContractError for a batch that would cause an error inside torch, or a meaningless action."""
    rows, cameras = batch.pixels.shape[:2]
    if rows != len(batch.prompts):
        raise ContractError(f"a batch needs as many prompts as images, got {len(batch.prompts)} and {rows}.")
    if cameras != sizes.num_images:
        raise ContractError(f"the policy reads {sizes.num_images} camera(s), but the batch has {cameras}.")
    for prompt in batch.prompts:
        if prompt.min() < 0 or prompt.max() >= sizes.vocabulary:
            raise ContractError(f"prompt ids must lie in [0, {sizes.vocabulary}), got {prompt.tolist()}.")
    wanted = None if sizes.proprio_dim is None else (rows, sizes.proprio_dim)
    seen = None if batch.state is None else tuple(batch.state.shape)
    if seen != wanted:
        raise ContractError(f"the policy reads a state of shape {wanted}, but the batch has {seen}.")
    if batch.state is not None and not torch.isfinite(batch.state).all():
        raise ContractError("the state holds numbers that are not finite.")


def pad_right(prompts: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts of different lengths at the right: return (B, L) int64 ids and (B,) lengths."""
    lengths = [len(prompt) for prompt in prompts]
    padded = np.full((len(prompts), max(lengths)), pad_id, dtype=np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(padded), torch.tensor(lengths)
