"""`--takeover browser`: a person in headless Chromium takes over from a policy, corrects it, and gives back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from waiting import eventually

from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.results import EpisodeResult
from vla_robot.loop.takeover import Takeover
from vla_robot.testing import FunctionPolicy, NoLimits, ToyWorld, toy_embodiment
from vla_robot.web.browser_teleop import BrowserTeleop

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEADLINE_S = 120.0
BACK = np.array([-0.01, 0.0])
"""What the policy does: it backs away with a closed gripper, which no hand at rest says."""
ARM = toy_embodiment(reach_m=9, height=24, width=32, rate_hz=20.0)


class Session:
    """An episode in a thread of its own."""

    def __init__(self, teleop: BrowserTeleop) -> None:
        self.steps: list[StepDone] = []
        self.result: EpisodeResult | None = None
        self._teleop = teleop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Takeover(FunctionPolicy(lambda o: np.tile(BACK, (8, 1))), self._teleop, ARM, row_by_row=True) as driver:
            self.result = run_episode(
                ToyWorld(embodiment=ARM, instruction="come here"),
                driver,
                0,
                guard=NoLimits(),
                subscribers=[driver, self._keep],
                rate_hz=ARM.rate_hz,
                should_stop=self._over.is_set,
            )

    def _keep(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.steps.append(event)

    def end(self) -> EpisodeResult:
        self._over.set()
        self._thread.join(DEADLINE_S)
        assert self.result is not None
        return self.result


@pytest.fixture
def session() -> Iterator[tuple[Session, str]]:
    """A running episode, and the address of its page."""
    with contextlib.closing(BrowserTeleop(ARM, "come here")) as teleop:
        session = Session(teleop)
        yield session, teleop.url
        session.end()


def says(page: Page, words: str) -> bool:
    return eventually(lambda: page.inner_text("#driver-name") == words)


def forward(step: StepDone) -> float:
    assert step.commanded is not None
    return float(step.commanded[0])


def test_a_person_takes_over_by_key_corrects_and_gives_back(session: tuple[Session, str], browser: Browser) -> None:
    episode, url = session
    page = browser.new_page()
    page.goto(url)
    assert says(page, "The policy drives") and not page.is_visible("#button-start")
    page.keyboard.press("t")
    assert says(page, "You drive")
    page.keyboard.down("w")
    assert eventually(lambda: any(s.intervention and forward(s) > 0 for s in list(episode.steps)))
    page.keyboard.up("w")
    page.click("#button-giveback")
    assert says(page, "The policy drives")
    there = len(episode.steps)
    assert eventually(lambda: len(episode.steps) > there + 3)
    page.close()

    result = episode.end()
    theirs = [step.intervention for step in episode.steps]
    first, last = theirs.index(True), len(theirs) - theirs[::-1].index(True)
    assert all(theirs[first:last]) and not any(theirs[last:]) and result.takeovers == 1
    assert (result.interventions, result.success) == (last - first, False)
    # What the policy held is not dropped by a hand that never touched the gripper.
    assert all(step.commanded is not None and step.commanded[1] == BACK[1] for step in episode.steps)
    assert all((step.commanded == BACK).all() for step in episode.steps if not step.intervention)


def test_a_page_that_is_closed_while_it_drives_leaves_the_world_waiting(
    session: tuple[Session, str], browser: Browser
) -> None:
    episode, url = session
    page = browser.new_page()
    page.goto(url)
    assert says(page, "The policy drives")
    page.keyboard.down("w")  # hands that move take over by themselves
    assert says(page, "You drive")
    page.close()

    def stands() -> bool:
        before = len(episode.steps)
        threading.Event().wait(0.5)
        return len(episode.steps) == before

    assert eventually(stands)
    assert episode.steps[-1].intervention


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--save", "success"], "add --record FOLDER"),
        (["--port", "0"], "are options of a page in the browser; --takeover browser opens one"),
        (["--takeover", "browser", "--host", "192.168.1.20"], "without a certificate"),
        (["--takeover", "keybord"], "did you mean 'keyboard'"),
    ],
)
def test_options_that_say_nothing_are_refused(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_robot.cli.run import run

    monkeypatch.setattr(run, "open_world", lambda *_: contextlib.closing(ToyWorld(embodiment=ARM)))
    monkeypatch.setattr(run, "build_policy", lambda *_: FunctionPolicy())
    assert main(["run", "--env", "tabletop", "--policy", "hold", *options]) == EXIT_USER_ERROR
    assert why in " ".join(capsys.readouterr().err.split())
