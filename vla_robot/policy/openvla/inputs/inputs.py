"""Inputs: turns observations into what the model reads, for every way to generate.

Observation  --frames by camera name-->  pixels (B, N, C, S, S)  --+
             --instruction----------->   prompts, ragged ids     --+--embed-->  (B, S, D), (B,) lengths
             --state, normalised----->   state (B, P) or None    --+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, unknown
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import Q99, Bounds, QuantileStats, normalise
from vla_robot.policy.openvla.inputs.action_tokens import ActionTokenizer
from vla_robot.policy.openvla.inputs.preprocess import Preprocessor
from vla_robot.policy.openvla.inputs.prompt import PromptTokenizer
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.vla.sequence import RaggedSequence
from vla_robot.policy.vla.stage_timer import StageTimer


@dataclass(frozen=True)
class Batch:
    """Inputs of the model.

    Attributes:
        pixels: (B, N, C, S, S) float32, squared and normalised.
        prompts: B arrays of int64 ids of any lengths, BOS first.
        state: (B, proprio_dim) float32 in [-1, 1], or None for a policy without proprioception.
    """

    pixels: Tensor
    prompts: Sequence[NDArray[np.int64]]
    state: Tensor | None = None


Keys = Sequence[str | None]
"""The dataset whose statistics each row of a batch uses; None for the policy's own."""


@dataclass(frozen=True)
class Statistics:
    """Statistics that turn normalised actions into units.

    Attributes:
        datasets: dataset name -> its block in dataset_statistics.json.
        key: the dataset to use, or None for the only one.
        bounds: the two rows of a block that are -1 and +1.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    key: str | None = None
    bounds: Bounds = Q99

    def resolve(self, key: str | None) -> str:
        """Return `key`, or for None the only dataset's name.

        Raises:
            ContractError: the key is unknown, or None although there are several datasets.
        """
        if key is None:
            if len(self.datasets) == 1:
                return next(iter(self.datasets))
            raise ContractError(
                f"the checkpoint holds statistics of {len(self.datasets)} datasets; name one with statistics_key: "
                f"{', '.join(sorted(self.datasets)) or 'none are there'}."
            )
        if key not in self.datasets:
            raise ContractError(unknown("statistics key", key, self.datasets))
        return key

    def of(self, what: str, key: str | None = None) -> QuantileStats:
        """Return the bounds of "action" or "proprio" of a dataset, by default of this object's own.

        Raises:
            ContractError: the dataset is unknown, or its block lacks these statistics.
        """
        name = self.resolve(key or self.key)
        block = self.datasets[name]
        if not isinstance(block, Mapping) or not isinstance(block.get(what, {}), Mapping):
            raise ContractError(f"the statistics of '{name}' must be a table with '{what}', got {block!r:.80}.")
        if what not in block:
            raise ContractError(f"the statistics of '{name}' have no '{what}', only: {', '.join(sorted(block))}.")
        return QuantileStats.from_dict(block[what], self.bounds)

    def rows(self, what: str, count: int, keys: Keys | None) -> list[QuantileStats]:
        """Return `of` for each of `count` rows of a batch; without keys, this object's own dataset for all."""
        if keys is None:
            return [self.of(what)] * count
        if len(keys) != count:
            raise ContractError(f"a batch needs one statistics key per observation, got {len(keys)} for {count}.")
        return [self.of(what, key) for key in keys]


def require_statistics(statistics: Statistics) -> None:
    """Raise ContractError unless the named dataset, or without a name every dataset, can un-normalise actions."""
    names = [statistics.key] if statistics.key is not None else list(statistics.datasets)
    if not names:
        raise ContractError("the checkpoint holds statistics of no dataset, so its actions have no units.")
    for name in names:
        statistics.of("action", name)


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


