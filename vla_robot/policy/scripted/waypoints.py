"""Moves the tool from pose to pose by the arm's measured state: a first motion, a test of reach, a demonstration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.geometry import IDENTITY_QUAT, quat_from_rotvec, rotate, rotvec_between
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.policy.scripted.simple import single

GAIN = 0.15
"""Share of the remaining motion that one step covers: an arm that lags by 0.2 s does not overshoot."""

NEAR_M = 0.003
NEAR_RAD = 0.03
DWELL_STEPS = 10
"""A pose is reached when the tool was within NEAR_M [m] and NEAR_RAD [rad] of it for so many steps."""

TOOL = ("x", "y", "z", "rx", "ry", "rz")


class ReachPolicy:
    """Policy that controls the tool proportionally, one pose after the other; it holds the last one."""

    def __init__(self, embodiment: Embodiment, poses: Sequence[Sequence[float]], relative: bool = False) -> None:
        """
        Args:
            embodiment: of an arm whose actions are deltas and whose state has the tool's pose.
            poses: x, y, z [m], axis times angle [rad], gripper 0 to 1; in the base frame.
            relative: position and rotation are relative to the tool's pose at the start of the episode.

        Raises:
            ContractError: the arm does not fit.
        """
        names = [d.name for d in embodiment.state]
        if embodiment.action.kind != "eef_delta" or len(embodiment.action) != 7:
            raise ContractError(f"'reach' moves a tool by deltas; '{embodiment.name}' takes {embodiment.action.kind}.")
        if missing := [name for name in TOOL if name not in names]:
            raise ContractError(
                f"'reach' needs the tool's pose; '{embodiment.name}' does not report {', '.join(missing)}."
            )
        self._space = embodiment.action
        self._tool = [names.index(name) for name in TOOL]
        self._poses = np.array(poses, dtype=np.float64)
        self._relative = relative
        self._start: Vector | None = None
        self.reset(0)

    @property
    def reached(self) -> int:
        """Number of poses that were reached."""
        return self._index

    def reset(self, seed: int) -> None:
        self._index = self._near = 0
        self._start = None

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._step(o.state[self._tool]), o) for o in observations]

    def _step(self, tool: Vector) -> Vector:
        if self._start is None:
            self._start = tool
        pose = self._poses[min(self._index, len(self._poses) - 1)]
        moved = self._goal_position(pose) - tool[:3]
        turn = rotvec_between(quat_from_rotvec(tool[3:]), self._goal_quat(pose))
        self._note(float(np.linalg.norm(moved)), float(np.linalg.norm(turn)))
        action = np.append(GAIN * np.concatenate([moved, turn]), pose[6])
        return np.clip(action, self._space.low, self._space.high)

    def _note(self, left_m: float, left_rad: float) -> None:
        near = left_m < NEAR_M and left_rad < NEAR_RAD
        self._near = self._near + 1 if near else 0
        if self._near >= DWELL_STEPS and self._index < len(self._poses):
            self._index, self._near = self._index + 1, 0

    def _goal_position(self, pose: Vector) -> Vector:
        assert self._start is not None
        return self._start[:3] + pose[:3] if self._relative else pose[:3]

    def _goal_quat(self, pose: Vector) -> Vector:
        assert self._start is not None
        return rotate(quat_from_rotvec(self._start[3:]) if self._relative else IDENTITY_QUAT, pose[3:6])
