"""The port of an arm with its cameras, and of the motors inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, StepResult, Vector


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


class Motors(Protocol):
    """Joints and a gripper that are told positions."""

    def read(self) -> tuple[Vector, float]:
        """(J,) measured joints [rad], and the gripper's opening, 0 to 1."""
        ...

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Go there; what was really sent."""
        ...
