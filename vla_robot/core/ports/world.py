"""The port of a world, which waits for each action, and what some worlds can do beside that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, StepResult, Vector


@runtime_checkable
class World(Protocol):
    """A robot and its surroundings: simulated, real, or behind a socket. The loop cannot tell them apart."""

    @property
    def embodiment(self) -> Embodiment:
        """What actions, state and cameras mean here."""
        ...

    @property
    def instruction(self) -> str:
        """The task in plain words."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin an episode. In simulation the same seed gives the same initial state, whatever ran before."""
        ...

    def step(self, action: Vector) -> StepResult:
        """Execute one control step.

        Args:
            action: (D,) float64 in the units of `embodiment.action`.

        Raises:
            ContractError: wrong shape, or a number that is not finite. Nothing moves.
        """
        ...

    def close(self) -> None:
        """Release renderer, sockets and motors. May be called twice."""
        ...


@runtime_checkable
class VisibleWorld(World, Protocol):
    """A world that can also be looked at between its steps; each that is built in this process."""

    def look(self) -> Observation:
        """What its cameras see now, with a stamp of now. Nothing moves, and its time stands still."""
        ...


@runtime_checkable
class ReportsStages(Protocol):
    """A world that knows where its time went."""

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        """Stage name -> milliseconds, of the last reset or step."""
        ...
