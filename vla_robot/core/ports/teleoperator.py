"""Port of a person's teleoperation device: keys, a page in the browser, a leader arm.

    loop  --show(observation, counters)-->  Teleoperator  shown to the person
                <------- command() -----------                 the device's present action and buttons

No method waits: a loop asks at its own rate, and gets the newest command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Driver, TeleopCommand


class Teleoperator(Protocol):
    """A person with a teleoperation device."""

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        """Show an observation to the person; return at once.

        Args:
            observation: the newest observation.
            counters: name -> text to show beside it, such as {"episode": "3 of 50"}.
        """
        ...

    def command(self) -> TeleopCommand:
        """Return the present command, at once."""
        ...

    def close(self) -> None:
        """Release the device. May be called twice."""
        ...


@runtime_checkable
class SharesControl(Protocol):
    """A teleoperator that shares control with a policy: it shows who is in control, and follows the arm's grip."""

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        """Note who is in control; return at once.

        Args:
            driver: who is in control now.
            executed: (D,) the newest action of the arm; None before the first.
        """
        ...


class LeaderArm(Protocol):
    """A leader arm; `vla_robot.world.real.lerobot_leader.Leader` is one."""

    def read(self) -> tuple[Vector, Vector]:
        """Return the (J,) joints [rad], and the grippers' (G,) openings, 0 to 1.

        Raises:
            TeleopError: it does not answer.
        """
        ...

    def close(self) -> None: ...


class Kinematics(Protocol):
    """Forward kinematics of an arm; `vla_robot.world.real.kinematics.arm_model.ArmModel` is one."""

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        """Return the (3,) position [m] and (4,) unit quaternion of the tool, in the base frame."""
        ...