class ObservationReader:
    """Makes batches from observations."""

    def __init__(
        self,
        config: OpenVLAConfig,
        preprocessor: Preprocessor,
        tokenizer: PromptTokenizer | None,
        statistics: Statistics,
        cameras: Sequence[str] = (),
    ) -> None:
        """
        Args:
            config: number of cameras and size of the state that the model reads.
            preprocessor: turns frames into tower inputs.
            tokenizer: turns instructions into ids, or None for a checkpoint without one.
            statistics: normalise the state.
            cameras: names in the order of the model's images; empty takes all of an observation, sorted by name.
        """
        self._config = config
        self._preprocessor = preprocessor
        self._tokenizer = tokenizer
        self._statistics = statistics
        self._cameras = tuple(cameras)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The tokenizer. Raises CheckpointError when the folder has none."""
        if self._tokenizer is None:
            raise CheckpointError("this checkpoint has no tokenizer.json, so it cannot read instructions.")
        return self._tokenizer

    def __call__(self, observations: Sequence[Observation], keys: Keys | None = None) -> Batch:
        """Return a batch with one row per observation.

        Args:
            observations: with any instructions.
            keys: dataset of each row, whose statistics normalise the state.

        Raises:
            ContractError: there is no observation, or a camera, the state or the instruction does not fit.
        """
        require_observations(observations)
        images = [self.images(o.images) for o in observations]
        prompts = [self.tokenizer(o.instruction) for o in observations]
        return Batch(self._preprocessor(images), prompts, self._state(observations, keys))

    def images(self, seen: Mapping[str, Image]) -> list[Image]:
        """Return the frames that the model reads, in its order, from frames by camera name.

        Raises:
            ContractError: a camera is missing, or there are too many.
        """
        wanted = self._cameras or sorted(seen)
        missing = [name for name in wanted if name not in seen]
        if missing:
            raise ContractError(unknown("camera", missing[0], seen))
        if len(wanted) != self._config.num_images:
            raise ContractError(
                f"the policy reads {self._config.num_images} camera(s), but the observation has {len(wanted)}: "
                f"{', '.join(wanted)}."
            )
        return [seen[name] for name in wanted]

    def _state(self, observations: Sequence[Observation], keys: Keys | None) -> Tensor | None:
        """Return (B, proprio_dim) float32, normalised and clipped, or None for a policy that reads no state."""
        dim = self._config.proprio_dim
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


def timer_of(model: OpenVLA) -> StageTimer:
    """Return a timer, started, for an inference of this model on its device."""
    return StageTimer(model.projector.fc1.weight.device)


def embed(model: OpenVLA, batch: Batch, stages: StageTimer | None = None) -> RaggedSequence:
    """Perceive and align: run the towers and projectors.

    Raises:
        ContractError: the batch does not fit the model.
    """
    stages = stages or StageTimer()
    pixels, ids, state, text_lengths = tensors_of(model, batch)
    features = model.vision_backbone(pixels)
    stages.lap("towers")
    embeds = model.align(features, ids, state)
    stages.lap("projector")
    return RaggedSequence(embeds, text_lengths + embeds.shape[1] - ids.shape[1])


def tensors_of(model: OpenVLA, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return a batch's tensors on the model's device and in its precision.

    Returns:
        (B, N, C, S, S) pixels, (B, L) ids padded at the right, (B, P) state or None, (B,) real ids per row; the
        last in main memory, where reading it waits for no device.

    Raises:
        ContractError: the batch does not fit the model.
    """
    _require_fit(batch, model.config)
    weight = model.projector.fc1.weight
    ids, lengths = _pad(batch.prompts, model.config.pad_token_id)
    state = None if batch.state is None else batch.state.to(weight)
    return batch.pixels.to(weight), ids.to(weight.device), state, lengths


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

    `conditions`: the actions were generated given those that the observation says are committed.
    """
    return [
        ActionChunk(
            actions=rows,
            stamp_ns=o.stamp_ns,
            step=o.step,
            stages_ms=stages.ms,
            conditioned=conditions and o.committed is not None,
        )
        for rows, o in zip(actions, observations, strict=True)
    ]


def check_image_sensitivity(
    config: OpenVLAConfig, preprocessor: Preprocessor, answer: Callable[[Batch], Tensor]
) -> None:
    """Raise CheckpointError unless a black and a white image give different answers.

    A model that ignores its image repeats one action for ever, and the arm moves without visual feedback.

    Args:
        config: the model's configuration.
        preprocessor: turns frames into tower inputs.
        answer: maps a batch of two rows to (2, ...) logits or actions.
    """
    black = np.zeros((config.image_size, config.image_size, 3), dtype=np.uint8)
    ids = np.array([1, 2, 3], dtype=np.int64)
    frames = [[black] * config.num_images, [black + 255] * config.num_images]
    state = None if config.proprio_dim is None else torch.zeros(2, config.proprio_dim)
    try:
        with torch.inference_mode():
            dark, bright = answer(Batch(preprocessor(frames), [ids, ids], state))
    except PolicyError as error:
        raise CheckpointError(f"self-test failed: {error}") from error
    if torch.equal(dark, bright):
        raise CheckpointError(
            "self-test failed: a black and a white image give the same answer, so the model ignores its "
            "image. The weights or the preprocessor do not belong to this architecture."
        )


def _require_fit(batch: Batch, config: OpenVLAConfig) -> None:
    """Raise ContractError for a batch that would cause an error inside torch, or a meaningless action."""
    rows, cameras = batch.pixels.shape[:2]
    if rows != len(batch.prompts):
        raise ContractError(f"a batch needs as many prompts as images, got {len(batch.prompts)} and {rows}.")
    if cameras != config.num_images:
        raise ContractError(f"the policy reads {config.num_images} camera(s), but the batch has {cameras}.")
    vocabulary = int(config.text_config["vocab_size"])
    for prompt in batch.prompts:
        if prompt.min() < 0 or prompt.max() >= vocabulary:
            raise ContractError(f"prompt ids must lie in [0, {vocabulary}), got {prompt.tolist()}.")
    wanted = None if config.proprio_dim is None else (rows, config.proprio_dim)
    seen = None if batch.state is None else tuple(batch.state.shape)
    if seen != wanted:
        raise ContractError(f"the policy reads a state of shape {wanted}, but the batch has {seen}.")
    if batch.state is not None and not torch.isfinite(batch.state).all():
        raise ContractError("the state holds numbers that are not finite.")


def _pad(prompts: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts of different lengths at the right: return (B, L) int64 ids and (B,) lengths."""
    lengths = torch.tensor([len(p) for p in prompts])
    padded = np.full((len(prompts), int(lengths.max())), pad_id, dtype=np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(padded), lengths
