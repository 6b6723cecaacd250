"""How a policy's graphs answer: in tokens that are guessed and corrected, or in numbers of one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import BOUNDS, EPSILON, Q99, Bounds, QuantileStats
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.onnx.generate import GraphGenerator
from vla_robot.policy.onnx.inputs import Ids
from vla_robot.policy.onnx.record import RECORD, ChunkAnswer, Record, TokenAnswer
from vla_robot.policy.onnx.regression import GraphRegression
from vla_robot.policy.onnx.runtime import Graphs
from vla_robot.policy.vla.codecs.folder import codec_from
from vla_robot.policy.vla.codecs.rows import decoded
from vla_robot.policy.vla.inputs.reader import committed_tokens, follows_committed
from vla_robot.policy.vla.inputs.statistics import require_dimension


class Head(ABC):
    """Makes actions of inputs.

    Attributes:
        bounds: the statistics that are -1 and +1.
        epsilon: widens their span when actions are un-normalised.
    """

    bounds: Bounds = Q99
    epsilon: float = 0.0

    @abstractmethod
    def engine(self, graphs: Graphs, record: Record) -> GraphGenerator | GraphRegression:
        """Return what runs the graphs."""

    @abstractmethod
    def given(self, observation: Observation, stats: QuantileStats) -> Ids:
        """Return the ids with which an answer begins, for the actions that the arm executes anyway; empty for none."""

    @abstractmethod
    def follows(self, observation: Observation, given: Ids) -> bool:
        """Return whether an answer with this beginning continues all actions that the arm executes anyway."""

    @abstractmethod
    def normalised(self, answer: NDArray[Any], dim: int) -> NDArray[np.float64]:
        """Return the (K, dim) normalised actions of one row's answer."""

    @abstractmethod
    def require_dims(self, stats: Sequence[QuantileStats]) -> None:
        """Raise ContractError unless the graphs give as many numbers as these statistics un-normalise."""


class TokenHead(Head):
    """Actions said as tokens."""

    def __init__(self, source: str, answer: TokenAnswer, vocabulary: int) -> None:
        """Raises CheckpointError if the codec is impossible, or of other sizes than the answer."""
        self._answer = answer
        self.codec = codec = codec_from(answer.codec, answer.chunk, source)
        if int(codec.ids.max()) >= vocabulary:
            raise CheckpointError(f"{source}: the codec has ids up to {codec.ids.max()}, of {vocabulary}.")
        try:
            sizes = sizes_of(codec, answer.action_dim)
        except ContractError as error:
            raise CheckpointError(f"{source}: {error}") from error
        told = (answer.tokens, answer.drafted, answer.given)
        if sizes != told:
            raise CheckpointError(
                f"{source}: tokens, drafted and given are {told}, but those of its codec are {sizes}."
            )

    def engine(self, graphs: Graphs, record: Record) -> GraphGenerator:
        return GraphGenerator(graphs, record, self._answer, self.codec)

    def given(self, observation: Observation, stats: QuantileStats) -> Ids:
        return committed_tokens(observation, stats, self.codec)

    def follows(self, observation: Observation, given: Ids) -> bool:
        return follows_committed(observation, self.codec, given)

    def normalised(self, answer: NDArray[Any], dim: int) -> NDArray[np.float64]:
        return decoded(self.codec, answer, dim)

    def require_dims(self, stats: Sequence[QuantileStats]) -> None:
        if longer := [len(each) for each in stats if len(each) > self._answer.action_dim]:
            raise ContractError(
                f"the statistics have {longer[0]} numbers per action, but the graphs give {self._answer.action_dim}."
            )


class ChunkHead(Head):
    """Actions regressed as numbers."""

    epsilon = EPSILON

    def __init__(self, answer: ChunkAnswer) -> None:
        self._answer = answer
        self.bounds = BOUNDS[answer.normalisation]

    def engine(self, graphs: Graphs, record: Record) -> GraphRegression:
        return GraphRegression(graphs, record, self._answer)

    def given(self, observation: Observation, stats: QuantileStats) -> Ids:
        return np.empty(0, np.int64)

    def follows(self, observation: Observation, given: Ids) -> bool:
        return False

    def normalised(self, answer: NDArray[Any], dim: int) -> NDArray[np.float64]:
        return np.asarray(answer, np.float64)

    def require_dims(self, stats: Sequence[QuantileStats]) -> None:
        dimension = self._answer.action_dim
        require_dimension(stats, dimension, f"the graphs give {dimension} numbers per action")


def head_of(folder: Path, record: Record) -> Head:
    """Return the head that a folder's record describes. Raises CheckpointError for an impossible codec."""
    if isinstance(record.answer, ChunkAnswer):
        return ChunkHead(record.answer)
    return TokenHead(str(folder / RECORD), record.answer, record.inputs.vocabulary)


def sizes_of(codec: ActionCodec, dim: int) -> tuple[int, int, int]:
    """Return the most tokens of an answer, those that are guessed together, and the most that may be told.

    Raises:
        ContractError: the codec was made for actions of another size.
    """
    tokens = codec.tokens(dim)
    can_be_told = codec.chunk > 1 and len(codec.beginning(np.zeros((1, dim)))) > 0
    return tokens, min(codec.drafted(dim), tokens), (tokens - 1) * can_be_told
