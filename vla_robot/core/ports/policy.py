"""Port of a policy. A wrapper of a policy is a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vla_robot.core.messages import ActionChunk, Image, Observation


@runtime_checkable
class ReadsHistory(Protocol):
    """A policy that also reads earlier observations, which a loop puts into `Observation.before`."""

    @property
    def history_steps(self) -> int:
        """Number of earlier control steps whose observations it reads; 0 for none."""
        ...


@runtime_checkable
class Policy(Protocol):
    """Answers observations with actions."""

    def reset(self, seed: int) -> None:
        """Forget the last episode. A stochastic policy draws from `seed` from now on."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; rows of a batch do not influence each other.

        Raises:
            PolicyError: no valid action exists. The caller holds the arm and sends no other action.
        """
        ...


@runtime_checkable
class MeasuresChunkGap(Protocol):
    """A policy that measures `ActionChunk.chunk_gap` of what it gives out itself, which the loops do for all others."""

    @property
    def measures_chunk_gap(self) -> bool:
        """Whether it does: it asks another policy, whose chunks it may give out in parts or drop."""
        ...


@runtime_checkable
class PreparesAhead(Protocol):
    """A policy that can do the work on an observation alone, such as resizing its frames, before `act` is called."""

    @property
    def prepares_ahead(self) -> bool:
        """Whether that saves time: it computes on a device beside the processor, which waits meanwhile."""
        ...

    def prepare(self, observation: Observation) -> Observation:
        """Return an observation to which `act` gives the same answer with less work, for this policy alone.

        It may be called in any thread, also while another is in `act`.

        Raises:
            ContractError: a camera or the instruction does not fit.
        """
        ...


@runtime_checkable
class AnswersQuestions(Protocol):
    """A policy that also answers questions about what its cameras see, in words."""

    def answer(self, images: Mapping[str, Image], question: str, max_tokens: int = 32) -> str:
        """Return the answer to a question.

        Args:
            images: camera name -> (H, W, 3) uint8.
            question: in plain words, e.g. "which cube is left?", or "detect red cube" for boxes.
            max_tokens: longest answer, in tokens.

        Raises:
            ContractError: a camera is missing, or the question is empty or too long.
            PolicyError: the model's output is not finite.
        """
        ...
