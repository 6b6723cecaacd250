"""Port of an arm with its cameras, and of its motors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, StepResult, Vector


class Arm(Protocol):
    """An arm with its cameras. One thread calls it, once per control tick."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def instruction(self) -> str: ...

    @property
    def can_wait(self) -> bool:
        """Whether its time stands still between commands, as in a simulation."""
        ...

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        """Stamp of the frame that was last read from each camera, on the bridge's clock [ns]."""
        ...

    def reset(self, seed: int) -> Observation:
        """Move to the start of an episode and return the observation there."""
        ...

    def command(self, action: Vector) -> StepResult:
        """Execute one action for one tick. The action is finite and within the limits."""
        ...

    def hold(self) -> StepResult:
        """Hold the pose and the grip for one tick."""
        ...

    def look(self) -> Observation:
        """Return the present observation between episodes. This only reads: the arm gets no command and does not move.

        Raises:
            WorldError: the arm or a camera does not answer.
        """
        ...

    def stop(self) -> None:
        """Come to rest and hold the pose and the grip, so that nothing is dropped. May be called twice.

        Raises:
            WorldError: the arm did not execute it.
        """
        ...

    def close(self) -> None:
        """Stop the arm and release the hardware."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """An arm that also takes set points between the ticks; see `vla_robot.world.real.set_points`."""

    @property
    def next_set_point_ns(self) -> int:
        """Time of the next set point, on the bridge's clock [ns]."""
        ...

    def send_set_point(self) -> None:
        """Send the set point. Raises WorldError if the arm does not accept it."""
        ...


class Motors(Protocol):
    """Motors of J joints and G grippers, controlled by positions."""

    def read(self) -> tuple[Vector, Vector]:
        """Return the (J,) measured joints [rad], and the grippers' (G,) openings, 0 closed to 1 open."""
        ...

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        """Command positions, as `read` returns them, and return the positions that were sent."""
        ...
