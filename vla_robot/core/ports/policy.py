"""Port of a policy. A wrapper of a policy is a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vla_robot.core.messages import ActionChunk, Observation


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
