"""A scripted expert that puts one object in or on another, whatever their sizes.

It is told boxes around both, and a point of the object's rim beside which there is room for a finger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_robot.core.embodiment import GRIPPER_CLOSED, GRIPPER_OPEN
from vla_robot.core.errors import PolicyError
from vla_robot.core.geometry import matrix_from_rotvec
from vla_robot.core.messages import Observation, Vector
from vla_robot.policy.scripted.tool import TOOL_DOWN, turn_to


@dataclass(frozen=True)
class Placing:
    """Parameters of picking a named object from above and dropping it over its place. Lengths in m.

    Attributes:
        gain: times the position error that a step commands; the controller covers about a fifth of it in a step.
        depth: how far below the object's top the fingers hold it.
        least_height: least height of the fingers over the object's bottom.
        widest: an object wider than this along y is held by its rim.
        rim: how far inside its outer edge a rim is held.
        rim_depth: how far below its top.
        rim_opening: width of the gripper that comes down over a rim: fingers wide open would meet what stands around
            it, e.g. the front of a drawer.
        rim_closed: below this width the gripper closes on a rim.
        hover: height over the grasp from which the tool comes down.
        travel: height over that at which the tool comes from afar, over what stands between.
        steepness: of the funnel over the grasp: height over horizontal error.
        reach: distance within which the fingers may close.
        clearance: height of the object's bottom over its place's top while it is carried.
        drop: the same when it is let go.
        over: horizontal error at which it is let go.
        open_width: the gripper is open above this.
        still: the fingers have stopped at something below this speed [m/s].
    """

    gain: float = 5.0
    depth: float = 0.03
    least_height: float = 0.015
    widest: float = 0.076
    rim: float = 0.004
    rim_depth: float = 0.014
    rim_opening: float = 0.045
    rim_closed: float = 0.03
    hover: float = 0.10
    travel: float = 0.15
    steepness: float = 8.0
    reach: float = 0.007
    clearance: float = 0.25
    drop: float = 0.02
    over: float = 0.02
    open_width: float = 0.078
    still: float = 0.012


def place(observation: Observation) -> tuple[Vector, float]:
    """Pick the object of the task from above, carry it over its place and let it go."""
    p, truth = Placing(), observation.privileged
    if "target_low" not in truth:
        raise PolicyError("this expert puts one object somewhere, and the task of this world is another.")
    grip = _grip(truth, p)
    move, gripper = _place(truth, grip, p)
    return np.concatenate([move, turn_to(grip.rotation, truth["eef_rot"])]), gripper


@dataclass(frozen=True)
class Grip:
    """Where and how the fingers hold an object.

    Attributes:
        point: (3,) position of the tool [m].
        rotation: (3, 3) rotation of the tool.
        opening: width with which the gripper comes down [m].
        closing: the gripper closes on the object below this width [m].
    """

    point: Vector
    rotation: np.ndarray
    opening: float
    closing: float


def _grip(truth: Mapping[str, Vector], p: Placing) -> Grip:
    """Choose the middle of an object's box, or the point of its rim that the world tells, with a finger inside."""
    low, high = truth["target_low"], truth["target_high"]
    x, y, _ = middle = (low + high) / 2
    if high[1] - low[1] <= p.widest:
        point = np.array([x, y, max(high[2] - p.depth, low[2] + p.least_height)])
        return Grip(point, TOOL_DOWN, opening=math.inf, closing=p.open_width)
    to_rim = truth["target_rim"] - middle
    outwards = to_rim[:2] / np.hypot(*to_rim[:2])
    point = truth["target_rim"] - [*p.rim * outwards, p.rim_depth]
    yaw = -np.arctan2(*outwards)  # turns the axis of the fingers, y, outwards
    rotation = matrix_from_rotvec(np.array([0.0, 0.0, yaw])) @ TOOL_DOWN
    return Grip(point, rotation, opening=p.rim_opening, closing=p.rim_closed)


def _place(truth: Mapping[str, Vector], grip: Grip, p: Placing) -> tuple[Vector, float]:
    """Return the (3,) motion of the tool [m] and the gripper."""
    width, stands_still = truth["gripper_width"][0], truth["finger_speed"][0] < p.still
    error = grip.point - truth["eef_pos"]
    distance = float(np.linalg.norm(error))
    if distance < 3 * p.reach and width < grip.closing:
        return _carried(truth, p) if stands_still else (p.gain * error, GRIPPER_CLOSED)
    if distance < p.reach:
        return p.gain * error, GRIPPER_CLOSED
    off_axis = float(np.hypot(error[0], error[1]))
    height = np.clip(p.steepness * (off_axis - p.reach / 2), 0, p.hover) + np.clip(2 * (off_axis - 0.10), 0, p.travel)
    return _first_up(error + [0, 0, height], p), GRIPPER_OPEN if width < grip.opening else GRIPPER_CLOSED


def _carried(truth: Mapping[str, Vector], p: Placing) -> tuple[Vector, float]:
    """Return the motion of a held object: up, over its place, down to where it is let go; and the gripper."""
    low, high = truth["target_low"], truth["target_high"]
    across = (truth["place_low"] + truth["place_high"] - low - high)[:2] / 2
    is_over = float(np.hypot(*across)) < p.over
    rise = truth["place_high"][2] + (p.drop if is_over else p.clearance) - low[2]
    lets_go = is_over and rise > -0.02
    return _first_up(np.array([*across, rise]), p), GRIPPER_OPEN if lets_go else GRIPPER_CLOSED


def _first_up(error: Vector, p: Placing) -> Vector:
    """Return the (3,) motion [m] towards a point; sideways only as far as the height is reached."""
    sideways = np.clip(1.25 - 25 * error[2], 0.0, 1.0)  # all of it at 1 cm below, nothing at 5 cm
    return p.gain * error * [sideways, sideways, 1.0]
