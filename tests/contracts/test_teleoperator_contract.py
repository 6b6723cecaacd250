"""What every teleoperator promises, before a person touches it. What keys and pages do is tested in tests/teleop."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from vla_robot.core.ports import Teleoperator
from vla_robot.teleop.keys import KeyMotion
from vla_robot.teleop.terminal import Terminal
from vla_robot.teleop.terminal_teleop import TerminalTeleop
from vla_robot.testing import TOOL_AXES, ScriptedTeleoperator, check_teleoperator, move, press, toy_embodiment
from vla_robot.web.browser_teleop import BrowserTeleop

ARM = toy_embodiment(axes=TOOL_AXES)


def terminal() -> Teleoperator:
    person, fd = os.openpty()
    os.write(person, b"w\ry")
    return TerminalTeleop(KeyMotion(ARM), "lift it", Terminal(fd))


KINDS: dict[str, Callable[[], Teleoperator]] = {
    "browser": lambda: BrowserTeleop(ARM, "lift it"),
    "terminal": terminal,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_teleoperator_keeps_its_contract(kind: str) -> None:
    check_teleoperator(KINDS[kind], ARM)


def test_a_script_keeps_it() -> None:
    script = {0: press("start", "lift"), 1: move(0.02), 2: press("success")}
    check_teleoperator(lambda: ScriptedTeleoperator(script), toy_embodiment())
