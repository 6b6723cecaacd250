"""`vla doctor --robot`: checks whether an arm is ready, without torque or motion.

With a recipe, the arm's own computer checks its port, motors, calibration, cameras and limits; with an address, the
running bridge returns its status.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_robot.cli.build import build_limits, connect_robot
from vla_robot.cli.doctor.finding import Finding, Verdict
from vla_robot.core.clock import NS_PER_MS, NS_PER_S
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, VlaError
from vla_robot.core.messages import Vector
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe, RealArmRecipe
from vla_robot.recipe.robot import RobotRecipe

if TYPE_CHECKING:
    from vla_robot.world.real.camera_stamps import Frame
    from vla_robot.world.real.lerobot_camera import LerobotCamera
    from vla_robot.world.real.lerobot_device import LerobotDevice

OLD_CALIBRATION_DAYS = 90
CAMERA_LOOK_S = 1.0
CAMERA_OLD_MS = 100.0
MANY_OFFSET_MS = 5.0
MIN_VOLTAGE_SHARE = 0.9
WARM_SHARE = 0.85
"""Share of the temperature that stops the arm, above which a motor is reported as warm."""


def examine_robot(robot: str) -> list[Finding]:
    """Return all findings about an arm, by its recipe or its bridge's address.

    Raises:
        RecipeError: no such recipe, or a simulation's.
    """
    if "://" in robot:
        return list(_safely("bridge", lambda: check_bridge(robot)))
    path = find("envs", robot)
    recipe = read(EnvRecipe, path)
    if not isinstance(recipe, RealArmRecipe):
        raise RecipeError(f"{path} is a simulation; `vla doctor` without --robot checks it.")
    return [Finding("recipe", str(path)), *_safely("arm", lambda: _examine_arm(recipe)), *_examine_cameras(recipe)]


def check_bridge(address: str) -> Iterator[Finding]:
    """Yield findings from the status of a running bridge, which must have no controller."""
    with connect_robot(address) as robot:
        status, offset = robot.status(), robot.offset
        seen = f"{status['mode']}: {status['reason']}" + (", dry run" if status.get("dry_run") else "")
        fix = "" if status["mode"] != "stopped" else "Fix this cause; the next controller arms it."
        yield Finding("bridge", seen, "ok" if status["mode"] != "stopped" else "fail", fix)
        embodiment = robot.embodiment
        cameras = ", ".join(c.name for c in embodiment.cameras) or "none"
        yield Finding("arm", f"{embodiment.name} at {embodiment.rate_hz:g} Hz, cameras {cameras}")
        ahead_ms, bound_ms = offset.offset_ns / NS_PER_MS, offset.bound_ns / NS_PER_MS
        fix = "The network is slow: use a cable, or a nearer access point." if bound_ms > MANY_OFFSET_MS else ""
        yield Finding("clock offset", f"{ahead_ms:.2f} ms, known to {bound_ms:.2f} ms", "warn" if fix else "ok", fix)
        missed = status["counts"]["missed_ticks"]
        yield Finding("missed ticks", str(missed), "warn" if missed else "ok", "End other programs." if missed else "")


def _examine_arm(recipe: RealArmRecipe) -> Iterator[Finding]:
    body = bare_body(recipe)
    device = body.device
    yield from _safely("limits", lambda: check_limits(recipe, body))
    yield check_step(recipe, device)
    yield from check_calibration_files(device)
    yield from (check_port(port) for port in device.port.split(", "))
    try:
        device.open_quietly()
        yield from check_motors(recipe.robot, device)
        yield check_calibration(device)
        yield check_pose(body)
    finally:
        device.close()


@dataclass(frozen=True)
class BareBody:
    """An arm that is not connected.

    Attributes:
        device: lerobot's robot.
        embodiment: the arm's embodiment.
        ranges: smallest and largest joint angles, each (J,) [rad].
        tool: returns the (3,) position of the tool [m] at joint angles [rad]; None where no scene tells it.
    """

    device: LerobotDevice
    embodiment: Embodiment
    ranges: tuple[Vector, Vector]
    tool: Callable[[Vector], Vector] | None

    @property
    def names(self) -> tuple[str, ...]:
        """(J,) names of the joints."""
        return self.device.wiring.joints


def bare_body(recipe: RealArmRecipe) -> BareBody:
    """Return the arm of a recipe, without connecting to it. Raises RecipeError as the arm itself would."""
    from vla_robot.world.real.joint_arm import joint_embodiment, joint_ranges
    from vla_robot.world.real.lerobot_arm import arm_embodiment, scene_model
    from vla_robot.world.real.lerobot_device import LerobotDevice

    step_rad = recipe.limits.max_joint_step_rad
    if recipe.robot.actions == "joints":
        device = LerobotDevice(recipe.robot, None, step_rad)
        ranges = joint_ranges(recipe, device.wiring)
        return BareBody(device, joint_embodiment(recipe, device.wiring, ranges), ranges, None)
    model = scene_model(recipe)
    device = LerobotDevice(recipe.robot, model.names, step_rad)
    embodiment = arm_embodiment(recipe, model)
    return BareBody(device, embodiment, (model.low, model.high), lambda joints: model.pose(joints)[0])


def check_port(port: str) -> Finding:
    """Return whether another program uses the port: two at once garble each other's packets."""
    users = _users_of(port)
    if users:
        return Finding("port", f"{port}, in use by process {', '.join(users)}", "fail", "End that program first.")
    return Finding("port", port)


