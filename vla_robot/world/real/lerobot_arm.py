"""Implements the port Arm for LeRobot's robots in tool steps: converts motions of the tool to goals of the joints.

    action --> target pose --> lead --> workspace --> inverse kinematics --> joint step --> motors
                   ^           (not too far ahead of where the tool is measured)   |
                   '---------------------- kept from tick to tick -----------------'

Each action moves the target pose, which is kept from tick to tick and not set from the measured pose: a motor with a
position controller rests a little below its goal, so an arm whose goal is its measured pose at every tick sinks. The
target may lead the measured tool by `max_lead_m` and `max_lead_rad` at most. Each cut is reported as a clamp: of the
lead, the workspace, the joint step, the clearance of the bodies, and lerobot's own driver. After a cut of the joints
the target is the pose of the joints that were sent.

The executed action is the tool's motion by the joints that were sent, by forward kinematics: an arm of five joints
cannot follow each rotation, and inverse kinematics has a remaining error.

This module does not decide when to move, how fast, and what to refuse; vla_robot/serve/bridge/bridge.py does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vla_robot.core.clock import Clock
from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.core.geometry import half_space_rotvec, limit_rotation, rotate, rotvec_between
from vla_robot.core.messages import Clamp, StepResult, Vector, clamps_of
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.arm_body import TOLERANCE, ArmBody
from vla_robot.world.real.body_arm import BodyArm
from vla_robot.world.real.kinematics.arm_model import ArmModel
from vla_robot.world.real.kinematics.clearance import clearance_of
from vla_robot.world.real.lerobot_device import LerobotDevice
from vla_robot.world.sim.sim_embodiment import check_action, embodiment_of

LEAD, POSITION = "lead", "position"
"""Causes of a clamp: the target was too far ahead of the tool; it lay outside of the workspace."""

TURNS = ("droll", "dpitch", "dyaw")


class LerobotArm(BodyArm):
    """The port Arm for one of lerobot's robots in tool steps."""

    def __init__(
        self,
        recipe: RealArmRecipe,
        clock: Clock | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Connect and switch the torque on. The arm does not move before `reset`. Arguments are those of `ArmBody`.

        Raises:
            RecipeError: the recipe names something that lerobot or the scene lacks.
            WorldError: port, permission, calibration, motor or camera does not work; nothing was moved.
            MissingDependencyError: the extra [arm] is not installed.
        """
        self._robot = recipe.robot
        self._model = scene_model(recipe)
        self._low, self._high = workspace(recipe)
        device = LerobotDevice(self._robot, self._model.names, recipe.limits.max_joint_step_rad)
        clearance = clearance_of(recipe, self._model.names)
        body = ArmBody(recipe, device, (self._model.low, self._model.high), clearance, clock, interrupted, show)
        super().__init__(recipe, arm_embodiment(recipe, self._model), body)
        self._target, self._target_quat = self._model.pose(self._body.goal)

    @property
    def joints(self) -> Vector:
        """(J,) joint angles of the last reading [rad]."""
        return self._body.joints

    @property
    def goal(self) -> Vector:
        """(J,) joint goals that were sent last [rad]."""
        return self._body.goal

    @property
    def joint_names(self) -> tuple[str, ...]:
        """(J,) names of the joints, from the base to the tool."""
        return self._body.joint_names

    def command(self, action: Vector) -> StepResult:
        """Move the target by one action, and send the joint goals for it.

        Args:
            action: (7,) motion of the tool [m, rad in the base frame] and the gripper, 0 closed to 1 open.

        Returns:
            `executed` is the tool's motion [m, rad in the base frame] from the joints that were sent before to those
            that were sent now, and the gripper's goal; None in a dry run, which sends nothing.

        Raises:
            ContractError: the action has the wrong shape, is not finite, or lies outside of the limits.
            WorldError: the arm does not answer, or a motor reports a fault.
        """
        values = check_action(action, self.embodiment.action)
        self._body.require_link()
        goal, clamps = self._solve_targets(values)
        before = self._model.pose(self._body.goal)
        clamps += self._follow(goal)
        return dataclasses.replace(self._body.tick(self._motion_since(before), self._state), clamps=clamps)

    def _motion_since(self, before: tuple[Vector, Vector]) -> Vector | None:
        """Return the action that leads from the pose sent before to the joints sent now, (7,); None in a dry run."""
        if self._body.is_dry:
            return None
        position, quat = self._model.pose(self._body.goal)
        motion = (*(position - before[0]), *rotvec_between(before[1], quat))
        return np.append(motion, self._body.opening_goals)

    def _solve_targets(self, action: Vector) -> tuple[Goal, tuple[Clamp, ...]]:
        """Return the goal that an action leads to, and the clamps of what was cut."""
        tool, tool_quat = self._model.pose(self._body.joints)
        near = np.clip(self._target + action[:3], tool - self._robot.max_lead_m, tool + self._robot.max_lead_m)
        position = np.clip(near, self._low, self._high)
        clamps = [
            Clamp(name, LEAD if near[i] == position[i] else POSITION, float(action[i]), float(step))
            for i, (name, step) in enumerate(zip(("dx", "dy", "dz"), position - self._target, strict=True))
            if abs(step - action[i]) > TOLERANCE
        ]
        quat = limit_rotation(tool_quat, rotate(self._target_quat, action[3:6]), self._robot.max_lead_rad)
        clamps += clamps_of(TURNS, LEAD, action[3:6], rotvec_between(self._target_quat, quat), TOLERANCE)
        allowed, cut = self._body.allowed(self._model.solve(self._body.goal, position, quat))
        if cut:  # the target must not be ahead of the joints that are sent
            position, quat = self._model.pose(allowed)
        return Goal(position, quat, allowed, action[-1:]), (*clamps, *cut)

    def hold(self) -> StepResult:
        """Let the motors hold their goals for one tick; nothing is sent."""
        self._body.require_link()
        executed = None if self._body.is_dry else np.append(np.zeros(6), self._body.opening_goals)
        return self._body.tick(executed, self._state)

    def _aim(self) -> None:
        """Set the target to the pose of the joints that were sent last."""
        self._target, self._target_quat = self._model.pose(self._body.goal)

    def _follow(self, goal: Goal) -> tuple[Clamp, ...]:
        """Send a goal. Return the clamps of what the driver cut."""
        cut = self._body.follow(goal.joints, goal.openings)
        self._target, self._target_quat = goal.position, goal.quat
        if np.abs(self._body.goal - goal.joints).max() > TOLERANCE:
            self._aim()  # lerobot limits goals by its own measurement
        return cut

    def _state(self) -> Vector:
        """Return the state, (7 + J,): tool position [m] and axis-angle [rad], opening [m], joints [rad]."""
        width_m = max(0.0, float(self._body.openings[0])) * self._robot.gripper_width_m
        position, quat = self._model.pose(self._body.joints)
        return np.concatenate([position, half_space_rotvec(quat), [width_m], self._body.joints])


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal of the arm.

    Attributes:
        position: (3,) position of the tool, base frame [m].
        quat: (4,) orientation of the tool, base frame, w first.
        joints: (J,) joint angles [rad].
        openings: (1,) opening of the gripper, 0 closed to 1 open.
    """

    position: Vector
    quat: Vector
    joints: Vector
    openings: Vector


def scene_model(recipe: RealArmRecipe) -> ArmModel:
    """Return the model of the recipe's scene.

    Raises:
        RecipeError: the recipe has none, or it cannot be used.
    """
    if recipe.scene is None:
        raise RecipeError("scene is missing: it tells where the tool is.")
    return ArmModel(recipe.scene)


def arm_embodiment(recipe: RealArmRecipe, model: ArmModel) -> Embodiment:
    """Return the embodiment of `embodiment_of` with the joints [rad] appended to the state."""
    embodiment = embodiment_of(recipe, recipe.arm.lower(), model.reach_m)
    joints = tuple(
        Dim(name, "rad", float(low), float(high))
        for name, low, high in zip(model.names, model.low, model.high, strict=True)
    )
    return dataclasses.replace(embodiment, state=(*embodiment.state, *joints))


def workspace(recipe: RealArmRecipe) -> tuple[Vector, Vector]:
    """Return the smallest and largest position of the tool's target, each (3,) in the base frame [m]."""
    low, high = recipe.limits.workspace_low, recipe.limits.workspace_high
    return np.array(low or (-np.inf,) * 3), np.array(high or (np.inf,) * 3)
