"""Forward and inverse kinematics of an arm, from an MJCF file.

The file must name body "base", the frame of poses, and site "tool". The hinges between the two are the arm's joints. No
physics is simulated and nothing is rendered.
"""

from __future__ import annotations

from pathlib import Path

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.geometry import multiply, quat_from_matrix
from vla_robot.core.messages import Vector
from vla_robot.world.sim.render import start_mujoco
from vla_robot.world.sim.workspace import reach_m

RADIAN_M = 0.03
"""Weight of orientation: an error of 1 rad counts as much as this error of position. An arm of five joints, which
cannot reach every pose, then reaches the position to a millimetre or two."""


class ArmModel:
    """Forward and inverse kinematics of one arm; poses are in its base frame."""

    def __init__(self, scene: Path) -> None:
        """
        Args:
            scene: MJCF file.

        Raises:
            RecipeError: the file cannot be read, or lacks base, tool or joints.
        """
        start_mujoco()
        import mujoco

        from vla_robot.world.real.kinematics.tool_ik import ToolIk

        self._mujoco = mujoco
        self._model = model = _load(scene)
        self._data = mujoco.MjData(model)
        self._base, self._tool = _id(model, "body", "base", scene), _id(model, "site", "tool", scene)
        joints = _chain(model, self._base, self._tool)
        if not joints:
            raise RecipeError(f"{scene}: no joint lies between body 'base' and site 'tool'.")
        self.names = tuple(model.joint(j).name for j in joints)
        self.low, self.high = model.jnt_range[joints, 0].copy(), model.jnt_range[joints, 1].copy()
        self.reach_m = reach_m(model, self._base, self._tool)
        self._qpos = model.jnt_qposadr[joints]
        self._ik = ToolIk(model, self._tool, joints, radian_m=RADIAN_M)

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        """Return the tool's pose in the base frame.

        Args:
            joints: (J,) joint angles [rad].

        Returns:
            (3,) position [m] and (4,) unit quaternion, w first.
        """
        self._place(joints)
        R_base = self._data.xmat[self._base].reshape(3, 3)
        position = R_base.T @ (self._data.site_xpos[self._tool] - self._data.xpos[self._base])
        return position, quat_from_matrix(R_base.T @ self._data.site_xmat[self._tool].reshape(3, 3))

    def solve(self, joints: Vector, position: Vector, quat: Vector) -> Vector:
        """Return joint angles within their ranges that bring the tool near to a pose, (J,) [rad].

        Position weighs more than orientation, see RADIAN_M.

        Args:
            joints: (J,) joint angles at which the search begins [rad].
            position: (3,) wanted position in the base frame [m].
            quat: (4,) wanted orientation in the base frame, a unit quaternion, w first.
        """
        self._place(joints)
        R_base = self._data.xmat[self._base].reshape(3, 3)
        in_world = multiply(quat_from_matrix(R_base), quat)
        return self._ik.solve(self._data.qpos, self._data.xpos[self._base] + R_base @ position, in_world)

    def _place(self, joints: Vector) -> None:
        self._data.qpos[self._qpos] = joints
        self._mujoco.mj_kinematics(self._model, self._data)


def _load(scene: Path):
    import mujoco

    if not scene.is_file():
        raise RecipeError(f"the scene '{scene}' does not exist. Paths are relative to the recipe's folder.")
    try:
        return mujoco.MjModel.from_xml_path(str(scene))
    except ValueError as error:
        raise RecipeError(f"the scene '{scene}' is not valid MJCF: {error}.") from error


def _id(model, kind: str, name: str, scene: Path) -> int:
    import mujoco

    kinds = {"body": (mujoco.mjtObj.mjOBJ_BODY, model.nbody), "site": (mujoco.mjtObj.mjOBJ_SITE, model.nsite)}
    code, count = kinds[kind]
    found = mujoco.mj_name2id(model, code, name)
    if found < 0:
        names = [mujoco.mj_id2name(model, code, i) or "" for i in range(count)]
        raise RecipeError(f"{scene}: {unknown(kind, name, names)}")
    return found


def _chain(model, base: int, tool: int) -> list[int]:
    """Return the ids of the joints from base to tool."""
    joints: list[int] = []
    body = int(model.site_bodyid[tool])
    while body not in (base, 0):
        first = int(model.body_jntadr[body])
        joints = [*range(first, first + int(model.body_jntnum[body])), *joints]
        body = int(model.body_parentid[body])
    return joints
