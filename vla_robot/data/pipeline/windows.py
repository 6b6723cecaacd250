"""Computes windows: the observations and actions of a trajectory that belong to a training sample at one step.

    step t = 1 of 5, two past observations, three future actions

    observations      t-2  t-1  t          before the beginning the first one is repeated, marked as padding
                       0*   0   1
    actions           t-2  t-1  t  t+1  t+2  t+3
                       0    0   1   2    3    4        after the end relative dimensions are 0 and absolute ones stay

Where an episode ends at a gap, the actions after its last step are unknown and must not be padded. Only steps that
enough others follow have a window there.

Zeros are normalised zeros, the middle of a dimension's range, since the reference pads after normalisation.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/rlds/traj_transforms.py, chunk_act_obs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Sizes of the window about a step.

    Attributes:
        past: number of observations before the present one; OpenVLA has 0.
        future: number of actions after the present one; OpenVLA has 0, OpenVLA-OFT one less than its chunk.
        complete: take only steps that `future` actions follow, as OpenVLA-OFT trains, so that no action is padding.
    """

    past: int = 0
    future: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        assert self.past >= 0 and self.future >= 0, "a window has no negative side"

    def steps_in(self, length: NDArray[np.int64], goes_on: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return how many of the first steps of each trajectory have a window, (E,).

        Args:
            length: (E,) number of steps of each trajectory.
            goes_on: (E,) whether the trajectory ends at a gap; None when none does.
        """
        is_cut = np.full(len(length), self.complete) if goes_on is None else goes_on | self.complete
        return np.where(is_cut, np.maximum(length - self.future, 0), length)

    def observations(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the steps of the observations, oldest first, and whether each is real, (past + 1,) each."""
        steps = np.arange(step - self.past, step + 1)
        return np.maximum(steps, 0), steps >= 0

    def actions(self, step: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the steps of the actions, and whether each is after the end, (past + 1 + future,) each."""
        steps = np.arange(step - self.past, step + self.future + 1)
        return np.clip(steps, 0, length - 1), steps >= length


def pad_actions(
    actions: NDArray[np.floating], is_after_end: NDArray[np.bool_], is_absolute: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Pad the actions after the end: relative dimensions become 0, absolute ones repeat the last action.

    Args:
        actions: (K, D) normalised; rows after the end hold the last action already.
        is_after_end: (K,) whether the row is after the end.
        is_absolute: (D,) whether the dimension is absolute.

    Returns:
        (K, D) padded actions.
    """
    return np.where(is_after_end[:, None] & ~is_absolute, actions.dtype.type(0), actions)
