"""What every real arm does in the same way, whatever its actions mean: connect, go home, send, hold, stop, observe.

    LerobotArm   tool steps ------> joint goals --.
                                                   >--> ArmBody: motors, cameras, health
    JointArm     joint positions --> joint goals --'

A body has J joints and G grippers, of one arm or of a pair. Its goal is what was sent last. After a failure of the link
it is broken, and only `reset` connects it again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.core.messages import Clamp, Image, Observation, StepResult, Vector, clamps_of
from vla_robot.core.ports import Motors
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.dry_device import DryDevice
from vla_robot.world.real.kinematics.bounds import Bound, last_allowed
from vla_robot.world.real.lerobot_camera import LerobotCamera, fitted
from vla_robot.world.real.lerobot_device import Health, LerobotDevice

STEP, DRIVER = "step", "driver"
"""Causes of a clamp: a joint would have moved too far in one step; lerobot's driver sent less than it was given."""

BOUNDS = "bounds"
"""Stage of a command: its joint goals are checked against the workspace and the clearance of the bodies."""

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


class ArmBody:
    """The joints, grippers and cameras of one of lerobot's robots."""

    def __init__(
        self,
        recipe: RealArmRecipe,
        device: LerobotDevice,
        ranges: tuple[Vector, Vector],
        clearance: Bound | None = None,
        clock: Clock | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Connect and switch the torque on. The arm does not move before `reset`.

        Args:
            recipe: the arm's recipe.
            device: lerobot's robot, not connected yet.
            ranges: smallest and largest joint angles, each (J,) [rad].
            clearance: keeps the bodies apart, also on the way home; None where nothing does.
            clock: stamps the arm's readings; must be the clock of the cameras' stamps.
            interrupted: called during the motion home, when no request is answered; True ends that motion.
            show: makes this a dry run, and is called with the commands that would be sent, in words; the motors are
                only read, without torque.

        Raises:
            RecipeError: the recipe names a camera or a home that does not exist.
            WorldError: port, permission, calibration, motor or camera does not work; nothing was moved.
        """
        self._recipe, self._robot = recipe, recipe.robot
        self._clock = clock or MonotonicClock()
        self._interrupted = interrupted
        self.is_dry = show is not None
        self.joint_names = device.wiring.joints
        self.grippers = device.wiring.grippers
        self.joint_range = ranges
        self._home = None if show else home_joints(recipe, self.joint_names, ranges)
        self._clearance = [] if clearance is None else [clearance]
        self._max_step = recipe.limits.max_joint_step_rad
        self.stages_ms: Mapping[str, float] = {}
        """BOUNDS -> time of the newest check of a goal against all bounds [ms]."""
        self._device: LerobotDevice | DryDevice = DryDevice(device, show) if show else device
        sources = {c.source for c in recipe.cameras if c.source}
        self.motors: Motors = self._device
        """Port to the motors. It may be replaced by a wrapper, such as set points, before `reset`."""
        self._cameras: dict[str, LerobotCamera] = {}
        self._step = self._ticks = 0
        self._broken = self._unfit = False
        self.stamps_ns: dict[str, int] = {}
        """Camera -> stamp of the frame that was read last [ns]."""
        try:
            for source in sorted(sources):
                self._cameras[source] = LerobotCamera(source, self._robot.cameras[source])
            self._device.connect()
            self.joints, self.openings = self.motors.read()
        except BaseException:
            self.close()
            raise
        self.goal, self.opening_goals = self.joints.copy(), self.openings.copy()

    @property
    def health(self) -> dict[str, Health]:
        return self._device.health()

    def reset(self) -> None:
        """Reconnect if the link was lost, then move home slowly.

        Raises:
            WorldError: the arm does not answer, is interrupted, or does not get home; it stays where it is.
        """
        if self._broken or self._unfit:
            self._device.reopen()
            self._broken = self._unfit = False
        self.sense()
        self.goal, self.opening_goals = self.joints.copy(), self.openings.copy()
        self._require_healthy(every=True)
        if self._home is not None:
            self._go_home(self._home)
        self._step = 0

    def allowed(self, joints: Vector, bounds: Sequence[Bound] = ()) -> tuple[Vector, tuple[Clamp, ...]]:
        """Return joint goals (J,) [rad] within the largest step from the measured joints and within all bounds.

        Args:
            joints: (J,) wanted goals [rad].
            bounds: bounds beside the clearance.

        Returns:
            The goals, and the clamps of what was cut. Where the recipe says "reject", goals that a bound cuts are the
            ones that were sent last.

        Raises:
            WorldError: a bound cuts the goals, and the recipe says "stop".
        """
        near = self._at_most_a_step(joints)
        begun_ns = self._clock.now_ns()
        inside, cause = last_allowed(self.goal, near, (*bounds, *self._clearance))
        self.stages_ms = {BOUNDS: (self._clock.now_ns() - begun_ns) / NS_PER_MS}
        if cause and self._recipe.limits.on_violation == "stop":
            raise WorldError(f"a limit: {cause}. The arm stops until it is armed again.")
        if cause and self._recipe.limits.on_violation == "reject":
            inside = self.goal
        cut = clamps_of(self.joint_names, STEP, joints, near, TOLERANCE)
        return inside, (*cut, *clamps_of(self.joint_names, cause, near, inside, TOLERANCE))

    def follow(self, joints: Vector, openings: Vector) -> tuple[Clamp, ...]:
        """Send goals, (J,) [rad] and (G,). Return the clamps of what the driver cut.

        Raises:
            WorldError: the arm does not answer.
        """
        sent, opened = self._sending(joints, openings)
        self.goal, self.opening_goals = sent, opened
        names = (*self.joint_names, *self.grippers)
        cut = clamps_of(names, DRIVER, np.append(joints, openings), np.append(sent, opened), TOLERANCE)
        return () if self.is_dry else cut

    def tick(self, executed: Vector | None, state: Callable[[], Vector]) -> StepResult:
        """Return the result of a tick whose action was sent.

        Args:
            executed: (D,) the action that was sent; None where none was.
            state: returns the arm's state (S,) from the joints that this tick reads.

        Raises:
            WorldError: the arm does not answer, or a motor reports a fault.
        """
        command_ns = self._clock.now_ns()
        self._ticks += 1
        self._require_healthy(every=False)
        self.sense()
        self._step += 1
        return StepResult(
            observation=self.observe(state()),
            executed=executed,
            success=False,
            terminated=False,
            truncated=self._step >= self._recipe.horizon,
            command_ns=command_ns,
        )

    def observe(self, state: Vector) -> Observation:
        """Return an observation of a state (S,), the newest frames, and the time of the last reading of the joints."""
        frames = {c.name: self._frame(c.name, c.source or "", c.height, c.width) for c in self._recipe.cameras}
        stamp_ns = min([self._read_ns, *self.stamps_ns.values()])
        stamps_ns = dict(self.stamps_ns)
        return Observation(frames, state, self._recipe.instruction, stamp_ns, self._step, stamps_ns=stamps_ns)

    def sense(self) -> None:
        """Read the joints and the grippers.

        Raises:
            WorldError: the arm does not answer.
        """
        try:
            self.joints, self.openings = self.motors.read()
        except WorldError:
            self._broken = True
            raise
        self._read_ns = self._clock.now_ns()

    def require_link(self) -> None:
        """Raise WorldError if the link was lost. It is not reconnected here, since that may take seconds."""
        if self._broken:
            raise WorldError("the connection to the arm was lost; arm and reset connect it again.")

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

    def close(self) -> None:
        """Stop, and close the ports; the motors keep their torque, so that the arm does not fall."""
        if hasattr(self, "goal"):
            with contextlib.suppress(WorldError):  # the motors then hold the last goal that reached them
                self.stop()
        self._device.close()
        for camera in self._cameras.values():
            camera.close()

    def _at_most_a_step(self, joints: Vector) -> Vector:
        return self.joints + np.clip(joints - self.joints, -self._max_step, self._max_step)

    def _sending(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        try:
            return self.motors.send(joints, openings)
        except WorldError:
            self._broken = True
            raise

    def _cancel_goal(self) -> None:
        self.sense()
        near = self.joints + np.clip(self.goal - self.joints, -STOP_SLACK_RAD, STOP_SLACK_RAD)
        self.motors.send(near, self.opening_goals)
        self.goal = near

    def _frame(self, name: str, source: str, height: int, width: int) -> Image:
        frame = self._cameras[source].newest()
        self.stamps_ns[name] = frame.stamp_ns
        return fitted(frame.image, height, width)

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
        start, openings = self.joints.copy(), self.openings.copy()
        duration_s = float(np.abs(home - start).max()) / np.radians(self._robot.home_speed_deg_s)
        steps = max(round(duration_s * HOME_RATE_HZ), 1)
        ticker = Ticker(self._clock, round(NS_PER_S / HOME_RATE_HZ))
        for step in range(1, steps + 1 + round(HOME_SETTLE_S * HOME_RATE_HZ)):
            share = min(step / steps, 1.0)
            # At most a step from the measured joints: if something blocks the arm, the goal waits there.
            goal, cause = last_allowed(self.goal, self._at_most_a_step(start + share * (home - start)), self._clearance)
            if cause:
                self.stop()
                raise WorldError(
                    f"the way home ends at a {cause}. Move the arm nearer to home by hand, then reset again."
                )
            self._sending(goal, openings + share * (self._robot.home_gripper - openings))
            ticker.wait()
            self.sense()
            self.goal = goal
            self.opening_goals = np.full(len(openings), self._robot.home_gripper) if share == 1 else self.openings
            if self._interrupted():
                self.stop()
                raise WorldError("the way home was interrupted; the arm holds where it is.")
            if step >= steps and np.abs(home - self.joints).max() < AT_HOME_RAD:
                break
        self._require_home(home)

    def _require_home(self, home: Vector) -> None:
        errors = np.abs(home - self.joints)
        if errors.max() >= HOME_ERROR_RAD:
            worst = int(errors.argmax())
            self.stop()
            raise WorldError(
                f"the arm did not get home: joint '{self.joint_names[worst]}' is at "
                f"{np.degrees(self.joints[worst]):.0f}°, home is {np.degrees(home[worst]):.0f}°. "
                "Remove what is in its way, then reset again."
            )


def home_joints(recipe: RealArmRecipe, names: tuple[str, ...], ranges: tuple[Vector, Vector]) -> Vector | None:
    """Return the joint angles at which episodes begin, (J,) [rad]; None where the recipe names none.

    Args:
        recipe: the arm's recipe.
        names: (J,) names of the joints.
        ranges: smallest and largest joint angles, each (J,) [rad].

    Raises:
        RecipeError: a joint is unknown, missing, or out of its range.
    """
    home: Mapping[str, float] = recipe.robot.home_deg
    if not home:
        return None
    for name in home:
        if name not in names:
            raise RecipeError(unknown("joint in [robot.home_deg]", name, names))
    if missing := [name for name in names if name not in home]:
        raise RecipeError(f"[robot.home_deg] lacks {', '.join(missing)}. Give the angle of each joint [degrees].")
    for name, low, high in zip(names, *ranges, strict=True):
        if not low <= math.radians(home[name]) <= high:
            low_deg, high_deg = np.degrees([low, high])
            raise RecipeError(f"[robot.home_deg] {name} is {home[name]:g}, allowed is {low_deg:.0f} to {high_deg:.0f}.")
    return np.radians([home[name] for name in names])
