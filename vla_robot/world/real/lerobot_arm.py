"""Real-robot driver (LeRobot) that implements the Arm port: tool motions in, joint goals out.

    action --> target pose --> lead --> workspace --> inverse kinematics --> joint step --> motors
                   ^           (not too far ahead of where the tool is measured)   |
                   '---------------------- kept from tick to tick -----------------'

The target is kept, and moved by each action, rather than set from where the tool is measured: a motor with a position
controller hangs a little below its goal, so an arm that is told "stay where you are measured" at every tick sinks. It
may lead the measured tool by `max_lead_m` and `max_lead_rad` at most. Whatever is cut on the way is told as a clamp:
the lead, the workspace, the joint step, and what lerobot's own driver allows. After a cut of the joints the target is
where they were sent.

Reported as executed is the tool motion of the joints that were sent, by forward kinematics: an arm of five joints
cannot follow each rotation, and inverse kinematics has a remaining error.

What is not done here: when to move, how fast, and what to refuse. See vla_robot/serve/bridge/bridge.py.
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
"""Causes of a clamp: the target ran ahead of the tool; it lay outside of the workspace; a joint would have leapt;
lerobot's driver sent less than it was told."""

TURNS = ("droll", "dpitch", "dyaw")
GRIPPER = "gripper"

TOLERANCE = 1e-6
"""Metres or radians below which two numbers are one: degrees and back costs a few of the last bits."""

HOME_RATE_HZ = 50.0
AT_HOME_RAD = 0.02
"""Nearer need not be waited for: a joint's own weight keeps it about half a degree away."""
HOME_ERROR_RAD = 0.1
"""A joint that is further from home than this when the way is over did not get there: something blocks it."""
HOME_SETTLE_S = 1.0

STOP_SLACK_RAD = 0.06
"""A goal that is this near is kept when the arm stops: it holds the arm up against its own weight. A further one is one
that the arm was on its way to."""

STOP_TRIES = 2
"""One answer that is lost on the bus must not leave the arm on its way."""

HEALTH_EVERY_TICKS = 5
"""One register of the motors is looked at: each of three, twice a second at 30 Hz."""


def always_false() -> bool:
    """Never interrupts."""
    return False


