"""Windows: what a policy is given of a trajectory at one step, and what it should do from there on.

    step t = 1 of 5, two past observations, three future actions

    observations      t-2  t-1  t          before the beginning the first one stands, marked as padding
                       0*   0   1
    actions           t-2  t-1  t  t+1  t+2  t+3
                       0    0   1   2    3    4        after the end relative dimensions are 0 and absolute ones stay

An episode that goes on behind a gap has no end: what was done after its last step is not known, and nothing may stand
in for it. Only steps that enough others follow have a window there.

Zeros are normalised zeros, the middle of a dimension's range, since the reference pads after it has normalised.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/rlds/traj_transforms.py, chunk_act_obs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """How far a policy looks to either side.

    Attributes:
        past: observations before the present one; OpenVLA has 0.
        future: actions after the present one; OpenVLA has 0, OpenVLA-OFT one less than its chunk.
        complete: only steps that `future` actions follow, as OpenVLA-OFT trains; no action is padding then.
    """

    past: int = 0
    future: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        assert self.past >= 0 and self.future >= 0, "a window has no negative side"

    def steps_in(self, length: NDArray[np.int64], goes_on: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """How many steps of trajectories have a window; they are the first ones of each.

        Args:
            length: (E,) steps of each trajectory.
            goes_on: (E,) the trajectory ends at a gap, not at its end; None for none of them.
        """
        is_cut = np.full(len(length), self.complete) if goes_on is None else goes_on | self.complete
        return np.where(is_cut, np.maximum(length - self.future, 0), length)

    def observations(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(past + 1,) steps to look at, oldest first, and which of them are real."""
        steps = np.arange(step - self.past, step + 1)
        return np.maximum(steps, 0), steps >= 0

    def actions(self, step: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(past + 1 + future,) steps whose actions to take, and which of them lie behind the end."""
        steps = np.arange(step - self.past, step + self.future + 1)
        return np.clip(steps, 0, length - 1), steps >= length


def pad_actions(
    actions: NDArray[np.floating], is_after_end: NDArray[np.bool_], is_absolute: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Nothing is to be done after the end: relative dimensions become 0, absolute ones repeat the last action.

    Args:
        actions: (K, D) normalised; rows after the end hold the last action already.
        is_after_end: (K,).
        is_absolute: (D,).
    """
    return np.where(is_after_end[:, None] & ~is_absolute, actions.dtype.type(0), actions)
