"""Draws libero_object.webp: the first state of each task of LIBERO object, as the small policy solves it or not.

It runs `vla eval` with videos, which takes some minutes and needs the environment of `vla install libero`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from vla_robot.core.messages import Image

SUITE, POLICY = "libero_object_small", "paligemma_nano_libero"
COLUMNS, EDGE_PX, LINE_PX, GAP_PX = 5, 150, 18, 6
EVERY, FRAME_MS, LAST_MS = 4, 100, 1500
"""Every fourth control step (0.2 s) for 0.1 s: twice the robot's speed."""
INK, PAPER, GOOD, BAD = (220, 220, 225), (20, 24, 32), (120, 220, 140), (240, 120, 110)


@dataclass(frozen=True)
class Film:
    """One episode.

    Attributes:
        thing: what the instruction names.
        success: whether the goal was met.
        frames: the front camera's square frames.
    """

    thing: str
    success: bool
    frames: Sequence[Image]


def draw(file: Path) -> None:
    """Write the picture: a cell for each task, side by side, until the longest episode ends."""
    with tempfile.TemporaryDirectory() as folder:
        films = list(_films(Path(folder)))
    steps = range(0, max(len(film.frames) for film in films) + EVERY, EVERY)
    pictures = [_picture(films, step) for step in steps]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_MS]
    pictures[0].save(
        file, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=45, method=6
    )  # fmt: skip


def _films(out: Path) -> Iterator[Film]:
    asked = ("eval", "--suite", SUITE, "--policy", POLICY, "--episodes-per-task", "1", "--videos", "all")
    subprocess.run([sys.executable, "-m", "vla_robot.cli.main", *asked, "--out", str(out)], check=True)
    trials = map(json.loads, (out / "trials.jsonl").read_text().splitlines()[1:])
    for trial in sorted(trials, key=lambda trial: trial["world"]):
        task = trial["world"].replace("/", "_")
        video = out / POLICY / "plain" / task / "videos" / f"seed_{trial['seed']}.mp4"
        thing = trial["task"].removeprefix("pick up the ").removesuffix(" and place it in the basket")
        frames = _front(video)[: trial["steps"]]  # a video goes on for a second
        yield Film(thing, trial["success"], frames)


def _front(video: Path) -> list[Image]:
    """Return the left half of each frame: its upper square is the front camera."""
    frames: list[Image] = []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            edge = pixels.shape[1] // 2
            frames.append(pixels[:edge, :edge])
    return frames


def _picture(films: Sequence[Film], step: int) -> PIL.Image.Image:
    rows = -(-len(films) // COLUMNS)
    size = COLUMNS * (EDGE_PX + GAP_PX) + GAP_PX, rows * (EDGE_PX + LINE_PX + GAP_PX) + GAP_PX
    picture = PIL.Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for number, film in enumerate(films):
        x = GAP_PX + number % COLUMNS * (EDGE_PX + GAP_PX)
        y = GAP_PX + number // COLUMNS * (EDGE_PX + LINE_PX + GAP_PX)
        frame = np.ascontiguousarray(film.frames[min(step, len(film.frames) - 1)])
        cell = PIL.Image.fromarray(frame).resize((EDGE_PX, EDGE_PX), PIL.Image.Resampling.LANCZOS)
        picture.paste(cell, (x, y + LINE_PX))
        ended = step >= len(film.frames)
        ink = INK if not ended else GOOD if film.success else BAD
        outcome = "" if not ended else "  solved" if film.success else "  not solved"
        pen.text((x + 2, y + 2), film.thing + outcome, fill=ink, font=font)
        if ended:
            pen.rectangle((x, y + LINE_PX, x + EDGE_PX - 1, y + LINE_PX + EDGE_PX - 1), outline=ink, width=2)
    return picture