class LerobotArm:
    """The Arm port of the bridge over one of lerobot's robots."""

    can_wait = False

    def __init__(
        self,
        recipe: RealArmRecipe,
        clock: Clock | None = None,
        interrupted: Callable[[], bool] = always_false,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Connect. The torque goes on; nothing moves before `reset`.

        Args:
            recipe: of the arm.
            clock: stamps the arm's readings; the clock of the cameras' stamps.
            interrupted: asked on the way home, where no request is answered otherwise; True ends the way.
            show: for a dry run: is told what would be sent, in words; the motors are read only, without torque.

        Raises:
            RecipeError: the recipe names something that lerobot or the scene lacks.
            WorldError: port, permission, calibration, motor or camera is at fault; nothing was moved.
            MissingDependencyError: the extra [arm] is not installed.
        """
        self._recipe, self._robot = recipe, recipe.robot
        self._clock = clock or MonotonicClock()
        self._interrupted = interrupted
        self._is_dry = show is not None
        self._model = ArmModel(recipe.scene)
        self._home = None if show else home_joints(recipe, self._model)
        self._max_step = recipe.limits.max_joint_step_rad
        self._embodiment = arm_embodiment(recipe, self._model)
        self._low, self._high = workspace(recipe)
        device = LerobotDevice(self._robot, self._model.names, recipe.limits.max_joint_step_rad)
        self._device: LerobotDevice | DryDevice = DryDevice(device, self._model.names, show) if show else device
        sources = {c.source for c in recipe.cameras if c.source}
        self.motors: Motors = self._device
        """Read and told through this; a wrapper of it, such as set points, is put in place before `reset`."""
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
    def embodiment(self) -> Embodiment:
        return self._embodiment

    @property
    def instruction(self) -> str:
        return self._recipe.instruction

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._stamps

    @property
    def joints(self) -> Vector:
        """(J,) as measured last [rad]."""
        return self._joints

    @property
    def goal(self) -> Vector:
        """(J,) that the motors were told last [rad]."""
        return self._goal

    @property
    def joint_names(self) -> tuple[str, ...]:
        """(J,) from the base to the tool."""
        return self._model.names

    @property
    def joint_range(self) -> tuple[Vector, Vector]:
        """(J,) smallest and largest angles [rad]."""
        return self._model.low, self._model.high

    @property
    def health(self) -> dict[str, Health]:
        return self._device.health()

    def reset(self, seed: int) -> Observation:
        """Connect again if need be, then go home, slowly.

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
        """Move the target by one action, and send the motors there.

        Returns:
            `executed` is the tool's motion [m, rad in the base frame] from the joints that were sent before to those
            that were sent now, and the gripper's goal; None in a dry run, which sends nothing.

        Raises:
            ContractError: the action is not one of this arm's.
            WorldError: the arm does not answer, or a motor is at fault.
        """
        values = check_action(action, self._embodiment.action)
        self._require_link()
        goal, clamps = self._solve_targets(values)
        before = self._model.pose(self._goal)
        clamps += self._follow(goal)
        return dataclasses.replace(self._tick(self._motion_since(before)), clamps=clamps)

    def _motion_since(self, before: tuple[Vector, Vector]) -> Vector | None:
        """(7,) what the joints that were sent mean as an action, after a pose that was sent before."""
        if self._is_dry:
            return None
        position, quat = self._model.pose(self._goal)
        return np.array([*(position - before[0]), *rotvec_between(before[1], quat), self._opening_goal])

    def _solve_targets(self, action: Vector) -> tuple[Goal, tuple[Clamp, ...]]:
        """What an action makes of the goals, and what was cut."""
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
        if cut:  # the target does not run ahead of what the motors are told
            position, quat = self._model.pose(allowed)
        return Goal(position, quat, allowed, float(action[-1])), (*clamps, *cut)

    def hold(self) -> StepResult:
        """The motors hold their goals by themselves."""
        self._require_link()
        return self._tick(None if self._is_dry else np.append(np.zeros(6), self._opening_goal))

    def look(self) -> Observation:
        """The joints and the frames as they are. A link that was lost is not tried again here: that may take seconds.

        Raises:
            WorldError: the arm does not answer, or a camera never gave a frame.
        """
        self._require_link()
        self._sense()
        return self._observe()

    def stop(self) -> None:
        """Goals that the arm was on its way to are taken back; those that hold it up stay.

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
        """Stop, and let go of the port; the motors keep their torque, so that nothing falls."""
        if hasattr(self, "_goal"):
            with contextlib.suppress(WorldError):  # as before: the motors hold the last goal that reached them
                self.stop()
        self._device.close()
        for camera in self._cameras.values():
            camera.close()

    def _aim(self, joints: Vector, opening: float) -> None:
        """The target is where these joints bring the tool."""
        self._goal, self._opening_goal = joints.copy(), opening
        self._target, self._target_quat = self._model.pose(joints)
        self._tool = self._model.pose(self._joints)

    def _follow(self, goal: Goal) -> tuple[Clamp, ...]:
        """Send a goal; what the driver cut of it."""
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
            # lerobot measured again; where it allowed less, the target is where it sends the arm.
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
        """The frames as they are, and the joints as they were read a moment ago."""
        frames = {c.name: self._frame(c.name, c.source or "", c.height, c.width) for c in self._recipe.cameras}
        stamp_ns = min([self._read_ns, *self._stamps.values()])
        stamps_ns = dict(self._stamps)
        return Observation(frames, self._state(), self._recipe.instruction, stamp_ns, self._step, stamps_ns=stamps_ns)

    def _frame(self, name: str, source: str, height: int, width: int) -> Image:
        frame = self._cameras[source].newest()
        self._stamps[name] = frame.stamp_ns
        return fitted(frame.image, height, width)

    def _state(self) -> Vector:
        """Tool position [m] and axis-angle [rad], opening [m], joints [rad]."""
        width_m = max(0.0, self._opening) * self._robot.gripper_width_m
        position, quat = self._tool
        return np.concatenate([position, half_space_rotvec(quat), [width_m], self._joints])

    def _require_link(self) -> None:
        if self._broken:
            raise WorldError("the connection to the arm was lost; arm and reset connect it again.")

    def _require_healthy(self, every: bool) -> None:
        """Look at one register of the motors now and then, or at all of them.

        Raises:
            WorldError: a motor is too hot, or reports a fault; the arm is held by whatever torque is left.
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
                self._unfit = True  # its torque may be off: to be held anew where it is
                raise WorldError(f"{unfit}. Let it cool, and look for what blocks it, before you arm the robot again.")

    def _go_home(self, home: Vector) -> None:
        """All joints arrive together; the fastest one has the speed of the recipe."""
        start, opening = self._joints.copy(), self._opening
        duration_s = float(np.abs(home - start).max()) / np.radians(self._robot.home_speed_deg_s)
        steps = max(round(duration_s * HOME_RATE_HZ), 1)
        ticker = Ticker(self._clock, round(NS_PER_S / HOME_RATE_HZ))
        for step in range(1, steps + 1 + round(HOME_SETTLE_S * HOME_RATE_HZ)):
            share = min(step / steps, 1.0)
            goal = start + share * (home - start)
            # Never further than a step from where the arm is: if something blocks it, the goal waits there.
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
                "Is something in the way?"
            )


