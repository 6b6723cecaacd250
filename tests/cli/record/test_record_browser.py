"""`vla record --source browser`: a person's keys in headless Chromium lift the cube once, and the recording replays.

pytest -m slow tests/cli/record/test_record_browser.py
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.core.embodiment import GRIPPER_CLOSED, Embodiment
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import World
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.policy.scripted.experts import lift
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.record.collect import Collected
from vla_robot.record.controlled_robot import WaitingWorld
from vla_robot.record.teleop_session import Session
from vla_robot.serve.world.world_process import spawn_world
from vla_robot.web.browser_teleop import BrowserTeleop

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEADLINE_S = 90.0
SEED = 3
PATIENCE_STEPS = 900

KEYS = (("w", "s"), ("a", "d"), ("e", "q"))
"""For each direction of the tool: there, and back."""
NEAR_M, THERE_M = 0.05, 0.010
"""Of the expert's wish: below the first a person presses shift, below the second nothing."""

OPTIONS = {
    "--noise 0.5": ["--noise", "0.5"],
    "--driver hold": ["--driver", "hold"],
    "a dataset recipe": ["lift_demos"],
}


class Watched:
    """A world whose truth the test's person can see, as a person sees the scene."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.newest: Observation | None = None

    @property
    def embodiment(self) -> Embodiment:
        return self._world.embodiment

    @property
    def instruction(self) -> str:
        return self._world.instruction

    def reset(self, seed: int) -> Observation:
        self.newest = self._world.reset(seed)
        return self.newest

    def step(self, action: Vector) -> StepResult:
        result = self._world.step(action)
        self.newest = result.observation
        return result

    def close(self) -> None:
        self._world.close()


@pytest.fixture
def env(tmp_path: Path, repository: Path) -> Path:
    """The tabletop with one camera, and time for a person."""
    path = tmp_path / "tabletop_for_hands.toml"
    camera = '[[cameras]]\nname = "front"\npos = [1.05, 0.0, 0.42]\ntarget = [0.44, 0.0, 0.085]\nfovy_deg = 30\n'
    scene = f'scene = "{repository}/envs/tabletop.xml"\n'
    path.write_text(f'base = "tabletop"\n{scene}horizon = {PATIENCE_STEPS}\n{camera}')
    return path


class Recording:
    """A recording session in a thread of its own; its world in a process, as OpenGL may hang in a second thread."""

    def __init__(self, env: Path, out: Path) -> None:
        self.made: list[Collected] = []
        self.over = threading.Event()
        self.world: Watched | None = None
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(env, out), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    def _run(self, env: Path, out: Path) -> None:
        with (
            LeRobotWriter(out) as writer,
            spawn_world(env, privileged=True) as remote,
            contextlib.closing(Watched(remote)) as world,
            contextlib.closing(BrowserTeleop(world.embodiment, world.instruction)) as teleop,
        ):
            self.world, self.url = world, teleop.url
            self._ready.set()
            session = Session(WaitingWorld(world), teleop, writer, "a person, by browser", on_event=self.made.append)
            session.record(itertools.count(SEED), 1, self.over.is_set)

    def close(self) -> None:
        self.over.set()
        self._thread.join(DEADLINE_S)


class Person:
    """Presses what brings the tool where the expert would bring it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._held: set[str] = set()
        self._closed = False

    def act(self, observation: Observation) -> None:
        move, grip = lift(observation)
        wanted = {keys[int(m < 0)] for keys, m in zip(KEYS, move, strict=True) if abs(m) > THERE_M}
        self._hold(wanted | ({"Shift"} if np.abs(move).max() < NEAR_M else set()))
        if (grip == GRIPPER_CLOSED) != self._closed:
            self._page.keyboard.press("Space")
            self._closed = not self._closed

    def _hold(self, wanted: set[str]) -> None:
        for key in self._held - wanted:
            self._page.keyboard.up(key)
        for key in wanted - self._held:
            self._page.keyboard.down(key)
        self._held = wanted


@pytest.mark.sim
@pytest.mark.slow
def test_keys_in_a_browser_lift_the_cube_and_the_recording_replays_to_the_same_success(
    env: Path, tmp_path: Path, browser: Browser
) -> None:
    from vla_robot.world.kinds import build_world

    out = tmp_path / "demos"
    with contextlib.closing(Recording(env, out)) as recording:
        page = browser.new_page()
        page.goto(recording.url)
        page.click("#button-start")
        person, end = Person(page), time.monotonic() + 3 * DEADLINE_S
        while not recording.made and time.monotonic() < end:
            assert recording.world is not None and recording.world.newest is not None
            person.act(recording.world.newest)
            threading.Event().wait(0.02)
        page.close()
    assert [(e.seed, e.success, e.kept) for e in recording.made] == [(SEED, True, True)]

    demos = open_demos(out)
    (episode,) = demos.episodes
    assert episode.success and episode.driver == "a person, by browser" and demos.num_frames == recording.made[0].steps
    assert demos.executed is not None
    with contextlib.closing(build_world(read(EnvRecipe, env))) as world:
        world.reset(SEED)
        results = [world.step(action) for action in demos.executed]
    assert results[-1].success and results[-1].terminated and not any(r.terminated for r in results[:-1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_that_say_nothing_to_a_person_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    world = [] if options == OPTIONS["a dataset recipe"] else ["--env", "tabletop"]
    assert main(["record", *options, *world, "--source", "browser", "--out", str(tmp_path / "d")]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert "leave it out" in told or "needs a world and no dataset recipe" in told
    assert not (tmp_path / "d").exists()
