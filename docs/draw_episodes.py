"""Draws films of episodes side by side, solved and not: libero_object.webp and colours.webp.

It runs `vla eval` with videos, which takes some minutes; LIBERO needs the environment of `vla install libero`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from vla_robot.core.messages import Image

COLUMNS, EDGE_PX, LINE_PX, GAP_PX = 5, 150, 18, 6
FRAME_MS, LAST_MS = 100, 1500
INK, PAPER, GOOD, BAD = (220, 220, 225), (20, 24, 32), (120, 220, 140), (240, 120, 110)


@dataclass(frozen=True)
class Evaluation:
    """What `vla eval` is asked for one row of films.

    Attributes:
        policy: a shipped one.
        asked: further options: worlds, seeds and episodes.
        every: control steps from one frame of the film to the next.
        called: what a cell says of an instruction.
    """

    policy: str
    asked: tuple[str, ...]
    every: int
    called: Callable[[str], str]

    def trials(self, out: Path) -> list[dict[str, Any]]:
        """Return the episodes as `vla eval` writes them, in the order of worlds and seeds."""
        command = ("eval", "--policy", self.policy, *self.asked, "--videos", "all", "--out", str(out))
        subprocess.run([sys.executable, "-m", "vla_robot.cli.main", *command], check=True)
        trials = map(json.loads, (out / "trials.jsonl").read_text().splitlines()[1:])
        return sorted(trials, key=lambda trial: (trial["world"], trial["seed"]))

    def film(self, out: Path, trial: dict[str, Any]) -> Film:
        """Return the film of one of the trials."""
        videos = out / self.policy / "plain" / trial["world"].replace("/", "_") / "videos"
        frames = _front(videos / f"seed_{trial['seed']}.mp4")[: trial["steps"]]  # a video goes on for a second
        return Film(self.called(trial["instruction"]), trial["success"], frames[:: self.every] + frames[-1:])


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


LIBERO = Evaluation(
    "paligemma_nano_libero",
    ("--suite", "libero_object_small", "--episodes-per-task", "1"),
    every=4,  # 0.2 s, shown for 0.1 s
    called=lambda text: text.removeprefix("pick up the ").removesuffix(" and place it in the basket"),
)
LIFT = Evaluation(
    "openvla_nano", ("--env", "lift", "--episodes", "2", "--seed", "10021"), every=1, called=lambda _: "the cube"
)
COLOURS = Evaluation(
    "qwen_vl_nano",
    ("--env", "lift_colour", "--episodes", "20", "--seed", "20000"),
    every=1,
    called=lambda text: text.removeprefix("lift "),
)


def libero(file: Path) -> None:
    """Write the first state of each task of LIBERO object."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        _save([LIBERO.film(out, trial) for trial in LIBERO.trials(out)], file)


def colours(file: Path) -> None:
    """Write, for Lift and each colour, the first success above the first failure."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [pair for row in (LIFT, COLOURS) for pair in _pairs(row, Path(folder) / row.policy)]
    _save([film for outcome in zip(*pairs, strict=True) for film in outcome], file, columns=len(pairs))


def _pairs(row: Evaluation, out: Path) -> Iterator[tuple[Film, Film]]:
    """Yield the first success and the first failure of each instruction, if it has both."""
    trials = row.trials(out)
    for instruction in sorted({trial["instruction"] for trial in trials}):
        of = [trial for trial in trials if trial["instruction"] == instruction]
        solved, missed = ([trial for trial in of if trial["success"] is success] for success in (True, False))
        if solved and missed:
            yield row.film(out, solved[0]), row.film(out, missed[0])


def _front(video: Path) -> list[Image]:
    """Return the left half of each frame: its upper square is the front camera."""
    frames: list[Image] = []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            edge = pixels.shape[1] // 2
            frames.append(pixels[:edge, :edge])
    return frames


def _save(films: Sequence[Film], file: Path, columns: int = COLUMNS) -> None:
    """Write a cell for each film, side by side, until the longest ends."""
    pictures = [_picture(films, number, columns) for number in range(max(len(film.frames) for film in films))]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_MS]
    pictures[0].save(
        file, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=45, method=6
    )  # fmt: skip


def _picture(films: Sequence[Film], number: int, columns: int) -> PIL.Image.Image:
    rows = -(-len(films) // columns)
    size = columns * (EDGE_PX + GAP_PX) + GAP_PX, rows * (EDGE_PX + LINE_PX + GAP_PX) + GAP_PX
    picture = PIL.Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for cell, film in enumerate(films):
        x = GAP_PX + cell % columns * (EDGE_PX + GAP_PX)
        y = GAP_PX + cell // columns * (EDGE_PX + LINE_PX + GAP_PX)
        frame = np.ascontiguousarray(film.frames[min(number, len(film.frames) - 1)])
        small = PIL.Image.fromarray(frame).resize((EDGE_PX, EDGE_PX), PIL.Image.Resampling.LANCZOS)
        picture.paste(small, (x, y + LINE_PX))
        ended = number >= len(film.frames) - 1
        ink = INK if not ended else GOOD if film.success else BAD
        outcome = "" if not ended else "  solved" if film.success else "  not solved"
        pen.text((x + 2, y + 2), film.thing + outcome, fill=ink, font=font)
        if ended:
            pen.rectangle((x, y + LINE_PX, x + EDGE_PX - 1, y + LINE_PX + EDGE_PX - 1), outline=ink, width=2)
    return picture
