"""Scripted experts: policies that read the simulator's state and solve a task.

Each is a function of the present observation alone. It therefore recovers from any state that a perturbation or a
learner has caused, and can label a learner's own episodes (DAgger).

Positions are in the base frame [m]; actions are tool deltas in the base frame and an absolute gripper, 1 = open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_robot.core.embodiment import GRIPPER_CLOSED, GRIPPER_OPEN, ActionSpace
from vla_robot.core.errors import PolicyError, RecipeError, unknown
from vla_robot.core.geometry import matrix_from_rotvec
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.policy.scripted.placing import place
from vla_robot.policy.scripted.simple import single
from vla_robot.policy.scripted.tool import TOOL_DOWN, turn_to

GAIN = 2.0
"""An operational-space controller covers about half of a commanded step before the next one comes at 10 Hz."""

VERTICAL = np.array([0.0, 0.0, 1.0])
UP = 0.05 * VERTICAL
HELD_SLACK = 0.003
"""The fingers touch an object when they are this close to its width [m]."""

SLOW_RISE = 0.01
"""Commanded height of one step [m] with which a closing gripper already rises."""

LIFT_CUBE, STACK_CUBE, CAN_WIDTH = 0.042, 0.040, 0.060
"""Edges of the cubes, and the gripper's opening below which it holds the can [m]."""

STACKED_HEIGHT = 0.045
"""Height of cube A's centre over cube B's when it is stacked [m]."""


