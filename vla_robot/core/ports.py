"""The ports. Whatever implements one can stand where it is asked for; a wrapper of a policy is a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector


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
class Policy(Protocol):
    """Answers observations with actions."""

    def reset(self, seed: int) -> None:
        """Forget the last episode. A stochastic policy draws from `seed` from here on."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk per observation; rows of a batch do not influence each other.

        Raises:
            PolicyError: no valid action exists. The caller holds the arm; it never invents an action.
        """
        ...


class Arm(Protocol):
    """An arm with its cameras. One thread calls it, once a control tick."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def instruction(self) -> str: ...

    @property
    def can_wait(self) -> bool:
        """Whether its time stands still between commands, as a simulation's does."""
        ...

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        """When each camera gave the frame that was last read, by the bridge's clock."""
        ...

    def reset(self, seed: int) -> Observation:
        """Go to where an episode begins."""
        ...

    def command(self, action: Vector) -> StepResult:
        """Execute one action for one tick. It is finite and within the limits."""
        ...

    def hold(self) -> StepResult:
        """Keep the pose and the grip for one tick."""
        ...

    def look(self) -> Observation:
        """What it sees and feels now, between episodes. It is read only: nothing is sent to it, and nothing moves.

        Raises:
            WorldError: it does not answer.
        """
        ...

    def stop(self) -> None:
        """Come to rest, supported: the pose and the grip are kept, nothing is dropped. May be called twice.

        Raises:
            WorldError: the arm did not take it.
        """
        ...

    def close(self) -> None:
        """Stop, and let go of the hardware."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """What an arm has beside that when it takes set points between the ticks; see `vla_robot.world.real.set_points`."""

    @property
    def next_set_point_ns(self) -> int:
        """When the next one is due, by the bridge's clock."""
        ...

    def send_set_point(self) -> None:
        """Send it. Raises WorldError when the arm does not take it."""
        ...
