"""Implements the port Arm for LeRobot's robots: converts motions of the tool to goals of the joints.

    action --> target pose --> lead --> workspace --> inverse kinematics --> joint step --> motors
                   ^           (not too far ahead of where the tool is measured)   |
                   '---------------------- kept from tick to tick -----------------'

Each action moves the target pose, which is kept from tick to tick and not set from the measured pose: a motor with a
position controller rests a little below its goal, so an arm whose goal is its measured pose at every tick sinks. The
target may lead the measured tool by `max_lead_m` and `max_lead_rad` at most. Each cut is reported as a clamp: of the
lead, the workspace, the joint step, and lerobot's own driver. After a cut of the joints the target is the pose of the
joints that were sent.

The executed action is the tool's motion by the joints that were sent, by forward kinematics: an arm of five joints
cannot follow each rotation, and inverse kinematics has a remaining error.

This module does not decide when to move, how fast, and what to refuse; vla_robot/serve/bridge/bridge.py does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.core.geometry import half_space_rotvec, limit_rotation, rotate, rotvec_between
from vla_robot.core.messages import Clamp, Image, Observation, StepResult, Vector, clamps_of
from vla_robot.core.ports import Motors
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.arm_model import ArmModel
from vla_robot.world.real.lerobot_camera import LerobotCamera, fitted
from vla_robot.world.real.lerobot_device import Health, LerobotDevice
from vla_robot.world.sim.sim_embodiment import check_action, embodiment_of

LEAD, POSITION, STEP, DRIVER = "lead", "position", "step", "driver"
"""Causes of a clamp: the target was too far ahead of the tool; it lay outside of the workspace; a joint would have
moved too far in one step; lerobot's driver sent less than it was given."""

TURNS = ("droll", "dpitch", "dyaw")
GRIPPER = "gripper"

TOLERANCE = 1e-6
"""Metres or radians below which two numbers are equal: conversion to degrees and back loses a few of the last bits."""

HOME_RATE_HZ = 50.0
AT_HOME_RAD = 0.02
"""Largest error of a joint that is at home: its own weight keeps it about half a degree away."""
HOME_ERROR_RAD = 0.1
"""Error at the end of the motion home above which a joint counts as blocked."""
HOME_SETTLE_S = 1.0

STOP_SLACK_RAD = 0.06
"""Largest distance of a goal from the measured joint that a stop keeps. Such a goal holds the arm against its weight; a
goal further away is one that the arm still moves to."""

STOP_TRIES = 2
"""Number of tries to stop, since one lost answer on the bus must not keep the arm moving."""

HEALTH_EVERY_TICKS = 5
"""Ticks between two reads of a health register: at 30 Hz each of the three is read twice a second."""


