"""Units of numbers that come from, and go to, what is not a world of vla_robot.

lerobot passes on shapes and no meaning: six numbers may be joints in degrees, or a tool's step in metres, and nothing
but this option tells them apart. Our own worlds say what they are and need none.

    "vla_robot"   metres, radians, 1 for an open gripper: the numbers of the policy's embodiment, in its order
    "degrees"     lerobot's arms: joints in degrees, grippers from 0 to 100; policies of joint positions only
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.messages import Vector

Units = Literal["vla_robot", "degrees"]
UNITS: tuple[Units, ...] = get_args(Units)

FACTORS = {"rad": np.degrees(1.0), "rad/s": np.degrees(1.0), "1": 100.0}
"""Unit of a dimension -> lerobot's number for 1 of it."""


def require_units(units: str | None, embodiment: Embodiment) -> None:
    """Raise ContractError unless these units are known, and a policy of this embodiment can be driven in them."""
    if units is not None and units not in UNITS:
        raise ContractError(f"{unknown('units', units, UNITS)} It is an option: --policy.units.")
    if units == "degrees" and embodiment.action.kind != "joint_position":
        raise ContractError(
            f"--policy.units=degrees is for joint positions, but the policy gives {_named(embodiment.action.dims)}. "
            "lerobot's drivers have no tool steps: `vla bridge` drives such an arm with this policy."
        )


def factors(dims: Sequence[Dim], units: str | None) -> Vector:
    """Return, for each dimension, the number there that is 1 here."""
    return np.array([FACTORS.get(dim.unit, 1.0) if units == "degrees" else 1.0 for dim in dims])


def unknown_source(embodiment: Embodiment) -> ContractError:
    """Return the error for a batch that does not say what its numbers are."""
    return ContractError(
        "these observations are of no world of vla_robot, so the meaning of their numbers is unknown, and nothing was "
        f"moved. The policy reads {_named(embodiment.state) or 'no state'} and gives {_named(embodiment.action.dims)}, "
        "in this order. If the robot or environment has these, say in which units: --policy.units=degrees (lerobot's "
        "arms: degrees, grippers 0 to 100) or --policy.units=vla_robot (the units named here)."
    )


def _named(dims: Sequence[Dim]) -> str:
    return ", ".join(f"{dim.name} [{dim.unit}]" for dim in dims)
