"""Draws the pictures of README and docs from the program; takes some minutes, and needs Chromium.

    make pictures                          demo.webp, view.png, drive.png, takeover.png
    make pictures PICTURES="view.png"      one of them
    make pictures PICTURES="loop.png serving.png transport.png"
                                           the plots of `vla bench`. docs/benchmarks.md and docs/serving.md quote the
                                           figures of the same runs: renew both together, on a quiet computer.
    make pictures PICTURES="families.png"  docs/draw_families.py; needs no Chromium
    make pictures PICTURES="colours.webp libero_object.webp"
                                           docs/draw_episodes.py; the second needs `vla install libero`

Only pipeline.svg is drawn by hand.
"""

from __future__ import annotations

import base64
import bisect
import dataclasses
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import draw_episodes
import draw_families
import PIL.Image
from playwright.sync_api import Browser, Page, sync_playwright

from vla_robot.core.clock import NS_PER_MS, NS_PER_S
from vla_robot.core.messages import Image
from vla_robot.recipe import find, read
from vla_robot.recipe.env import CameraRecipe, EnvRecipe
from vla_robot.record.episode import EpisodeLog, read_episode
from vla_robot.world.kinds import build_world

PICTURES_FOLDER = Path(__file__).resolve().parent / "pictures"
VLA = (sys.executable, "-m", "vla_robot.cli.main")
ADDRESS = "tcp://127.0.0.1:5671"
SEED = 10000
"""The first episode of launch/lift.toml."""

SCENE = CameraRecipe("scene", pos=(0.95, -0.75, 1.35), target=(-0.12, 0.02, 1.0), fovy_deg=42, height=480, width=480)
"""A camera outside of the robot; no policy uses it."""

DEMO_PAGE_PX = (960, 640)
DEMO_FRAME_MS = 125
DEMO_LAST_MS = 2500
VIEW_PX, PHONE_PX = (1440, 900), (390, 900)
DRIVE_PX, TAKEOVER_PX = (1152, 860), (1280, 900)
WAIT_S = 300

_Shot = tuple[int, PIL.Image.Image]
"""Monotonic time [ns] of a page's picture, and the picture."""


def demo(browser: Browser, file: Path) -> None:
    """Draw the robot of `make demo` beside the page of `vla view`, in real time."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _command("bridge", "lift", "--bind", ADDRESS, until="listening on"),
        _view_page() as url,
    ):
        shots = _filmed(_open(browser, url, *DEMO_PAGE_PX), _run("--lockstep", "--seed", str(SEED), "--out", folder))
        [path] = Path(folder).rglob("*.vlalog")
        log = read_episode(path)
    frames = [_beside(scene, page) for scene, page in _side_by_side(log, shots)]
    durations = [DEMO_FRAME_MS] * (len(frames) - 1) + [DEMO_LAST_MS]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=72, method=6)


def view(browser: Browser, file: Path) -> None:
    """Draw the live view on a desk and on a phone, with a policy in real time."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _command("bridge", "lift", "--bind", ADDRESS, until="listening on"),
        _view_page() as url,
        _background(_run("--episodes", "99", "--out", folder)),
    ):
        desk, phone = _open(browser, url, *VIEW_PX), _open(browser, url, *PHONE_PX, dark=True)
        _wait_until(desk, "shown.mode === 'run'")
        _wait_until(desk, f"shown.pictures > {desk.evaluate('shown.pictures') + 240}")
        pictures = _while_running(desk, phone)
    both = PIL.Image.new("RGB", (VIEW_PX[0] + 20 + PHONE_PX[0], VIEW_PX[1]), "white")
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[1], (both.width - PHONE_PX[0], 0))
    both.save(file, optimize=True)


