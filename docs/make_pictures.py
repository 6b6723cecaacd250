"""Draws the moving picture of the README, demo.webp, from the program as it is; takes a minute, and needs Chromium."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from playwright.sync_api import Browser, Page, sync_playwright

from vla_robot.cli.build import build_policy, connect_robot
from vla_robot.core.messages import Image, Vector
from vla_robot.recipe import find, read
from vla_robot.recipe.env import CameraRecipe, EnvRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.serve.bridge.synchronous_env import SynchronousEnv
from vla_robot.world.kinds import build_world

FOLDER = Path(__file__).resolve().parent
VLA = (sys.executable, "-m", "vla_robot.cli.main")
ADDRESS = "tcp://127.0.0.1:5671"
SEED = 10000
"""The first episode of launch/lift.toml."""

SCENE = CameraRecipe("scene", pos=(0.95, -0.75, 1.35), target=(-0.12, 0.02, 1.0), fovy_deg=42, height=480, width=480)
"""The robot as a visitor sees it; no policy looks through this camera."""

DEMO_PAGE_PX = (960, 640)
DEMO_FRAME_MS = 160
DEMO_LAST_MS = 2500
SHOWN_AFTER_MS = 400
"""A tick is drawn by then."""


def demo(browser: Browser) -> None:
    """The robot of `make demo` at work, beside the page of `vla view`: one frame a control step."""
    with _command("bridge", "lift", "--bind", ADDRESS, until="listening on"), _view_page() as url:
        page = _open(browser, url, *DEMO_PAGE_PX)
        executed, pages = _episode(page)
        page.close()
    frames = [_beside(scene, shown) for scene, shown in zip(_scenes(executed), pages, strict=True)]
    durations = [DEMO_FRAME_MS] * (len(frames) - 1) + [DEMO_LAST_MS]
    frames[0].save(
        FOLDER / "pictures" / "demo.webp",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        quality=72,
        method=6,
    )


def _episode(page: Page) -> tuple[list[Vector], list[PIL.Image.Image]]:
    """One episode of the demo, behind a bridge that waits for each action: what was executed, and the page after it."""
    world = SynchronousEnv(connect_robot(ADDRESS))
    policy = build_policy(find_policy("openvla_nano"), read(EnvRecipe, "lift"), world.embodiment)
    policy.reset(SEED)
    observation = world.reset(SEED)
    executed: list[Vector] = []
    pages: list[PIL.Image.Image] = []
    over = False
    while not over:
        result = world.step(policy.act([observation])[0].actions[0])
        observation, over = result.observation, result.terminated or result.truncated
        assert result.executed is not None
        executed.append(result.executed)
        page.wait_for_timeout(SHOWN_AFTER_MS)
        pages.append(_screenshot(page))
    world.close()
    return executed, pages


def _scenes(executed: list[Vector]) -> Iterator[Image]:
    """The same episode from outside: the same seed and actions give the same states."""
    recipe = read(EnvRecipe, find("envs", "lift"))
    world = build_world(dataclasses.replace(recipe, cameras=(SCENE,)))
    world.reset(SEED)
    for action in executed:
        yield world.step(action).observation.images[SCENE.name]
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
    """A `vla` command that goes on meanwhile; its first line that holds `until`."""
    process = subprocess.Popen([*VLA, *arguments], stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if until in line), None)
        if line is None:
            raise SystemExit(f"`vla {' '.join(arguments)}` ended before it said '{until}'.")
        yield line
    finally:
        process.terminate()
        process.wait(timeout=60)


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


def _screenshot(page: Page) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """Draw the moving picture of the README."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("There is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        demo(browser)
        browser.close()


if __name__ == "__main__":
    main()