def check_motors(robot: RobotRecipe, device: LerobotDevice) -> Iterator[Finding]:
    health = device.health()
    usual_v = float(np.median([h.voltage_v for h in health.values()]))
    for name, motor in health.items():
        seen = f"{motor.temperature_c:g} °C, {motor.voltage_v:.1f} V"
        if motor.faults:
            yield Finding(f"motor {name}", f"{seen}, reports: {', '.join(motor.faults)}", "fail", _MOTOR_FIX)
        elif motor.temperature_c > robot.max_temperature_c:
            yield Finding(f"motor {name}", seen, "fail", f"Let it cool below {robot.max_temperature_c:g} °C.")
        elif motor.temperature_c > WARM_SHARE * robot.max_temperature_c:
            yield Finding(f"motor {name}", seen, "warn", "It is warm: pause between episodes.")
        elif motor.voltage_v < MIN_VOLTAGE_SHARE * usual_v:
            yield Finding(f"motor {name}", seen, "warn", f"The others have {usual_v:.1f} V: check its cable.")
        else:
            yield Finding(f"motor {name}", seen)


def check_calibration_files(device: LerobotDevice) -> Iterator[Finding]:
    for file in device.calibration_files:
        if not file.is_file():
            yield Finding("calibration", f"no file {file}", "fail", device.calibrate_command)
            continue
        days = (time.time() - file.stat().st_mtime) / 86400
        old = days > OLD_CALIBRATION_DAYS
        fix = "Repeat it if a horn was loosened." if old else ""
        yield Finding("calibration", f"{days:.0f} days old: {file}", "warn" if old else "ok", fix)


def check_calibration(device: LerobotDevice) -> Finding:
    if device.matches_calibration():
        return Finding("calibration in the motors", "as in the file")
    return Finding("calibration in the motors", "differs from the file", "fail", device.calibrate_command)


def check_pose(body: BareBody) -> Finding:
    """Return whether the joints are within their ranges; if far outside, they were calibrated in a wrong pose."""
    joints, _ = body.device.read()
    low, high = body.ranges
    beyond = np.maximum(low - joints, joints - high)
    worst = int(beyond.argmax())
    seen = ", ".join(f"{n} {math.degrees(a):.0f}°" for n, a in zip(body.names, joints, strict=True))
    if beyond[worst] > math.radians(5):
        out = f"{body.names[worst]} is {math.degrees(beyond[worst]):.0f}° out of range"
        return Finding("pose", seen, "fail", f"{out}: {body.device.calibrate_command}")
    return Finding("pose", seen)


def check_limits(recipe: RealArmRecipe, body: BareBody) -> Iterator[Finding]:
    """Yield the limits, and whether the home pose lies within them."""
    from vla_robot.world.real.arm_body import home_joints

    build_limits(body.embodiment, recipe)
    yield _joint_limits(recipe) if body.tool is None else _tool_limits(recipe)
    home = home_joints(recipe, body.names, body.ranges)
    if home is None:
        yield Finding("home", "none: episodes start at the arm's current pose")
    elif body.tool is None:
        yield Finding("home", "within the joints' ranges")
    else:
        yield _home_in_workspace(recipe, body.tool(home))


def _joint_limits(recipe: RealArmRecipe) -> Finding:
    limits = recipe.limits
    seen = (
        f"joint positions, {limits.max_speed_rad_s:g} rad/s, {limits.max_acceleration_rad_s2:g} rad/s2, "
        f"{recipe.rate_hz:g} Hz"
    )
    return Finding("limits", seen)


def _tool_limits(recipe: RealArmRecipe) -> Finding:
    from vla_robot.world.real.lerobot_arm import workspace

    limits = recipe.limits
    low, high = workspace(recipe)
    speed = limits.max_speed_m_s or recipe.max_step_m * recipe.rate_hz
    fix = "" if limits.workspace_low and limits.workspace_high else "Give workspace_low and workspace_high in [limits]."
    seen = f"workspace {_corner(low)} to {_corner(high)} m, {speed:g} m/s, {recipe.rate_hz:g} Hz"
    return Finding("limits", seen, "warn" if fix else "ok", fix)


def _home_in_workspace(recipe: RealArmRecipe, tool: Vector) -> Finding:
    from vla_robot.world.real.lerobot_arm import workspace

    low, high = workspace(recipe)
    inside = bool(((tool >= low) & (tool <= high)).all())
    fix = "" if inside else "Widen the workspace, or change [robot.home_deg]."
    return Finding("home", f"tool at {_corner(tool)} m", "ok" if inside else "fail", fix)