def drive(browser: Browser, file: Path) -> None:
    """Draw the page with which a person drives, in the middle of an episode."""
    with tempfile.TemporaryDirectory() as folder:
        record = ("record", "--env", "envs/tabletop.toml", "--source", "browser", "--port", "0")
        with _command(*record, "--episodes", "1", "--out", f"{folder}/data", until="http") as line:
            page = _open(browser, _url(line), *DRIVE_PX, dark=True)
            page.get_by_role("button", name="Start").click()
            pad = page.locator("#pad-xy").bounding_box()
            assert pad is not None
            page.mouse.move(pad["x"] + pad["width"] / 2, pad["y"] + pad["height"] / 2)
            page.mouse.down()
            page.mouse.move(pad["x"] + pad["width"] * 0.7, pad["y"] + pad["height"] * 0.35)
            _wait_until(page, "shown.pictures > 30")
            _screenshot(page).save(file, optimize=True)


def takeover(browser: Browser, file: Path) -> None:
    """Draw the page from which a person takes over, while the policy drives."""
    with tempfile.TemporaryDirectory() as folder:
        run = ("run", "--env", "lift", "--policy", "openvla_nano", "--takeover", "browser", "--port", "0")
        with _command(*run, "--episodes", "9", "--out", folder, until="http") as line:
            page = _open(browser, _url(line), *TAKEOVER_PX)
            _wait_until(page, "shown.pictures > 20")
            _screenshot(page).save(file, optimize=True)


def _plotted(benchmark: str) -> Callable[[Browser, Path], None]:
    def plot(browser: Browser, file: Path) -> None:
        subprocess.run([*VLA, "bench", benchmark, "--plot", str(file)], check=True)

    return plot


PICTURES: dict[str, Callable[[Browser, Path], None]] = {
    "demo.webp": demo,
    "view.png": view,
    "drive.png": drive,
    "takeover.png": takeover,
}
DRAWINGS: dict[str, Callable[[Path], None]] = {
    "families.png": draw_families.draw,
    "libero_object.webp": draw_episodes.libero,
    "colours.webp": draw_episodes.colours,
}
"""Drawn by name only, without a browser."""
PLOTS = {"loop.png": _plotted("loop"), "serving.png": _plotted("serve"), "transport.png": _plotted("transport")}
"""Drawn only by name, since pages quote the figures of the same runs."""


def _run(*options: str) -> subprocess.Popen[str]:
    """Start `vla run` of the demo's policy on the robot behind the bridge."""
    run = ("run", "--robot", ADDRESS, "--policy", "openvla_nano", "--episodes", "1")
    return subprocess.Popen([*VLA, *run, *options], text=True)


@contextmanager
def _background(process: subprocess.Popen[str]) -> Iterator[None]:
    """Terminate a process at the end of the block."""
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _filmed(page: Page, process: subprocess.Popen[str]) -> list[_Shot]:
    """Return every picture that the page draws until the process ends."""
    shots: list[_Shot] = []
    wall_ahead_ns = time.time_ns() - time.monotonic_ns()
    chromium = page.context.new_cdp_session(page)

    def take(event: dict[str, Any]) -> None:
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(event["data"]))).convert("RGB")
        shots.append((round(event["metadata"]["timestamp"] * NS_PER_S) - wall_ahead_ns, picture))
        chromium.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    chromium.on("Page.screencastFrame", take)
    chromium.send("Page.startScreencast", {"format": "png"})
    while process.poll() is None:
        page.wait_for_timeout(20)  # the events arrive meanwhile
    chromium.remove_listener("Page.screencastFrame", take)
    chromium.detach()
    return shots


