"""Makes questions, captions and boxes of red, green and blue cubes on a table, from the simulator's own state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vla_robot.core.errors import DataError
from vla_robot.core.language.boxes import DETECT, Box, boxes_in_words
from vla_robot.core.messages import Vector

COLOURS = ("red", "green", "blue")
NUMBERS = ("one", "two", "three")
TABLE_WITHIN_M = 0.3
"""A cube is on the table when its height differs by less from the arm's base; one on the floor lies 0.9 m below."""

CLEARLY_M = 0.03
"""Smallest distance by which a cube must be further left to be called left, in spite of the camera's perspective."""

CAPTION = "caption en"
"""PaliGemma's question for a caption."""
SIDES = ("far left", "left", "in the middle", "right", "far right")
HALF_WIDTH_M = 0.13
"""Half of the width over which cubes lie, divided among the sides."""
MIDDLE_M = 0.56
"""Distance from the arm's base to the middle of the table, along x."""
SEEN_SHARE = 0.001
"""Smallest share of the picture that the box of a cube covers which is asked for; a whole cube has about 0.012."""


def ask_about_cubes(scene: int, truth: Mapping[str, Vector]) -> list[tuple[str, str]]:
    """Return questions about a scene, each with its answer.

    Args:
        scene: number of the scene, which chooses the colour to ask for.
        truth: `Observation.privileged`; "red_pos" and so on are (3,) in the base frame [m], y to the right as the front
            camera sees it, since it looks at the arm.

    Raises:
        DataError: the world has no such cubes.
    """
    right_m = {colour: at[1] for colour, at in _on_the_table(scene, truth).items()}
    colour = COLOURS[scene // len(COLOURS) ** 2 % len(COLOURS)]
    asked = [
        ("how many cubes are on the table?", NUMBERS[len(right_m) - 1]),
        (f"is there a {colour} cube?", "yes" if colour in right_m else "no"),
    ]
    leftmost, *others = sorted(right_m, key=right_m.__getitem__)
    if others and right_m[others[0]] - right_m[leftmost] >= CLEARLY_M:
        asked.append(("which cube is left?", leftmost))
    return asked


def caption_cubes(scene: int, truth: Mapping[str, Vector]) -> list[tuple[str, str]]:
    """Return the request for a caption and the caption: each cube's colour and place, from left to right.

    Arguments and errors are those of `ask_about_cubes`.
    """
    places = _on_the_table(scene, truth)
    named = sorted(places, key=lambda colour: places[colour][1])
    return [(CAPTION, ", ".join(f"a {colour} cube {_place(*places[colour])}" for colour in named))]


def detect_cubes(boxes: Mapping[str, Box]) -> list[tuple[str, str]]:
    """Return, for each cube that can be seen, the request for its box and the box in words.

    Args:
        boxes: name of an object -> box in the first camera's picture; objects that are no cubes are left out.
    """
    seen = {colour: boxes[colour] for colour in COLOURS if colour in boxes and boxes[colour].area >= SEEN_SHARE}
    return [
        (f"{DETECT}{colour} cube", boxes_in_words([replace(box, name=f"{colour} cube")]))
        for colour, box in seen.items()
    ]


def _on_the_table(scene: int, truth: Mapping[str, Vector]) -> dict[str, tuple[float, float]]:
    """Return colour -> (distance from the arm, distance to the right) [m] of the cubes on the table."""
    absent = [colour for colour in COLOURS if f"{colour}_pos" not in truth]
    if absent:
        raise DataError(f"the world has no {absent[0]} cube to ask about. Take `--env lift_some`.")
    found = {c: truth[f"{c}_pos"] for c in COLOURS if abs(truth[f"{c}_pos"][2]) < TABLE_WITHIN_M}
    if not found:
        raise DataError(f"scene {scene} has no cube on the table to ask about. Take `--env lift_some`.")
    return {colour: (float(at[0]), float(at[1])) for colour, at in found.items()}


def _place(away_m: float, right_m: float) -> str:
    """Return a place in words: one of five sides, and whether it is nearer to the arm or to the front camera."""
    side = int((right_m / HALF_WIDTH_M + 1) / 2 * len(SIDES))
    depth = "near the arm" if away_m < MIDDLE_M else "near the camera"
    return f"{SIDES[min(max(side, 0), len(SIDES) - 1)]} {depth}"
