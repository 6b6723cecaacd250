"""Normalisation of actions and state to [-1, 1] by quantiles, with a mask. OpenVLA's BOUNDS_Q99, exactly.

    normalise:    n = clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)   where mask; constant dimensions become 0
    unnormalise:  x = (n + 1) / 2 (q99 - q01) + q01                        where mask

Dimensions outside the mask (the absolute gripper) are neither scaled nor clipped. OpenVLA-OFT uses other bounds
for some arms, and adds 1e-8 in both directions.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/rlds/utils/data_utils.py and
prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.errors import ContractError
from vla_robot.core.untrusted import MALFORMED, shortened

EPSILON = 1e-8

Bounds = tuple[str, str]
"""Names of the statistics that are -1 and +1."""

Q99: Bounds = ("q01", "q99")
MIN_MAX: Bounds = ("min", "max")
"""OpenVLA-OFT's BOUNDS, for arms whose extreme positions are intended."""
BOUNDS: Mapping[str, Bounds] = {"bounds_q99": Q99, "bounds": MIN_MAX}
"""OpenVLA-OFT's names of the two, in lower case."""


@dataclass(frozen=True)
class QuantileStats:
    """1 % and 99 % quantiles of each dimension, or other bounds.

    Attributes:
        q01: (D,) float64, value of -1 in the dimension's unit.
        q99: (D,) float64, value of +1 in the dimension's unit.
        mask: (D,) bool; dimensions with False are not changed.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not self.q01.shape == self.q99.shape == self.mask.shape or self.q01.ndim != 1:
            raise ContractError(
                f"q01, q99 and mask must be vectors of one length, "
                f"got shapes {self.q01.shape}, {self.q99.shape}, {self.mask.shape}."
            )
        if not (np.isfinite(self.q01).all() and np.isfinite(self.q99).all()):
            raise ContractError("statistics hold numbers that are not finite.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], bounds: Bounds = Q99) -> QuantileStats:
        """Read one block of `dataset_statistics.json`; without a mask, every dimension is normalised."""
        low, high = bounds
        try:
            q01 = np.asarray(data[low], dtype=np.float64)
            q99 = np.asarray(data[high], dtype=np.float64)
            mask = np.asarray(data.get("mask", np.ones(q01.shape, dtype=bool)), dtype=bool)
        except MALFORMED as error:
            raise ContractError(f"statistics need numeric {low} and {high}: {shortened(error)}.") from error
        return cls(q01, q99, mask)

    def __len__(self) -> int:
        return len(self.q01)


def normalise(values: ArrayLike, stats: QuantileStats) -> NDArray[np.float64]:
    """Normalise (..., D) in units to [-1, 1] where the mask is set.

    A constant dimension (q01 == q99) becomes 0.
    """
    x = np.asarray(values, dtype=np.float64)
    span = stats.q99 - stats.q01
    scaled = np.clip(2 * (x - stats.q01) / (span + EPSILON) - 1, -1, 1)
    return np.where(stats.mask, np.where(span == 0, 0.0, scaled), x)


def unnormalise(values: ArrayLike, stats: QuantileStats, epsilon: float = 0.0) -> NDArray[np.float64]:
    """Convert (..., D) in [-1, 1] to units where the mask is set; `epsilon` widens the span, for OpenVLA-OFT."""
    n = np.asarray(values, dtype=np.float64)
    return np.where(stats.mask, 0.5 * (n + 1) * (stats.q99 - stats.q01 + epsilon) + stats.q01, n)
