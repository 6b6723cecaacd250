"""Implements the port Arm for LeRobot's robots in joint positions: one arm or a pair, with or without grippers.

    action --> joint step --> bounds of the configuration --------> motors
               (from the      (the tool's workspace, clearance of
               measured)      the bodies)

An action is the position of every joint [rad] and the opening of every gripper, in lerobot's order and by the names of
its motors, as lerobot's own datasets have them; the state is the same, measured. Each cut is reported as a clamp, and
the executed action is what was sent.

This module does not decide when to move, how fast, and what to refuse; vla_robot/serve/bridge/bridge.py does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vla_robot.core.clock import Clock
from vla_robot.core.embodiment import GRIP_UNIT, ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import StepResult, Vector
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.arm_body import ArmBody
from vla_robot.world.real.body_arm import BodyArm
from vla_robot.world.real.kinematics.arm_model import ArmModel
from vla_robot.world.real.kinematics.bounds import Bound, ToolBox
from vla_robot.world.real.kinematics.clearance import clearance_of
from vla_robot.world.real.kinematics.scene import compiled, joint_ranges_of
from vla_robot.world.real.lerobot_arm import workspace
from vla_robot.world.real.lerobot_device import LerobotDevice
from vla_robot.world.real.lerobot_wiring import Wiring
from vla_robot.world.sim.sim_embodiment import check_action

FRAME = "joint"


class JointArm(BodyArm):
    """The port Arm for one of lerobot's robots in joint positions."""

    def __init__(
        self,
        recipe: RealArmRecipe,
        clock: Clock | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Connect and switch the torque on. The arm does not move before `reset`. Arguments are those of `ArmBody`.

        Raises:
            RecipeError: the recipe names something that lerobot or the scene lacks, or a joint's range is not known.
            WorldError: port, permission, calibration, motor or camera does not work; nothing was moved.
            MissingDependencyError: the extra [arm] is not installed.
        """
        device = LerobotDevice(recipe.robot, None, recipe.limits.max_joint_step_rad)
        wiring = device.wiring
        ranges = joint_ranges(recipe, wiring)
        self._joints_at = [wiring.order.index(name) for name in wiring.joints]
        self._grips_at = [wiring.order.index(name) for name in wiring.grippers]
        self._bounds = bounds_of(recipe, wiring)
        clearance = clearance_of(recipe, wiring.joints)
        body = ArmBody(recipe, device, ranges, clearance, clock, interrupted, show)
        super().__init__(recipe, joint_embodiment(recipe, wiring, ranges), body)

    def command(self, action: Vector) -> StepResult:
        """Send the joint goals of one action.

        Args:
            action: (D,) positions of the joints [rad] and openings of the grippers, 0 closed to 1 open.

        Returns:
            `executed` is the action that was sent; None in a dry run, which sends nothing.

        Raises:
            ContractError: the action has the wrong shape, is not finite, or lies outside of the limits.
            WorldError: the arm does not answer, or a motor reports a fault.
        """
        values = check_action(action, self.embodiment.action)
        self._body.require_link()
        joints, clamps = self._body.allowed(values[self._joints_at], self._bounds)
        clamps += self._body.follow(joints, values[self._grips_at])
        return dataclasses.replace(self._body.tick(self._sent(), self._state), clamps=clamps)

    def hold(self) -> StepResult:
        """Let the motors hold their goals for one tick; nothing is sent."""
        self._body.require_link()
        return self._body.tick(self._sent(), self._state)

    def _sent(self) -> Vector | None:
        """Return the action that was sent last, (D,); None in a dry run."""
        return None if self._body.is_dry else self._ordered(self._body.goal, self._body.opening_goals)

    def _state(self) -> Vector:
        """Return the state, (D,): measured joints [rad] and openings of the grippers."""
        return self._ordered(self._body.joints, self._body.openings)

    def _ordered(self, joints: Vector, openings: Vector) -> Vector:
        row = np.empty(len(joints) + len(openings))
        row[self._joints_at], row[self._grips_at] = joints, openings
        return row


def joint_embodiment(recipe: RealArmRecipe, wiring: Wiring, ranges: tuple[Vector, Vector]) -> Embodiment:
    """Return the embodiment of a robot in joint positions.

    Args:
        recipe: the robot's recipe.
        wiring: names of its joints and grippers.
        ranges: smallest and largest joint angles, each (J,) [rad].
    """
    joints = zip(wiring.joints, ranges[0].tolist(), ranges[1].tolist(), strict=True)
    dims = {name: Dim(name, "rad", low, high) for name, low, high in joints}
    dims |= {name: Dim(name, GRIP_UNIT, 0.0, 1.0) for name in wiring.grippers}
    ordered = tuple(dims[name] for name in wiring.order)
    return Embodiment(
        name=recipe.arm.lower(),
        action=ActionSpace("joint_position", FRAME, ordered),
        state=ordered,
        cameras=tuple(CameraSpec(c.name, c.height, c.width) for c in recipe.cameras),
        rate_hz=recipe.rate_hz,
    )


def joint_ranges(recipe: RealArmRecipe, wiring: Wiring) -> tuple[Vector, Vector]:
    """Return the smallest and largest joint angles, each (J,) [rad]: what recipe, calibration and scene all allow.

    Raises:
        RecipeError: none of them tells a joint's range, they allow no angle, or the scene lacks a joint.
    """
    low, high = wiring.low.copy(), wiring.high.copy()
    if recipe.scene is not None:
        scene_low, scene_high = joint_ranges_of(compiled(recipe), wiring.joints)
        low, high = np.maximum(low, scene_low), np.minimum(high, scene_high)
    unknown = [name for name, a, b in zip(wiring.joints, low, high, strict=True) if not np.isfinite([a, b]).all()]
    if unknown:
        raise RecipeError(
            f"the range of {', '.join(unknown)} is not known. Calibrate the arm, name its MJCF file with scene, or "
            "give low_deg and high_deg in [robot.joints.NAME]."
        )
    for name, a, b in zip(wiring.joints, low, high, strict=True):
        if a >= b:
            raise RecipeError(f"recipe, calibration and scene allow no angle of '{name}': {a:g} to {b:g} rad.")
    return low, high


def bounds_of(recipe: RealArmRecipe, wiring: Wiring) -> tuple[Bound, ...]:
    """Return the bounds of a robot's configuration that the recipe asks for.

    Raises:
        RecipeError: the scene lacks a joint between base and tool.
    """
    limits = recipe.limits
    if recipe.scene is None or not (limits.workspace_low or limits.workspace_high):
        return ()
    return (ToolBox(ArmModel(recipe.scene), *workspace(recipe), wiring.joints),)
