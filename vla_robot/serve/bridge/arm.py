"""Makes a simulated world an arm for the bridge: one control step per tick."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_robot.core.embodiment import GRIPPER_OPEN, ActionSpace, Dim
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import VisibleWorld
from vla_robot.serve.bridge.camera_frames import stamps_of


class WorldArm:
    """Arm whose commands are steps of a simulated world: one control step per tick."""

    can_wait = True

    def __init__(self, world: VisibleWorld) -> None:
        self._world, self.embodiment = world, world.embodiment
        self._holding: Vector | None = None
        self._stamps_ns: dict[str, int] = {}

    @property
    def instruction(self) -> str:
        return self._world.instruction

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._stamps_ns

    def reset(self, seed: int) -> Observation:
        observation = self._world.reset(seed)
        self._seen(observation, after=None)
        return observation

    def command(self, action: Vector) -> StepResult:
        result = self._world.step(action)
        self._seen(result.observation, after=action)
        return result

    def hold(self) -> StepResult:
        """Hold the pose after the last command; an arm that sags is not followed.

        Raises:
            WorldError: the arm was never reset.
        """
        if self._holding is None:
            raise WorldError("an arm that was never reset has no pose to hold; reset it first.")
        result = self._world.step(self._holding)
        self._stamps_ns = stamps_of(result.observation)
        return result

    def look(self) -> Observation:
        observation = self._world.look()
        self._stamps_ns = stamps_of(observation)
        return observation

    def stop(self) -> None:
        """Do nothing: a simulation that is not stepped does not move."""

    def close(self) -> None:
        self._world.close()

    def _seen(self, observation: Observation, after: Vector | None) -> None:
        self._stamps_ns = stamps_of(observation)
        self._holding = holding(self.embodiment.action, self.embodiment.state, observation.state, after)


def holding(space: ActionSpace, state: tuple[Dim, ...], at: Vector, after: Vector | None = None) -> Vector:
    """Return the (D,) action that keeps the pose and the grip.

    Args:
        space: the action space.
        state: the dimensions of `at`.
        at: (S,) state of the arm.
        after: (D,) the last action; None before the first one, with an open gripper.

    Raises:
        ContractError: actions are positions that the state does not contain.
    """
    grips = np.full(len(space), GRIPPER_OPEN) if after is None else after
    measured = {dim.name: float(value) for dim, value in zip(state, at, strict=True)}
    positions = [name for name, kept in zip(space.names, ~(space.is_grip | space.is_step), strict=True) if kept]
    if missing := [name for name in positions if name not in measured]:
        raise ContractError(
            f"the arm cannot be held: its actions are positions, and its state lacks {', '.join(missing)}."
        )
    stay = np.array([measured[name] if name in positions else 0.0 for name in space.names])
    return np.where(space.is_grip, grips, stay)
