"""What LeRobot's arms have in common, whatever their actions are: the calls that go to the body alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import Motors
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.arm_body import ArmBody
from vla_robot.world.real.lerobot_device import Health


class BodyArm(ABC):
    """The port Arm without its actions; a subclass adds `command`, `hold` and the state.

    Attributes:
        embodiment: actions, state and cameras.
    """

    can_wait = False

    def __init__(self, recipe: RealArmRecipe, embodiment: Embodiment, body: ArmBody) -> None:
        self.embodiment = embodiment
        self._recipe, self._body = recipe, body

    @property
    def motors(self) -> Motors:
        """Port to the motors. It may be replaced by a wrapper, such as set points, before `reset`."""
        return self._body.motors

    @motors.setter
    def motors(self, motors: Motors) -> None:
        self._body.motors = motors

    @property
    def body(self) -> ArmBody:
        return self._body

    @property
    def instruction(self) -> str:
        return self._recipe.instruction

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._body.stamps_ns

    @property
    def health(self) -> dict[str, Health]:
        return self._body.health

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        return self._body.stages_ms

    def reset(self, seed: int) -> Observation:
        """Reconnect if the link was lost, then move home slowly.

        Raises:
            WorldError: the arm does not answer, is interrupted, or does not get home; it stays where it is.
        """
        self._body.reset()
        self._aim()
        return self._body.observe(self._state())

    def look(self) -> Observation:
        """Return the present joints and frames.

        Raises:
            WorldError: the arm does not answer, or a camera never gave a frame.
        """
        self._body.require_link()
        self._body.sense()
        return self._body.observe(self._state())

    def stop(self) -> None:
        """Stop: replace goals that the arm still moves to by near ones.

        Raises:
            WorldError: the arm does not answer.
        """
        self._body.stop()
        self._aim()

    def close(self) -> None:
        """Stop, and close the ports; the motors keep their torque, so that the arm does not fall."""
        self._body.close()

    @abstractmethod
    def _state(self) -> Vector:
        """Return the measured state, (D,) as `embodiment.state` describes it."""

    def _aim(self) -> None:  # noqa: B027
        """Note that the joints have another goal than the last action's; called after homing and stopping."""