def check_step(recipe: RealArmRecipe, device: LerobotDevice) -> Finding:
    ours_deg, theirs_deg = math.degrees(recipe.limits.max_joint_step_rad), device.limited_to_deg
    if theirs_deg is None:
        return Finding("largest step", f"{ours_deg:.1f}° a joint, by vla alone: lerobot has no limit for this robot")
    agree = math.isclose(ours_deg, theirs_deg, rel_tol=1e-6)
    seen = f"{ours_deg:.1f}° a joint, lerobot's max_relative_target {theirs_deg:.1f}°"
    return Finding("largest step", seen, "ok" if agree else "fail", "" if agree else "Make them equal.")


def _examine_cameras(recipe: RealArmRecipe) -> Iterator[Finding]:
    from vla_robot.world.real.lerobot_camera import camera_clock_offset_ns

    for source in sorted({c.source for c in recipe.cameras if c.source}):
        yield from _safely(f"camera {source}", lambda source=source: _check_camera(recipe, source))
    if recipe.cameras:
        offset_ms = camera_clock_offset_ns() / NS_PER_MS
        fix = "" if abs(offset_ms) < MANY_OFFSET_MS else "Frames would seem too old or too new on this system."
        yield Finding("camera clock offset", f"{offset_ms:.3f} ms from ours", "fail" if fix else "ok", fix)


def _check_camera(recipe: RealArmRecipe, source: str) -> Iterator[Finding]:
    from vla_robot.world.real.lerobot_camera import LerobotCamera

    camera = LerobotCamera(source, recipe.robot.cameras[source])
    try:
        frames = _watch(camera)
        age_ms = (time.monotonic_ns() - frames[-1].stamp_ns) / NS_PER_MS
        moment = camera.moment()
    finally:
        camera.close()
    seen, verdict, fix = judge_camera(frames, moment, age_ms, recipe.rate_hz)
    yield Finding(f"camera {source}", seen, verdict, fix)


def judge_camera(frames: Sequence[Frame], moment: str, age_ms: float, needed_hz: float) -> tuple[str, Verdict, str]:
    """Return the result in words, the verdict, and the fix.

    Args:
        frames: frames of CAMERA_LOOK_S, and the one before them.
        moment: meaning of the driver's timestamps, in words; "" if unknown.
        age_ms: age of the newest frame [ms].
        needed_hz: the arm's control rate [Hz].
    """
    height, width, _ = frames[-1].image.shape
    rate_hz = (len(frames) - 1) / CAMERA_LOOK_S
    seen = f"{width}x{height} at {rate_hz:.0f} Hz, {_whose_stamps(frames, moment)}, newest frame {age_ms:.0f} ms old"
    if rate_hz < 0.8 * needed_hz:
        return seen, "warn", f"The arm runs at {needed_hz:g} Hz: use a smaller picture, fourcc MJPG, or more light."
    if age_ms > CAMERA_OLD_MS:
        return seen, "warn", "Frames are queued: use another port or backend."
    if any(frame.fault for frame in frames):
        return seen, "warn", _STAMP_FIX
    return seen, "ok", ""


def _watch(camera: LerobotCamera) -> list[Frame]:
    """Return the frames of CAMERA_LOOK_S in order of arrival, and the one before them."""
    frames = [camera.newest()]
    end_ns = time.monotonic_ns() + round(CAMERA_LOOK_S * NS_PER_S)
    while time.monotonic_ns() < end_ns:
        frame = camera.newest()
        if frame.stamp_ns != frames[-1].stamp_ns:
            frames.append(frame)
        time.sleep(0.002)
    return frames


def _whose_stamps(frames: Sequence[Frame], moment: str) -> str:
    """Return the origin of the timestamps, and what the age leaves out."""
    at_arrival = [frame for frame in frames if frame.stamped_by == "arrival"]
    if at_arrival:
        some = f"{len(at_arrival)} of {len(frames)} frames " if len(at_arrival) < len(frames) else ""
        why = next((frame.fault for frame in at_arrival if frame.fault), "the driver gives no capture time")
        return f"{some}stamped at arrival, which leaves out exposure and transfer: {why}"
    lead_ms = float(np.median([frame.arrived_ns - frame.stamp_ns for frame in frames])) / NS_PER_MS
    when = f"{moment}, {lead_ms:.0f}" if moment else f"{lead_ms:.0f}"
    return f"stamped by the driver {when} ms before it came"


def _safely(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield a check's findings; an error becomes a finding."""
    try:
        yield from check()
    except VlaError as error:
        yield Finding(name, str(error), "fail", "Fix this error.")


def _users_of(port: str) -> list[str]:
    """Return the ids of other processes that have the port open; Linux only, empty elsewhere."""
    target = os.path.realpath(port)
    users: list[str] = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        if folder.parent.name == str(os.getpid()):
            continue
        try:
            held = any(os.path.realpath(link) == target for link in folder.iterdir())
        except OSError:  # the process ended, or belongs to another user
            continue
        users += [folder.parent.name] if held else []
    return users


def _corner(point: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in point) + ")"


_MOTOR_FIX = "Switch its supply off, free the joint, let the motor cool, switch the supply on."
_STAMP_FIX = (
    "With uvcvideo, clock in /sys/module/uvcvideo/parameters/ should be CLOCK_MONOTONIC, and hwtimestamps 0; then plug "
    "the camera in again."
)