class DryDevice:
    """An arm that is read and told nothing: no torque, no goals. What would be sent is shown, some times a second."""

    SHOWN_EVERY = 6

    def __init__(self, device: LerobotDevice, joints: Sequence[str], show: Callable[[str], None]) -> None:
        self._device, self._names, self._show = device, [*joints, "gripper"], show
        self._asked = 0

    def connect(self) -> None:
        self._device.open_quietly()
        if not self._device.matches_calibration():
            raise WorldError("the arm's calibration file is not the motors': a dry run would show wrong angles.")

    def reopen(self) -> None:
        self._device.close()
        self._device.open_quietly()

    def read(self) -> tuple[Vector, float]:
        return self._device.read()

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Show the goals; what came of them is where the arm is."""
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
    """Where the arm is sent.

    Attributes:
        position: (3,) of the tool, base frame [m].
        quat: (4,) of the tool, base frame, w first.
        joints: (J,) [rad].
        opening: of the gripper, 0 to 1.
    """

    position: Vector
    quat: Vector
    joints: Vector
    opening: float


def arm_embodiment(recipe: RealArmRecipe, model: ArmModel) -> Embodiment:
    """Tool motions as every world here takes them; the state tells the joints too, after what other worlds tell."""
    embodiment = embodiment_of(recipe, recipe.arm.lower(), model.reach_m)
    joints = tuple(
        Dim(name, "rad", float(low), float(high))
        for name, low, high in zip(model.names, model.low, model.high, strict=True)
    )
    return dataclasses.replace(embodiment, state=(*embodiment.state, *joints))


def workspace(recipe: RealArmRecipe) -> tuple[Vector, Vector]:
    """(3,) smallest and largest position of the tool's target [m]."""
    low, high = recipe.limits.workspace_low, recipe.limits.workspace_high
    return np.array(low or (-np.inf,) * 3), np.array(high or (np.inf,) * 3)


def home_joints(recipe: RealArmRecipe, model: ArmModel) -> Vector | None:
    """(J,) where episodes begin [rad]; None: where the arm happens to be.

    Raises:
        RecipeError: a joint is unknown, missing, or cannot be there.
    """
    home = recipe.robot.home_deg
    if not home:
        return None
    for name in home:
        if name not in model.names:
            raise RecipeError(unknown("joint in [robot.home_deg]", name, model.names))
    if missing := [name for name in model.names if name not in home]:
        raise RecipeError(f"[robot.home_deg] says nothing of {', '.join(missing)}.")
    joints = np.radians([home[name] for name in model.names])
    for name, angle, low, high in zip(model.names, joints, model.low, model.high, strict=True):
        if not low <= angle <= high:
            low_deg, high_deg = np.degrees([low, high])
            raise RecipeError(f"[robot.home_deg] {name} is {home[name]:g}, allowed is {low_deg:.0f} to {high_deg:.0f}.")
    return joints
