"""How many pictures of each camera the live view really shows: the shipped policy on Lift behind a bridge.

    python tests/tools/view_rate.py --episodes 5 --json view_rate.json

Bridge, policy, `vla view` and headless Chromium are processes of their own. A picture counts once the browser draws a
frame with it; two that fall into one frame count as one. The bridge numbers what it sees, so that a number which never
came to the page is one that was lost on the way. Leave the computer alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright
from success_over_proxy import ENV, POLICY, VLA, running

IDLE_MS = 5000.0
"""How long nothing drives, before the first episode and after the last."""

SLICE_MS = 200.0

NOTE = """
globalThis.noted = [];
const drawn = new Set(), draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (...picture) {
  drawn.add(this.canvas);
  return draw.apply(this, picture);
};
requestAnimationFrame(function note(now) {
  const idle = document.getElementById("mode")?.textContent === "IDLE";
  const cameras = [...drawn].map((canvas) => canvas.parentElement.textContent);
  if (cameras.length || idle !== noted.at(-1)?.[1]) noted.push([now, idle, globalThis.shown?.tick ?? 0, cameras]);
  drawn.clear();
  requestAnimationFrame(note);
});
"""
"""Runs in the page."""


@dataclass(frozen=True)
class Frame:
    """A frame of the browser in which something is new.

    Attributes:
        ms: when, by the browser's clock.
        idle: the page says that no episode runs.
        tick: the bridge's number of what is shown.
        cameras: those whose picture is new.
    """

    ms: float
    idle: bool
    tick: int
    cameras: tuple[str, ...]


Span = tuple[Frame, Frame]
"""Two frames, one after the other; the first one tells what the page says in between."""


def rates(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """Rows: new pictures a second by phase and camera, and the usual time between two."""
    running = [k for k, frame in enumerate(frames) if not frame.idle]
    phases = {
        "while an episode runs": [span for span in pairwise(frames) if not span[0].idle],
        "while none runs": [span for span in pairwise(frames) if span[0].idle],
        "from the first episode to the last, pauses included": list(pairwise(frames[running[0] : running[-1] + 2])),
    }
    cameras = sorted({camera for frame in frames for camera in frame.cameras})
    return [
        *(
            _row(f"{camera}, {name}", _rate_hz(spans, camera), "Hz")
            for name, spans in phases.items()
            for camera in cameras
        ),
        *(_row(f"{camera}, median between two pictures", _interval_ms(frames, camera), "ms") for camera in cameras),
    ]


def _rate_hz(spans: Sequence[Span], camera: str) -> float:
    seconds = sum(b.ms - a.ms for a, b in spans) / 1000
    return sum(camera in b.cameras for _, b in spans) / seconds


def _interval_ms(frames: Sequence[Frame], camera: str) -> float:
    return median(b - a for a, b in pairwise(frame.ms for frame in frames if camera in frame.cameras))


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit}


def lost(frames: Sequence[Frame]) -> int:
    """What the bridge saw and the page never showed."""
    return sum(max(b.tick - a.tick - 1, 0) for a, b in pairwise(frames))


def watched(page: Page, robot: str, episodes: int, folder: Path) -> list[Frame]:
    """What the page shows from its first picture on: before, during and after a run."""
    page.wait_for_timeout(IDLE_MS)
    drive = (*VLA, "run", "--robot", robot, "--policy", POLICY, "--episodes", str(episodes), "--out", str(folder))
    with subprocess.Popen(drive, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            page.wait_for_timeout(SLICE_MS)
    page.wait_for_timeout(IDLE_MS)
    noted = [Frame(ms, idle, tick, tuple(cameras)) for ms, idle, tick, cameras in page.evaluate("noted")]
    return noted[next(k for k, frame in enumerate(noted) if frame.cameras) :]


def measure(episodes: int, folder: Path) -> list[dict[str, Any]]:
    """Rows: each camera's rates, and what was lost."""
    told = folder / "bridge.json"
    bridge = (*VLA, "bridge", ENV, "--bind", "tcp://127.0.0.1:0", "--json", str(told))
    with running(bridge, r"listening on (tcp://127\.0\.0\.1:\d+)") as robot:
        view = (*VLA, "view", robot, "--port", "0", "--read-only")
        with running(view, r"(http://127\.0\.0\.1:\d+/)") as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.add_init_script(NOTE)
            page.goto(url)
            frames = watched(page, robot, episodes, folder / "run")
            browser.close()
    missed = json.loads(told.read_text())["status"]["counts"]["missed_ticks"]
    return [
        *rates(frames),
        _row("moments shown", len({frame.tick for frame in frames}), "1"),
        _row("moments lost on the way to the page", lost(frames), "1"),
        _row("ticks that the bridge's clock missed", missed, "1"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.episodes, Path(folder))
    for row in rows:
        print(f"{row['name']}: {row['value']:.3g} {row['unit'].removesuffix('1')}".rstrip())
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