def _side_by_side(log: EpisodeLog, shots: Sequence[_Shot]) -> Iterator[tuple[Image, PIL.Image.Image]]:
    """Yield the pictures of scene and page at every DEMO_FRAME_MS of the episode."""
    assert log.last is not None
    scenes = list(_scenes(log))
    seen_ns = [*(step.observation.stamp_ns for step in log.steps), log.last.stamp_ns]
    shot_ns = [at_ns for at_ns, _ in shots]
    drawn_ns = 3 * DEMO_FRAME_MS * NS_PER_MS  # by then the page has drawn the last step
    for now_ns in range(seen_ns[0], seen_ns[-1] + drawn_ns, DEMO_FRAME_MS * NS_PER_MS):
        scene = scenes[bisect.bisect_right(seen_ns, now_ns) - 1]
        yield scene, shots[bisect.bisect_right(shot_ns, now_ns) - 1][1]


def _scenes(log: EpisodeLog) -> Iterator[Image]:
    """Yield the episode's frames from outside: the same seed and actions give the same states."""
    recipe = read(EnvRecipe, find("envs", "lift"))
    world = build_world(dataclasses.replace(recipe, cameras=(SCENE,)))
    yield world.reset(SEED).images[SCENE.name]
    for step in log.steps:
        assert step.executed is not None
        yield world.step(step.executed).observation.images[SCENE.name]
    world.close()


def _beside(scene: Image, page: PIL.Image.Image) -> PIL.Image.Image:
    height, width = scene.shape[:2]
    shown = page.resize((page.width * height // page.height, height), PIL.Image.Resampling.LANCZOS)
    frame = PIL.Image.new("RGB", (width + shown.width, height))
    frame.paste(PIL.Image.fromarray(scene), (0, 0))
    frame.paste(shown, (width, 0))
    return frame


@contextmanager
def _view_page() -> Iterator[str]:
    with _command("view", ADDRESS, "--port", "0", until="http") as line:
        yield _url(line)


@contextmanager
def _command(*arguments: str, until: str) -> Iterator[str]:
    """Run a `vla` command during the block; yield its first line that contains `until`."""
    process = subprocess.Popen([*VLA, *arguments], stdout=subprocess.PIPE, text=True, cwd=PICTURES_FOLDER.parents[1])
    assert process.stdout is not None
    with _background(process):
        line = next((line for line in process.stdout if until in line), None)
        if line is None:
            raise SystemExit(f"`vla {' '.join(arguments)}` ended before it said '{until}'.")
        yield line


def _url(line: str) -> str:
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]


def _open(browser: Browser, url: str, width: int, height: int, dark: bool = False) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page.goto(url)
    return page


def _wait_until(page: Page, condition: str) -> None:
    """Return when a condition in JavaScript holds on the page, whose policy forbids playwright's own way to wait."""
    deadline = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise SystemExit(f"{page.url}: {condition} did not come true in {WAIT_S} s.")
        page.wait_for_timeout(50)


def _while_running(*pages: Page) -> list[PIL.Image.Image]:
    """Return a picture of each page during an episode, in which an action is played."""
    while True:
        _wait_until(pages[0], "shown.mode === 'run'")
        pictures = [_screenshot(page) for page in pages]
        if all(page.evaluate("shown.mode") == "run" for page in pages):
            return pictures


def _screenshot(page: Page) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main(names: Sequence[str]) -> None:
    """Draw the named pictures; without names, all but the plots.

    Raises:
        SystemExit: a name is unknown, or Chromium is missing.
    """
    known = {**PICTURES, **PLOTS}
    if unknown := [name for name in names if name not in {**known, **DRAWINGS}]:
        raise SystemExit(f"There is no picture {', '.join(unknown)}. There are: {', '.join([*known, *DRAWINGS])}.")
    for name in names:
        if name in DRAWINGS:
            DRAWINGS[name](PICTURES_FOLDER / name)
            print(f"Drawn: {name}", flush=True)
    in_browser = [name for name in names or PICTURES if name not in DRAWINGS]
    if in_browser:
        _draw_in_browser(known, in_browser)


def _draw_in_browser(known: Mapping[str, Callable[[Browser, Path], None]], names: Sequence[str]) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("There is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in names:
            known[name](browser, PICTURES_FOLDER / name)
            print(f"Drawn: {name}", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
