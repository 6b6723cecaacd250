"""Makes questions about red, green and blue cubes on a table, with answers from the simulator's positions."""

from __future__ import annotations

from collections.abc import Mapping

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Vector

COLOURS = ("red", "green", "blue")
NUMBERS = ("one", "two", "three")
TABLE_WITHIN_M = 0.3
"""A cube is on the table when its height differs by less from the arm's base; one on the floor lies 0.9 m below."""

CLEARLY_M = 0.03
"""Smallest distance by which a cube must be further left to be called left, in spite of the camera's perspective."""


def ask_about_cubes(scene: int, truth: Mapping[str, Vector]) -> list[tuple[str, str]]:
    """Return questions about a scene, each with its answer.

    Args:
        scene: number of the scene, which chooses the colour to ask for.
        truth: `Observation.privileged`; "red_pos" and so on are (3,) in the base frame [m], y to the right as the front
            camera sees it, since it looks at the arm.

    Raises:
        DataError: the world has no such cubes.
    """
    absent = [colour for colour in COLOURS if f"{colour}_pos" not in truth]
    if absent:
        raise DataError(f"the world has no {absent[0]} cube to ask about. Take `--env lift_some`.")
    right_m = {c: float(truth[f"{c}_pos"][1]) for c in COLOURS if abs(truth[f"{c}_pos"][2]) < TABLE_WITHIN_M}
    if not right_m:
        raise DataError(f"scene {scene} has no cube on the table to ask about. Take `--env lift_some`.")
    colour = COLOURS[scene // len(COLOURS) ** 2 % len(COLOURS)]
    asked = [
        ("how many cubes are on the table?", NUMBERS[len(right_m) - 1]),
        (f"is there a {colour} cube?", "yes" if colour in right_m else "no"),
    ]
    leftmost, *others = sorted(right_m, key=right_m.__getitem__)
    if others and right_m[others[0]] - right_m[leftmost] >= CLEARLY_M:
        asked.append(("which cube is left?", leftmost))
    return asked
