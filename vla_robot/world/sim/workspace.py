"""Computes from the model how far an arm's tool can be from its base: the default of its workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vla_robot.core.errors import ContractError

if TYPE_CHECKING:
    import mujoco  # at run time only after `start_mujoco`, which turns a failure of OpenGL into a WorldError


def reach_m(model: mujoco.MjModel, base: int, tool: int) -> float:
    """Return the length of the stretched chain from a body to a site [m], an upper bound of their distance.

    Args:
        model: the compiled model.
        base: id of a body.
        tool: id of a site whose body is that body or a descendant of it.

    Raises:
        ContractError: the site is on no descendant of the body, or a joint between them moves without a limit.
    """
    length_m, body = float(np.linalg.norm(model.site_pos[tool])), int(model.site_bodyid[tool])
    while body != base:
        if body == 0:
            raise ContractError(
                f"site '{model.site(tool).name}' is on no descendant of body '{model.body(base).name}'. Move it there."
            )
        length_m += float(np.linalg.norm(model.body_pos[body])) + _joints_m(model, body)
        body = int(model.body_parentid[body])
    return length_m


def _joints_m(model: mujoco.MjModel, body: int) -> float:
    """Return how far the joints of one body can move its origin away from its place at zero angles [m]."""
    first = int(model.body_jntadr[body])
    return sum(_joint_m(model, joint) for joint in range(first, first + int(model.body_jntnum[body])))


def _joint_m(model: mujoco.MjModel, joint: int) -> float:
    import mujoco

    kind = int(model.jnt_type[joint])
    if kind in (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_BALL)):
        return 2 * float(np.linalg.norm(model.jnt_pos[joint]))  # half a turn about an anchor beside the origin
    if kind == int(mujoco.mjtJoint.mjJNT_SLIDE) and model.jnt_limited[joint]:
        return float(np.abs(model.jnt_range[joint] - model.qpos0[model.jnt_qposadr[joint]]).max())
    raise ContractError(f"joint '{model.joint(joint).name}' between base and tool has no limit. Give it a range.")
