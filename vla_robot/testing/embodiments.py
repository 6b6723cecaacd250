"""The toy arm of the other stand-ins: its tool moves along one axis or more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_robot.core.embodiment import ActionKind, ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.teleop_device import AXES

TOOL_AXES = AXES
"""Motion of a tool: three lengths [m] and three turns [rad]."""

X = Dim("x", "m", -1.0, 1.0)
WIDTH = Dim("gripper_width", "m", 0.0, 0.1)
"""Dimensions of a state: the tool's position, and the distance between the fingers."""

GRIPPER = Dim("gripper", "1", 0.0, 1.0)
"""Dimension of an action: the gripper's opening, 0 closed to 1 open."""


def toy_embodiment(
    *,
    name: str = "toy",
    axes: Sequence[str | Dim] = ("dx",),
    gripper: Dim | None = GRIPPER,
    step_m: float = 0.05,
    step_rad: float = 0.5,
    kind: ActionKind = "eef_delta",
    state: Sequence[Dim] | None = None,
    reach_m: float = 1.0,
    cameras: Sequence[str] = ("front",),
    height: int = 6,
    width: int = 8,
    rate_hz: float = 10.0,
) -> Embodiment:
    """Return an arm whose tool moves along an axis, with a gripper and small frames.

    Args:
        name: name of the arm.
        axes: dimensions of the action before the gripper, or their names; the names in TOOL_AXES[3:] are rotations.
        gripper: last dimension of the action; None for an arm without a gripper.
        step_m: largest motion along an axis in one action [m].
        step_rad: largest rotation in one action [rad].
        kind: kind of the actions.
        state: dimensions of the state; None for "x" alone.
        reach_m: limit of |x| [m].
        cameras: their names.
        height: height of each frame in pixels.
        width: width of each frame in pixels.
        rate_hz: control steps per second.
    """
    dims = [axis if isinstance(axis, Dim) else _motion(axis, step_m, step_rad) for axis in axes]
    return Embodiment(
        name=name,
        action=ActionSpace(kind, "base", (*dims, *([] if gripper is None else [gripper]))),
        state=(Dim("x", "m", -reach_m, reach_m),) if state is None else tuple(state),
        cameras=tuple(CameraSpec(camera, height, width) for camera in cameras),
        rate_hz=rate_hz,
    )


def _motion(name: str, step_m: float, step_rad: float) -> Dim:
    """Return the dimension of a motion along an axis of the tool, or a rotation about it."""
    unit, most = ("rad", step_rad) if name in TOOL_AXES[3:] else ("m", step_m)
    return Dim(name, unit, -most, most)


def grey_frames(embodiment: Embodiment, shade: int) -> dict[str, Image]:
    """Return a frame of one grey, 0 to 255, for each camera."""
    return {c.name: np.full((c.height, c.width, 3), shade % 256, np.uint8) for c in embodiment.cameras}


def toy_observation(
    embodiment: Embodiment,
    step: int = 0,
    *,
    x: float = 0.0,
    shade: int | None = None,
    instruction: str = "lift the cube",
    stamp_ns: int | None = None,
) -> Observation:
    """Return an arm's observation at a step.

    Args:
        embodiment: embodiment of the arm.
        step: control steps since reset.
        x: first number of the state; the others are in the middle of their ranges.
        shade: grey of all frames; None for the step.
        instruction: the task.
        stamp_ns: its time [ns]; None for the step.
    """
    state = np.array([(dim.low + dim.high) / 2 for dim in embodiment.state])
    state[:1] = x
    images = grey_frames(embodiment, step if shade is None else shade)
    return Observation(images, state, instruction, step if stamp_ns is None else stamp_ns, step)


def chunk_for(observation: Observation, *rows: Sequence[float], conditioned: bool = False) -> ActionChunk:
    """Return the answer to an observation with these (T, D) rows."""
    return ActionChunk(np.array(rows, np.float64), observation.stamp_ns, observation.step, conditioned=conditioned)
