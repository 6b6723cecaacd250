"""A page as a person's hands: what it says becomes an action, and silence becomes none. Then in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from waiting import eventually

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.embodiment import ActionSpace, Dim
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Teleoperator
from vla_robot.core.teleop import TeleopCommand
from vla_robot.testing import TOOL_AXES, toy_embodiment, toy_observation
from vla_robot.web.browser_teleop import SEAT_S, SILENT_AFTER_S, BrowserTeleop
from vla_robot.web.server import Access

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEADLINE_S = 120.0
REACH_M, REACH_RAD = 0.05, 0.5
ARM = toy_embodiment(axes=TOOL_AXES, step_m=REACH_M, step_rad=REACH_RAD, height=24, width=32)
NOTHING: dict[str, Any] = {"seat": "a", "axes": [0] * 6, "closed": False, "buttons": [], "instruction": None}


def observation(step: int = 0) -> Observation:
    return toy_observation(ARM, step, shade=120, instruction="lift the red cube")


class Hands:
    """A page without a browser."""

    def __init__(self, teleop: BrowserTeleop) -> None:
        self._place, _, self._token = teleop.url.partition("#")

    def say(self, action: str = "drive", **changes: Any) -> tuple[int, Any]:
        body = json.dumps({**NOTHING, **changes}).encode()
        request = urllib.request.Request(f"{self._place}act/{action}", body, {"X-VLA-Token": self._token})
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def teleop(clock: FakeClock) -> Iterator[BrowserTeleop]:
    with contextlib.closing(BrowserTeleop(ARM, "lift the red cube", clock=clock)) as teleop:
        yield teleop


@pytest.fixture
def hands(teleop: BrowserTeleop) -> Hands:
    return Hands(teleop)


def test_it_is_a_teleop(teleop: BrowserTeleop) -> None:
    port: Teleoperator = teleop
    assert port.command() == TeleopCommand(None)


def test_hands_move_the_tool_in_the_units_of_the_arm(teleop: BrowserTeleop, hands: Hands) -> None:
    hands.say(axes=[1, -0.5, 0, 0, 0, 0.2], closed=True)
    action = teleop.command().action
    assert action is not None
    np.testing.assert_allclose(action, [REACH_M, -REACH_M / 2, 0, 0, 0, REACH_RAD / 5, 0.0])


def test_limits_that_are_not_alike_on_both_sides_are_kept() -> None:
    dims = (Dim("dz", "m", -0.01, 0.04), Dim("gripper", "1", 0.0, 1.0))
    arm = replace(ARM, action=ActionSpace("eef_delta", "base", dims))
    with contextlib.closing(BrowserTeleop(arm, "", clock=FakeClock())) as teleop:
        for axis, metres in ((1.0, 0.04), (-1.0, -0.01)):
            Hands(teleop).say(axes=[0, 0, axis, 0, 0, 0])
            action = teleop.command().action
            assert action is not None and action.tolist() == [metres, 1.0]


def test_buttons_and_text_are_told_once(teleop: BrowserTeleop, hands: Hands) -> None:
    hands.say(buttons=["start"], instruction="lift the blue cube")
    hands.say(buttons=["success"])
    said = teleop.command()
    assert said.buttons == {"start", "success"} and said.instruction == "lift the blue cube"
    assert teleop.command().buttons == frozenset() and teleop.command().instruction is None


def test_a_page_that_falls_silent_is_nobody_at_the_controls(
    teleop: BrowserTeleop, hands: Hands, clock: FakeClock
) -> None:
    hands.say(axes=[1, 0, 0, 0, 0, 0], buttons=["success"])
    clock.advance_ns(round(SILENT_AFTER_S * 1000) * NS_PER_MS)
    said = teleop.command()
    assert said.action is None and said.buttons == {"success"}


def test_a_stop_holds_until_start_is_pressed(teleop: BrowserTeleop, hands: Hands) -> None:
    hands.say(axes=[1, 0, 0, 0, 0, 0])
    assert hands.say("stop")[0] == 200
    hands.say(axes=[1, 0, 0, 0, 0, 0])
    said = teleop.command()
    assert said.action is None and "estop" in said.buttons
    hands.say(buttons=["start"])
    assert teleop.command().action is not None


def test_one_page_drives_until_it_is_silent(teleop: BrowserTeleop, hands: Hands, clock: FakeClock) -> None:
    hands.say(axes=[1, 0, 0, 0, 0, 0])
    status, told = hands.say(seat="b", axes=[-1, 0, 0, 0, 0, 0])
    assert status == 400 and "another page has control already" in told["error"]
    action = teleop.command().action
    assert action is not None and action[0] == REACH_M
    clock.advance_ns(round(SEAT_S * 1000) * NS_PER_MS)
    assert hands.say(seat="b")[0] == 200


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"axes": [0] * 5}, "6 numbers from -1 to 1"),
        ({"axes": [2, 0, 0, 0, 0, 0]}, "6 numbers from -1 to 1"),
        ({"axes": [True, 0, 0, 0, 0, 0]}, "6 numbers from -1 to 1"),
        ({"axes": [float("nan"), 0, 0, 0, 0, 0]}, "6 numbers from -1 to 1"),
        ({"axes": None}, "6 numbers from -1 to 1"),
        ({"closed": 1}, "'closed' must be true or false"),
        ({"buttons": ["sucess"]}, "did you mean 'success'"),
        ({"buttons": [["start"]]}, "unknown button"),
        ({"buttons": None}, "unknown button"),
        ({"instruction": "x" * 201}, "at most 200 characters"),
        ({"seat": ""}, "'seat' must be a short text"),
    ],
)
def test_a_malformed_message_moves_nothing(
    teleop: BrowserTeleop, hands: Hands, changes: dict[str, Any], why: str
) -> None:
    status, told = hands.say(**changes)
    assert status == 400 and why in told["error"]
    assert teleop.command() == TeleopCommand(None)


def test_an_arm_that_hands_cannot_drive_is_refused() -> None:
    joints = ActionSpace("joint_position", "joint", (Dim("joint_1", "rad", -1.0, 1.0), Dim("gripper", "1", 0.0, 1.0)))
    with pytest.raises(ContractError, match="moves the tool"):
        BrowserTeleop(replace(ARM, action=joints), "")
    odd = ActionSpace("eef_delta", "base", (Dim("dw", "m", -1.0, 1.0), Dim("gripper", "1", 0.0, 1.0)))
    with pytest.raises(ContractError, match="no axis for it"):
        BrowserTeleop(replace(ARM, action=odd), "")


@pytest.fixture
def shown() -> Iterator[BrowserTeleop]:
    """A teleop on the real clock, that shows one frame."""
    with contextlib.closing(BrowserTeleop(ARM, "lift the red cube", access=Access("token"))) as teleop:
        teleop.show(observation(), {"episode": "3 of 50"})
        yield teleop


@pytest.fixture
def page(shown: BrowserTeleop, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, has_touch=True)
    page = context.new_page()
    page.goto(shown.url)
    assert eventually(lambda: page.evaluate("shown.pictures >= 1"))
    yield page
    context.close()


def moves(teleop: BrowserTeleop, wanted: Callable[[np.ndarray], bool]) -> bool:
    def holds() -> bool:
        action = teleop.command().action
        return action is not None and wanted(action)

    return eventually(holds)


@pytest.mark.parametrize(
    ("key", "dim", "sign"),
    [("w", 0, 1), ("s", 0, -1), ("a", 1, 1), ("d", 1, -1), ("e", 2, 1), ("q", 2, -1), ("ArrowLeft", 5, 1), (".", 3, 1)],
)
def test_a_key_moves_while_it_is_held(shown: BrowserTeleop, page: Page, key: str, dim: int, sign: int) -> None:
    page.keyboard.down(key)
    assert moves(shown, lambda action: np.sign(action[dim]) == sign and np.count_nonzero(action[:6]) == 1)
    page.keyboard.up(key)
    assert moves(shown, lambda action: not action[:6].any())


def test_space_closes_and_opens_the_gripper(shown: BrowserTeleop, page: Page) -> None:
    for grip in (0.0, 1.0):
        page.keyboard.press("Space")
        assert moves(shown, lambda action, grip=grip: action[-1] == grip)


def test_a_pad_is_dragged_with_the_mouse(shown: BrowserTeleop, page: Page) -> None:
    box = page.locator("#pad-xy").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 200)
    assert moves(shown, lambda action: action[0] > 0 and abs(action[1]) < 1e-6)
    page.mouse.up()
    assert moves(shown, lambda action: not action[:6].any())


def test_a_gamepad_drives_too(shown: BrowserTeleop, page: Page) -> None:
    pad = "{id: 'test pad', connected: true, axes: [0, 0, 0, -1], buttons: [{pressed: true}]}"
    page.evaluate(f"navigator.getGamepads = () => [{pad}]")
    assert moves(shown, lambda action: action[2] > 0 and action[-1] == 0.0)


def test_buttons_text_and_counters_of_the_page(shown: BrowserTeleop, page: Page) -> None:
    assert "3 of 50" in page.inner_text("#counters")
    assert page.input_value("#task") == "lift the red cube"
    page.fill("#task", "lift the blue cube")
    page.keyboard.press("Enter")
    page.click("#button-start")
    said: list[TeleopCommand] = []

    def heard() -> bool:
        said.append(shown.command())
        return any("start" in s.buttons for s in said) and any(s.instruction == "lift the blue cube" for s in said)

    assert eventually(heard)


def test_what_is_typed_into_the_instruction_moves_nothing(shown: BrowserTeleop, page: Page) -> None:
    page.click("#task")
    page.keyboard.down("w")
    assert moves(shown, lambda action: not action[:6].any())
    assert page.input_value("#task").endswith("w")


def test_escape_is_the_e_stop(shown: BrowserTeleop, page: Page) -> None:
    page.keyboard.press("Escape")
    assert eventually(lambda: "estop" in shown.command().buttons)
    assert shown.command().action is None


def test_a_closed_page_leaves_nobody_at_the_controls(shown: BrowserTeleop, page: Page) -> None:
    page.keyboard.down("w")
    assert moves(shown, lambda action: action[0] > 0)
    page.close()
    assert eventually(lambda: shown.command().action is None)
