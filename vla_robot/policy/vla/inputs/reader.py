"""What every engine reads of observations, in numpy: frames in the model's order, prompts, and the normalised state.

`observations.py` makes tensors of it; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics
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


class InputReader[T: PromptIds]:
    """Reads the model's inputs from observations."""

    def __init__(
        self, sizes: InputSizes, tokenizer: T | None, statistics: Statistics, cameras: Sequence[str] = ()
    ) -> None:
        """
        Args:
            sizes: sizes of the model's inputs.
            tokenizer: turns instructions into ids, or None for a checkpoint without one.
            statistics: normalise the state.
            cameras: names in the order of the model's images; empty takes all of an observation, sorted by name.
        """
        self._sizes = sizes
        self._tokenizer = tokenizer
        self._statistics = statistics
        self._cameras = tuple(cameras)

    @property
    def tokenizer(self) -> T:
        """The tokenizer. Raises CheckpointError when the folder has none."""
        if self._tokenizer is None:
            raise CheckpointError("this checkpoint has no tokenizer.json, so it cannot read instructions.")
        return self._tokenizer

    def prompts(self, observations: Sequence[Observation]) -> list[NDArray[np.int64]]:
        """Return the (L,) ids of each observation's prompt. Raises ContractError for an empty instruction."""
        return [self.tokenizer(o.instruction) for o in observations]

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

    def state(self, observations: Sequence[Observation], keys: Keys | None) -> NDArray[np.float32] | None:
        """Return (B, proprio_dim) float32, normalised and clipped, or None for a policy that reads no state.

        Raises:
            ContractError: the state has another size or is not finite, or a key is unknown.
        """
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
        return np.stack(normalised).astype(np.float32)


def committed_tokens(observation: Observation, stats: QuantileStats, codec: ActionCodec) -> NDArray[np.int64]:
    """Return the tokens that a policy of several actions must begin with: those of actions the arm executes anyway.

    Args:
        observation: its `committed` is (n, D) in units, or None.
        stats: statistics that normalise the actions.
        codec: turns actions into ids; at least one action stays the policy's choice.

    Returns:
        (m,) int64 ids; (0,) if no action is committed, or if the codec's tokens do not follow the actions in time.

    Raises:
        ContractError: the actions have another number of dimensions, or are not finite.
    """
    committed = observation.committed
    if committed is None or codec.chunk == 1 or not len(committed):
        return np.empty(0, np.int64)
    if committed.shape[1] != len(stats):
        raise ContractError(
            f"the arm has committed to actions of {committed.shape[1]} numbers, but the policy's have {len(stats)}."
        )
    return codec.beginning(normalise(committed[: codec.chunk - 1], stats))


def follows_committed(observation: Observation, codec: ActionCodec, prefix: NDArray[np.int64]) -> bool:
    """Return whether an answer that begins with `committed_tokens` continues all actions that the arm executes."""
    committed = observation.committed
    return committed is not None and codec.chunk > 1 and (len(prefix) > 0 or len(committed) == 0)


def chunks_of(
    actions: Sequence[NDArray[np.float64]],
    observations: Sequence[Observation],
    stages: StageTimer,
    conditioned: Sequence[bool] | None = None,
    entropy: Sequence[float | None] | None = None,
) -> list[ActionChunk]:
    """Return one chunk per row of (K, D) actions in units and the observation that caused it.

    Args:
        actions: per row, (K, D) in units.
        observations: their causes.
        stages: times of the inference.
        conditioned: per row, whether the actions were generated after the committed ones; None if none were.
        entropy: per row, `ActionChunk.entropy`; None for answers that are no tokens.
    """
    stages_ms = stages.ms  # waits for the device
    given = [False] * len(actions) if conditioned is None else conditioned
    unsure = [None] * len(actions) if entropy is None else entropy
    return [
        ActionChunk(rows, o.stamp_ns, o.step, stages_ms, conditioned=after, entropy=nats)
        for rows, o, after, nats in zip(actions, observations, given, unsure, strict=True)
    ]


def mean_entropy(tokens: NDArray[np.float32]) -> float | None:
    """Return the mean of (N,) entropies [nats], of which NaN counts as no token; None if no token is left."""
    generated = tokens[~np.isnan(tokens)]
    return float(generated.mean(dtype=np.float64)) if len(generated) else None