class ScriptedExpert:
    """Policy made of a function from an observation to a tool motion, (3,) [m] or (6,) [m, rad], and a gripper."""

    def __init__(self, plan: Callable[[Observation], tuple[Vector, float]], space: ActionSpace) -> None:
        self._plan = plan
        self._space = space

    def reset(self, seed: int) -> None:
        """Do nothing: an expert has no memory."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._action(observation), observation) for observation in observations]

    def _action(self, observation: Observation) -> Vector:
        if not observation.privileged:
            raise PolicyError("a scripted expert needs the simulator's truth: build the world with privileged=True.")
        move, gripper = self._plan(observation)
        action = np.zeros(len(self._space))
        action[: len(move)] = move
        action[-1] = gripper
        return np.clip(action, self._space.low, self._space.high)


@dataclass(frozen=True)
class Grasp:
    """Parameters of the Panda's grasp of a small object from above. Lengths in m.

    Attributes:
        hover: height over the object from which the tool comes down.
        funnel: horizontal error at which the tool may start to come down.
        reach_xy: horizontal error within which the fingers may close.
        reach_z: vertical error within which the fingers may close.
        open_width: the gripper counts as open above this.
        held_width: the fingers hold the object below this.
    """

    hover: float = 0.08
    funnel: float = 0.012
    reach_xy: float = 0.016
    reach_z: float = 0.012
    open_width: float = 0.070
    held_width: float = 0.052


def pick(tool: Vector, width: float, target: Vector, grasp: Grasp) -> tuple[Vector, float, bool]:
    """Compute one step of a grasp from above.

    Returns:
        (3,) tool motion [m], gripper command, and whether the object is held now.
    """
    error = target - tool
    off_axis = float(np.hypot(error[0], error[1]))
    in_reach = off_axis < grasp.reach_xy and abs(error[2]) < grasp.reach_z
    if in_reach:
        return GAIN * error, GRIPPER_CLOSED, width < grasp.held_width
    is_open = width > grasp.open_width
    height = grasp.hover if not is_open else float(np.clip(3 * (off_axis - grasp.funnel), 0, grasp.hover))
    error[2] += height
    if error[2] > 0.02:  # below the funnel: rise before moving sideways, so that the object is not pushed
        error[:2] *= 0.25
    return GAIN * error, GRIPPER_OPEN, False


def cube_grasp(cube_mat: Vector, side: float) -> Grasp:
    """Return the grasp of a cube at any yaw.

    The fingers close along the base's y axis: they stop at the side of a straight cube, and at the diagonal of
    one turned by 45 degrees, which one fixed width would take for an object that is not held yet.

    Args:
        cube_mat: (9,) rotation of the cube in the base frame, row by row.
        side: edge of the cube [m].
    """
    across = side * float(abs(cube_mat[3]) + abs(cube_mat[4]))
    return Grasp(held_width=across + HELD_SLACK)


def carry(error: Vector, clearance: float, funnel: float, axis: Vector = VERTICAL) -> Vector:
    """Return the (3,) motion [m] that comes to a goal along an axis: first to a clearance ahead of it, then onto it.

    Args:
        error: (3,) from the tool, or from what it holds, to the goal [m].
        clearance: distance from the goal along the axis that is kept while the error beside the axis is large [m].
        funnel: error beside the axis at which it may start to come nearer [m].
        axis: (3,) unit vector from the goal to where it is approached from.
    """
    along = float(error @ axis)
    beside = error - along * axis
    rise = along + float(np.clip(3 * (np.linalg.norm(beside) - funnel), 0, clearance))
    sideways = 0.25 if rise > 0.02 else 1.0  # first up, so that the object hits nothing
    return GAIN * (sideways * beside + rise * axis)


def lift(observation: Observation) -> tuple[Vector, float]:
    """Pick the cube and go straight up."""
    return _lift(observation, "cube")


def lift_named(observation: Observation) -> tuple[Vector, float]:
    """Pick the cube whose colour is in the instruction and go straight up. Raises PolicyError if none is."""
    for word in observation.instruction.split():
        if f"{word}_pos" in observation.privileged:
            return _lift(observation, word)
    raise PolicyError(f"no object of this world is named in '{observation.instruction}'.")


def _lift(observation: Observation, cube: str) -> tuple[Vector, float]:
    truth = observation.privileged
    grasp = cube_grasp(truth[f"{cube}_mat"], LIFT_CUBE)
    width = truth["gripper_width"][0]
    move, gripper, held = pick(truth["eef_pos"], width, truth[f"{cube}_pos"], grasp)
    if held:
        return UP, GRIPPER_CLOSED
    if gripper == GRIPPER_CLOSED and width < LIFT_CUBE * 2**0.5 + HELD_SLACK:
        # A cube of some yaw would be held at this width. A learner that misjudges the yaw would wait here for ever.
        move[2] = max(move[2], SLOW_RISE)
    return move, gripper


def stack(observation: Observation) -> tuple[Vector, float]:
    """Put the small cube A on the large cube B, release it and move up."""
    truth = observation.privileged
    width = truth["gripper_width"][0]
    to_goal = truth["cubeB_pos"] + np.array([0.0, 0.0, STACKED_HEIGHT]) - truth["cubeA_pos"]
    if np.hypot(to_goal[0], to_goal[1]) < 0.018 and abs(to_goal[2]) < 0.008:
        return (UP if width > Grasp.open_width else np.zeros(3)), GRIPPER_OPEN
    grasp = cube_grasp(truth["cubeA_mat"], STACK_CUBE)
    move, gripper, held = pick(truth["eef_pos"], width, truth["cubeA_pos"], grasp)
    return (carry(to_goal, clearance=0.06, funnel=0.01), GRIPPER_CLOSED) if held else (move, gripper)


def pick_place_can(observation: Observation) -> tuple[Vector, float]:
    """Bring the can over the wall into its compartment and drop it from a few centimetres."""
    truth = observation.privileged
    width = truth["gripper_width"][0]
    to_goal = truth["Can_goal_pos"] + np.array([0.0, 0.0, 0.07]) - truth["Can_pos"]
    if np.hypot(to_goal[0], to_goal[1]) < 0.05 and to_goal[2] > -0.03:
        return (UP if width > CAN_WIDTH else np.zeros(3)), GRIPPER_OPEN
    above_centre = truth["Can_pos"] + np.array([0.0, 0.0, 0.02])
    move, gripper, held = pick(truth["eef_pos"], width, above_centre, Grasp(held_width=CAN_WIDTH))
    return (carry(to_goal, clearance=0.2, funnel=0.03), GRIPPER_CLOSED) if held else (move, gripper)


@dataclass(frozen=True)
class Lever:
    """Parameters of the Panda's way to open robosuite's door by its lever. Lengths in m, angles in rad.

    Attributes:
        tilt: the hand leans away from the door by this; upright, its 20 cm body would hit the panel before the lever.
        reach: distance from the lever's centre within which closed fingers hold it.
        depth: fingers that touch a lever that points down are this far ahead of its centre.
        held_width: the fingers hold the lever below this.
        missed_width: below this nothing is between them.
        centred: distance from the fingers' middle, across the lever, beyond which they hold only its edge and slip.
        press: length of one pressing step; the guard limits it.
        pressed: latch angle at which the lever is down.
        free: latch angle from which the door may be pulled.
        ajar: hinge angle from which the latch no longer holds the door.
    """

    tilt: float = 0.5
    reach: float = 0.04
    depth: float = 0.03
    held_width: float = 0.055
    missed_width: float = 0.004
    centred: float = 0.009
    press: float = 0.07
    pressed: float = 1.2
    free: float = 0.85
    ajar: float = 0.03


def door(observation: Observation) -> tuple[Vector, float]:
    """Grasp the lever from ahead of its arc, press it along the arc, and pull the door open.

    A lever that is let go springs back, unless the door is ajar: then it is grasped where it stays.
    """
    truth, lever = observation.privileged, Lever()
    error = truth["handle_pos"] - truth["eef_pos"]
    width, latch_angle = truth["gripper_width"][0], truth["latch_angle"][0]
    turn = turn_to(matrix_from_rotvec(np.array([-lever.tilt, 0.0, 0.0])) @ TOOL_DOWN, truth["eef_rot"])
    ahead = np.array([-np.sin(latch_angle), 0.0, np.cos(latch_angle)])  # at rest above the lever, pressed beside it
    along, distance = float(error @ ahead), float(np.linalg.norm(error))
    beside = float(np.linalg.norm(error - along * ahead))
    deep = lever.depth * np.sin(latch_angle)
    around = width > lever.missed_width and distance < lever.reach + deep / 2
    if around and width < lever.held_width and abs(error[1]) < lever.centred:
        move, gripper = _work_lever(truth["hinge_angle"][0], latch_angle, error, lever), GRIPPER_CLOSED
    elif around and width < lever.held_width:
        move, gripper = np.array([0.0, GAIN * error[1], 0.0]), GRIPPER_OPEN
    elif width > lever.missed_width and beside < 0.02 and -0.015 - deep < along < 0.015:
        move, gripper = GAIN * error, GRIPPER_CLOSED
    elif around and width < Grasp.open_width:
        move, gripper = np.zeros(3), GRIPPER_CLOSED if beside < 0.03 else GRIPPER_OPEN
    else:
        move, gripper = carry(error, clearance=0.09, funnel=0.012, axis=ahead), GRIPPER_OPEN
    return np.concatenate([move, turn]), gripper


def _work_lever(hinge_angle: float, latch_angle: float, error: Vector, lever: Lever) -> Vector:
    """Return the (3,) motion [m] of fingers around the lever: along its arc until it is down, then towards +y."""
    move = 2.5 * error  # the lever's end moves faster than slow fingers
    ajar = hinge_angle > lever.ajar
    if not ajar and latch_angle < lever.pressed:
        move = move + lever.press * np.array([np.sin(latch_angle), 0.0, -np.cos(latch_angle)])
    if ajar or latch_angle > lever.free:
        move = np.array([move[0] - 0.01, 0.05, move[2]])  # whole steps: half ones let the fingers slip off
    return move


def benchmark(observation: Observation) -> tuple[Vector, float]:
    """Do what the benchmark's own scripted policy would do, which its world tells."""
    action = observation.privileged.get("expert_action")
    if action is None:
        raise PolicyError(
            'this world tells no "expert_action": only benchmarks with scripted policies of their own do.'
        )
    return action[:-1], float(action[-1])


_PLANS: dict[str, Callable[[Observation], tuple[Vector, float]]] = {
    "lift": lift,
    "lift_named": lift_named,
    "stack": stack,
    "pick_place_can": pick_place_can,
    "door": door,
    "benchmark": benchmark,
    "place": place,
}


def build_expert(name: str | None, space: ActionSpace) -> ScriptedExpert:
    """Build the expert that an environment recipe names.

    Raises:
        RecipeError: the recipe names no expert, or an unknown one.
    """
    if name is None:
        raise RecipeError(f'this environment names no expert. Available: expert = "{", ".join(sorted(_PLANS))}".')
    if name not in _PLANS:
        raise RecipeError(unknown("expert", name, _PLANS))
    return ScriptedExpert(_PLANS[name], space)