class LerobotArm:
    """The port Arm for one of lerobot's robots."""

    can_wait = False

    def __init__(
        self,
        recipe: RealArmRecipe,
        clock: Clock | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Connect and switch the torque on. The arm does not move before `reset`.

        Args:
            recipe: the arm's recipe.
            clock: stamps the arm's readings; must be the clock of the cameras' stamps.
            interrupted: called during the motion home, when no request is answered; True ends that motion.
            show: makes this a dry run, and is called with the commands that would be sent, in words; the motors are
                only read, without torque.

        Raises:
            RecipeError: the recipe names something that lerobot or the scene lacks.
            WorldError: port, permission, calibration, motor or camera does not work; nothing was moved.
            MissingDependencyError: the extra [arm] is not installed.
        """
        self._recipe, self._robot = recipe, recipe.robot
        self._clock = clock or MonotonicClock()
        self._interrupted = interrupted
        self._is_dry = show is not None
        self._model = ArmModel(recipe.scene)
        self._home = None if show else home_joints(recipe, self._model)
        self._max_step = recipe.limits.max_joint_step_rad
        self.embodiment = arm_embodiment(recipe, self._model)
        self._low, self._high = workspace(recipe)
        device = LerobotDevice(self._robot, self._model.names, recipe.limits.max_joint_step_rad)
        self._device: LerobotDevice | DryDevice = DryDevice(device, self._model.names, show) if show else device
        sources = {c.source for c in recipe.cameras if c.source}
        self.motors: Motors = self._device
        """Port to the motors. It may be replaced by a wrapper, such as set points, before `reset`."""
        self._cameras: dict[str, LerobotCamera] = {}
        self._step = self._ticks = 0
        self._broken = self._unfit = False
        self._stamps: dict[str, int] = {}
        try:
            for source in sorted(sources):
                self._cameras[source] = LerobotCamera(source, self._robot.cameras[source])
            self._device.connect()
            self._joints, self._opening = self.motors.read()
        except BaseException:
            self.close()
            raise
        self._aim(self._joints, self._opening)

    @property
    def instruction(self) -> str:
        return self._recipe.instruction

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._stamps

    @property
    def joints(self) -> Vector:
        """(J,) joint angles of the last reading [rad]."""
        return self._joints

    @property
    def goal(self) -> Vector:
        """(J,) joint goals that were sent last [rad]."""
        return self._goal

    @property
    def joint_names(self) -> tuple[str, ...]:
        """(J,) names of the joints, from the base to the tool."""
        return self._model.names

    @property
    def joint_range(self) -> tuple[Vector, Vector]:
        """Smallest and largest joint angles, each (J,) [rad]."""
        return self._model.low, self._model.high

    @property
    def health(self) -> dict[str, Health]:
        return self._device.health()

    def reset(self, seed: int) -> Observation:
        """Reconnect if the link was lost, then move home slowly.

        Raises:
            WorldError: the arm does not answer, is interrupted, or does not get home; it stays where it is.
        """
        if self._broken or self._unfit:
            self._device.reopen()
            self._broken = self._unfit = False
        self._sense()
        self._aim(self._joints, self._opening)
        self._require_healthy(every=True)
        if self._home is not None:
            self._go_home(self._home)
        self._step = 0
        return self._observe()

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
        self._require_link()
        goal, clamps = self._solve_targets(values)
        before = self._model.pose(self._goal)
        clamps += self._follow(goal)
        return dataclasses.replace(self._tick(self._motion_since(before)), clamps=clamps)

    def _motion_since(self, before: tuple[Vector, Vector]) -> Vector | None:
        """Return the action that leads from the pose sent before to the joints sent now, (7,); None in a dry run."""
        if self._is_dry:
            return None
        position, quat = self._model.pose(self._goal)
        return np.array([*(position - before[0]), *rotvec_between(before[1], quat), self._opening_goal])

    def _solve_targets(self, action: Vector) -> tuple[Goal, tuple[Clamp, ...]]:
        """Return the goal that an action leads to, and the clamps of what was cut."""
        tool, tool_quat = self._tool
        near = np.clip(self._target + action[:3], tool - self._robot.max_lead_m, tool + self._robot.max_lead_m)
        position = np.clip(near, self._low, self._high)
        clamps = [
            Clamp(name, LEAD if near[i] == position[i] else POSITION, float(action[i]), float(step))
            for i, (name, step) in enumerate(zip(("dx", "dy", "dz"), position - self._target, strict=True))
            if abs(step - action[i]) > TOLERANCE
        ]
        quat = limit_rotation(tool_quat, rotate(self._target_quat, action[3:6]), self._robot.max_lead_rad)
        clamps += clamps_of(TURNS, LEAD, action[3:6], rotvec_between(self._target_quat, quat), TOLERANCE)
        joints = self._model.solve(self._goal, position, quat)
        allowed = self._joints + np.clip(joints - self._joints, -self._max_step, self._max_step)
        cut = clamps_of(self._model.names, STEP, joints, allowed, TOLERANCE)
        if cut:  # the target must not be ahead of the joints that are sent
            position, quat = self._model.pose(allowed)
        return Goal(position, quat, allowed, float(action[-1])), (*clamps, *cut)

    def hold(self) -> StepResult:
        """Let the motors hold their goals for one tick; nothing is sent."""
        self._require_link()
        return self._tick(None if self._is_dry else np.append(np.zeros(6), self._opening_goal))

    def look(self) -> Observation:
        """Return the present joints and frames. A lost link is not reconnected here, since that may take seconds.

        Raises:
            WorldError: the arm does not answer, or a camera never gave a frame.
        """
        self._require_link()
        self._sense()
        return self._observe()

    def stop(self) -> None:
        """Stop: replace goals that the arm still moves to by near ones; see STOP_SLACK_RAD.

        Raises:
            WorldError: the arm does not answer.
        """
        for _ in range(STOP_TRIES if not self._broken else 0):
            with contextlib.suppress(WorldError):
                return self._cancel_goal()
        self._broken = True
        raise WorldError("the arm does not answer; each motor goes to the last goal that reached it, and holds that.")

    def _cancel_goal(self) -> None:
        self._sense()
        near = np.clip(self._goal - self._joints, -STOP_SLACK_RAD, STOP_SLACK_RAD)
        self.motors.send(self._joints + near, self._opening_goal)
        self._goal = self._joints + near
        self._target, self._target_quat = self._model.pose(self._goal)

    def close(self) -> None:
        """Stop, and close the port; the motors keep their torque, so that the arm does not fall."""
        if hasattr(self, "_goal"):
            with contextlib.suppress(WorldError):  # the motors then hold the last goal that reached them
                self.stop()
        self._device.close()
        for camera in self._cameras.values():
            camera.close()

    def _aim(self, joints: Vector, opening: float) -> None:
        """Set goal and target to these joints and their pose."""
        self._goal, self._opening_goal = joints.copy(), opening
        self._target, self._target_quat = self._model.pose(joints)
        self._tool = self._model.pose(self._joints)

    def _follow(self, goal: Goal) -> tuple[Clamp, ...]:
        """Send a goal. Return the clamps of what the driver cut."""
        try:
            sent, opening = self.motors.send(goal.joints, goal.opening)
        except WorldError:
            self._broken = True
            raise
        self._goal, self._opening_goal = sent, opening
        self._target, self._target_quat = goal.position, goal.quat
        names = (*self._model.names, GRIPPER)
        wanted, got = np.append(goal.joints, goal.opening), np.append(sent, opening)
        cut = clamps_of(names, DRIVER, wanted, got, TOLERANCE)
        if any(clamp.dim != GRIPPER for clamp in cut):
            # lerobot limits goals by its own measurement; the target is then the pose of what it sent.
            self._target, self._target_quat = self._model.pose(sent)
        return () if self._is_dry else cut

    def _tick(self, executed: Vector | None) -> StepResult:
        command_ns = self._clock.now_ns()
        self._ticks += 1
        self._require_healthy(every=False)
        self._sense()
        self._step += 1
        return StepResult(
            observation=self._observe(),
            executed=executed,
            success=False,
            terminated=False,
            truncated=self._step >= self._recipe.horizon,
            command_ns=command_ns,
        )

    def _sense(self) -> None:
        try:
            self._joints, self._opening = self.motors.read()
        except WorldError:
            self._broken = True
            raise
        self._read_ns = self._clock.now_ns()
        self._tool = self._model.pose(self._joints)

    def _observe(self) -> Observation:
        """Return an observation of the newest frames and the last reading of the joints."""
        frames = {c.name: self._frame(c.name, c.source or "", c.height, c.width) for c in self._recipe.cameras}
        stamp_ns = min([self._read_ns, *self._stamps.values()])
        stamps_ns = dict(self._stamps)
        return Observation(frames, self._state(), self._recipe.instruction, stamp_ns, self._step, stamps_ns=stamps_ns)

    def _frame(self, name: str, source: str, height: int, width: int) -> Image:
        frame = self._cameras[source].newest()
        self._stamps[name] = frame.stamp_ns
        return fitted(frame.image, height, width)

    def _state(self) -> Vector:
        """Return the state, (7 + J,): tool position [m] and axis-angle [rad], opening [m], joints [rad]."""
        width_m = max(0.0, self._opening) * self._robot.gripper_width_m
        position, quat = self._tool
        return np.concatenate([position, half_space_rotvec(quat), [width_m], self._joints])

    def _require_link(self) -> None:
        if self._broken:
            raise WorldError("the connection to the arm was lost; arm and reset connect it again.")

    def _require_healthy(self, every: bool) -> None:
        """Check one health register every HEALTH_EVERY_TICKS ticks, or all registers when `every`.

        Raises:
            WorldError: a motor is too hot, reports a fault or does not answer; motors with torque hold their goals.
        """
        if not every and self._ticks % HEALTH_EVERY_TICKS:
            return
        looks = range(3) if every else [self._ticks // HEALTH_EVERY_TICKS]
        for register in looks:
            try:
                unfit = self._device.unfit(register)
            except WorldError:
                self._broken = True
                raise
            if unfit:
                self._unfit = True  # its torque may be off: `reset` reconnects and sets its goal to its position
                raise WorldError(f"{unfit}. Let it cool, and look for what blocks it, before you arm the robot again.")

    def _go_home(self, home: Vector) -> None:
        """Move all joints home so that they arrive together; the fastest one moves at the recipe's speed."""
        start, opening = self._joints.copy(), self._opening
        duration_s = float(np.abs(home - start).max()) / np.radians(self._robot.home_speed_deg_s)
        steps = max(round(duration_s * HOME_RATE_HZ), 1)
        ticker = Ticker(self._clock, round(NS_PER_S / HOME_RATE_HZ))
        for step in range(1, steps + 1 + round(HOME_SETTLE_S * HOME_RATE_HZ)):
            share = min(step / steps, 1.0)
            goal = start + share * (home - start)
            # At most a step from the measured joints: if something blocks the arm, the goal waits there.
            goal = self._joints + np.clip(goal - self._joints, -self._max_step, self._max_step)
            try:
                self.motors.send(goal, opening + share * (self._robot.home_gripper - opening))
            except WorldError:
                self._broken = True
                raise
            ticker.wait()
            self._sense()
            self._aim_at_goal(goal, share)
            if self._interrupted():
                self.stop()
                raise WorldError("the way home was interrupted; the arm holds where it is.")
            if step >= steps and np.abs(home - self._joints).max() < AT_HOME_RAD:
                break
        self._require_home(home)

    def _aim_at_goal(self, goal: Vector, share: float) -> None:
        self._goal = goal
        self._opening_goal = self._robot.home_gripper if share == 1 else self._opening
        self._target, self._target_quat = self._model.pose(goal)

    def _require_home(self, home: Vector) -> None:
        errors = np.abs(home - self._joints)
        if errors.max() >= HOME_ERROR_RAD:
            worst = int(errors.argmax())
            self.stop()
            raise WorldError(
                f"the arm did not get home: joint '{self._model.names[worst]}' is at "
                f"{np.degrees(self._joints[worst]):.0f}°, home is {np.degrees(home[worst]):.0f}°. "
                "Remove what is in its way, then reset again."
            )


class DryDevice:
    """The motors in a dry run: they are read, and get neither torque nor goals. Every sixth goal is shown instead."""

    SHOWN_EVERY = 6

    def __init__(self, device: LerobotDevice, joints: Sequence[str], show: Callable[[str], None]) -> None:
        self._device, self._names, self._show = device, [*joints, "gripper"], show
        self._asked = 0

    def connect(self) -> None:
        self._device.open_quietly()
        if not self._device.matches_calibration():
            raise WorldError(
                "the arm's calibration file differs from its motors' calibration: a dry run would show wrong angles. "
                f"Calibrate it: {self._device.calibrate_command}."
            )

    def reopen(self) -> None:
        self._device.close()
        self._device.open_quietly()

    def read(self) -> tuple[Vector, float]:
        return self._device.read()

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Show the goals. Return the measured joints and opening, since nothing was sent."""
        now, open_now = self._device.read()
        if self._asked % self.SHOWN_EVERY == 0:
            pairs = zip(
                self._names, [*np.degrees(now), 100 * open_now], [*np.degrees(joints), 100 * opening], strict=True
            )
            self._show("would send  " + "  ".join(f"{n} {a:+.1f} -> {b:+.1f}" for n, a, b in pairs))
        self._asked += 1
        return now, open_now

    def unfit(self, register: int) -> str:
        return self._device.unfit(register)

    def health(self) -> dict[str, Health]:
        return self._device.health()

    def close(self) -> None:
        self._device.close()


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal of the arm.

    Attributes:
        position: (3,) position of the tool, base frame [m].
        quat: (4,) orientation of the tool, base frame, w first.
        joints: (J,) joint angles [rad].
        opening: opening of the gripper, 0 closed to 1 open.
    """

    position: Vector
    quat: Vector
    joints: Vector
    opening: float


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


def home_joints(recipe: RealArmRecipe, model: ArmModel) -> Vector | None:
    """Return the joint angles at which episodes begin, (J,) [rad]; None where the recipe names none.

    Raises:
        RecipeError: a joint is unknown, missing, or out of its range.
    """
    home = recipe.robot.home_deg
    if not home:
        return None
    for name in home:
        if name not in model.names:
            raise RecipeError(unknown("joint in [robot.home_deg]", name, model.names))
    if missing := [name for name in model.names if name not in home]:
        raise RecipeError(f"[robot.home_deg] lacks {', '.join(missing)}. Give the angle of each joint [degrees].")
    joints = np.radians([home[name] for name in model.names])
    for name, angle, low, high in zip(model.names, joints, model.low, model.high, strict=True):
        if not low <= angle <= high:
            low_deg, high_deg = np.degrees([low, high])
            raise RecipeError(f"[robot.home_deg] {name} is {home[name]:g}, allowed is {low_deg:.0f} to {high_deg:.0f}.")
    return joints
