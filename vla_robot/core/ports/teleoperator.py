"""The port of a person's hands: keys, a page in the browser, a leader arm.

    loop  --show(observation, counters)-->  Teleoperator  the person sees
          <------- command() -----------                 what the hands and the buttons say now

Nothing here waits: a loop asks at its own rate, and gets the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Driver, TeleopCommand


class Teleoperator(Protocol):
    """A person, or a device that a person holds."""

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        """Let the person see this; returns at once.

        Args:
            observation: the newest.
            counters: name -> text to be shown beside it, such as {"episode": "3 of 50"}.
        """
        ...

    def command(self) -> TeleopCommand:
        """What is asked for now; returns at once."""
        ...

    def close(self) -> None:
        """Let go of the device. May be called twice."""
        ...


@runtime_checkable
class SharesControl(Protocol):
    """A teleoperator beside a policy: it is told which of the two drives, shows that, and follows the arm's grip."""

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        """Returns at once.

        Args:
            driver: which of the two drives now.
            executed: (D,) the newest action of the arm; None before the first.
        """
        ...


class LeaderArm(Protocol):
    """`vla_robot.world.real.lerobot_leader.Leader` is one."""

    def read(self) -> tuple[Vector, float]:
        """(J,) joints [rad], and the gripper's opening, 0 to 1. Raises TeleopError when it does not answer."""
        ...

    def close(self) -> None: ...


class Kinematics(Protocol):
    """`vla_robot.world.real.arm_model.ArmModel` is one."""

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        """(3,) position [m] and (4,) unit quaternion of the tool, in the frame of the arm's base."""
        ...
