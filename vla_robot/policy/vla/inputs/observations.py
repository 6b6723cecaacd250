"""Inputs: turns observations into what the model reads, for every way to generate.

Observation  --frames by camera name-->  pixels (B, N, C, S, S)  --+
             --instruction----------->   prompts, ragged ids     --+--embed-->  (B, S, D), (B,) lengths
             --state, normalised----->   state (B, P) or None    --+

Resized frames and the prompt of an observation depend on no other, so that they can be made before its batch begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError
from vla_robot.core.messages import Observation
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.reader import InputReader, InputSizes, PromptIds, require_observations
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics
from vla_robot.policy.vla.inputs.upload import Pixels


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


@dataclass(frozen=True, kw_only=True)
class PreparedObservation(Observation):
    """An observation whose `images` are gone, since a policy made of them what it reads.

    Attributes:
        frames: resized frames of all cameras on the model's device, as `Pixels.of` takes them.
        prompt: (L,) int64 ids of the instruction's prompt.
    """

    frames: Tensor
    prompt: NDArray[np.int64]


class ObservationReader[T: PromptIds](InputReader[T]):
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
        super().__init__(sizes, tokenizer, statistics, cameras)
        self._pixels = pixels

    def __call__(self, observations: Sequence[Observation], keys: Keys | None = None) -> Batch:
        """Return a batch with one row per observation.

        Args:
            observations: observations with any instructions.
            keys: dataset of each row, whose statistics normalise the state.

        Raises:
            ContractError: there is no observation, or a camera, the state or the instruction does not fit.
        """
        require_observations(observations)
        state = self.state(observations, keys)
        if any(isinstance(o, PreparedObservation) for o in observations):
            ready = [self.prepare(o) for o in observations]
            pixels, prompts = self._pixels.of([o.frames for o in ready]), [o.prompt for o in ready]
        else:
            pixels, prompts = self._pixels([self.images(o.images) for o in observations]), self.prompts(observations)
        return Batch(pixels, prompts, None if state is None else torch.from_numpy(state))

    def prepare(self, observation: Observation) -> PreparedObservation:
        """Return an observation with its part of a batch, in any thread; a prepared one is returned as it is.

        Raises:
            ContractError: a camera or the instruction does not fit.
        """
        if isinstance(observation, PreparedObservation):
            return observation
        require_observations([observation])
        kept: dict[str, Any] = {field.name: getattr(observation, field.name) for field in fields(Observation)}
        kept["images"] = {}
        frames = self._pixels.frames(self.images(observation.images))
        prompt = self.tokenizer(observation.instruction)
        return PreparedObservation(**kept, frames=frames, prompt=prompt)


def check_image_sensitivity(
    sizes: InputSizes,
    frame: tuple[int, int],
    preprocessor: FramePreprocessor,
    pixels: Pixels,
    answer: Callable[[Batch], Tensor],
) -> None:
    """Raise CheckpointError unless a black image and one of noise give different answers.

    A model that ignores its image repeats one action for ever, and the arm moves without visual feedback.

    Args:
        sizes: sizes of the model's inputs.
        frame: height and width of a usual frame [px].
        preprocessor: knows the shape of a frame.
        pixels: turns frames into tower inputs on the model's device.
        answer: maps a batch of two rows to (2, ...) logits or actions.
    """
    # Gemma 4 without a tower normalises each patch, so that a black and a white one are the same to it.
    shape = (*preprocessor.shape(*frame), 3)
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
