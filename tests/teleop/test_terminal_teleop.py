"""Tests of teleoperation at a pseudo-terminal: buttons, the instruction, the e-stop, and the drawn panel."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.ports import Teleoperator
from vla_robot.teleop.keys import KeyMotion
from vla_robot.teleop.panel import Panel, Status, rendered
from vla_robot.teleop.terminal import Terminal
from vla_robot.teleop.terminal_teleop import DRAW_EVERY_NS, STALE_NS, TerminalTeleop

conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("teleop.conftest"))]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NS_PER_S)


@pytest.fixture
def teleop(pty: Any, clock: FakeClock) -> Iterator[TerminalTeleop]:
    motion = KeyMotion(conftest.embodiment())
    with contextlib.closing(TerminalTeleop(motion, "lift it", Terminal(pty.fd), clock=clock)) as teleop:
        yield teleop


@pytest.fixture
def says(pty: Any, teleop: TerminalTeleop) -> Callable[[bytes], Any]:
    """Return a function that types bytes and returns the next command."""

    def say(data: bytes) -> Any:
        pty.type(data)
        return teleop.command()

    return say


def test_it_is_a_teleop(teleop: TerminalTeleop) -> None:
    port: Teleoperator = teleop
    assert port.command().action is None


@pytest.mark.parametrize(
    ("key", "button"),
    [
        (b"\r", "start"),
        (b"y", "success"),
        (b"n", "stop"),
        (b"x", "discard"),
        (b"r", "rerecord"),
        (b"\x1bOR", "discard"),
        (b"t", "takeover"),
        (b"g", "giveback"),
    ],
)
def test_a_key_is_a_button_once(says: Callable[[bytes], Any], teleop: TerminalTeleop, key: bytes, button: str) -> None:
    assert says(key).buttons == {button}
    assert teleop.command().buttons == frozenset()


def test_keys_move_the_tool(says: Callable[[bytes], Any]) -> None:
    assert says(b"w").action[0] > 0


@pytest.mark.parametrize("key", [b"z", b"\x7f", b"\t", b"0"])
def test_any_other_key_rests(says: Callable[[bytes], Any], key: bytes) -> None:
    assert says(b"wae").action is not None
    assert says(key).action is None


def test_the_e_stop_holds_until_start(says: Callable[[bytes], Any], teleop: TerminalTeleop) -> None:
    assert says(b"w\x1b").action is not None  # not yet: the byte may begin an arrow key
    stopped = teleop.command()
    assert stopped.buttons == {"estop"} and stopped.action is None
    assert says(b"w").action is None
    assert says(b"\r").buttons == {"start"}
    assert says(b"w").action is not None


def test_keys_typed_while_the_terminal_was_not_read_move_nothing_but_buttons_count(
    says: Callable[[bytes], Any], teleop: TerminalTeleop, clock: FakeClock
) -> None:
    teleop.command()
    clock.advance_ns(STALE_NS)
    said = says(b"wwwny")
    assert said.action is None and said.buttons == {"stop", "success"}
    assert says(b"w").action is not None


def test_an_instruction_is_typed_while_the_arm_rests(says: Callable[[bytes], Any]) -> None:
    assert says(b"wi").action is None
    assert says(b"push  \x7fthe cube").buttons == frozenset()
    said = says(b"\rw")
    assert said.instruction == "push the cube" and said.action is not None
    assert says(b"a").instruction is None


def test_escape_forgets_a_half_typed_instruction(says: Callable[[bytes], Any], teleop: TerminalTeleop) -> None:
    says(b"inonsense\x1b")
    said = teleop.command()
    assert said.instruction is None and said.buttons == frozenset()
    assert says(b"y").buttons == {"success"}


def test_escape_stops_a_policy_even_while_an_instruction_is_typed(
    says: Callable[[bytes], Any], teleop: TerminalTeleop
) -> None:
    teleop.tell_driver("policy", None)
    says(b"iab\x1b")
    assert teleop.command().buttons == {"estop"}


def test_a_person_who_takes_over_begins_with_the_policys_grip(
    says: Callable[[bytes], Any], teleop: TerminalTeleop
) -> None:
    teleop.tell_driver("policy", np.array([0, 0, 0, 0, 0, 0, 0.0]))
    says(b"t")
    teleop.tell_driver("person", None)
    assert says(b"w").action[-1] == 0.0


def test_closing_puts_the_terminal_back_and_may_be_done_twice(pty: Any) -> None:
    before = pty.modes
    teleop = TerminalTeleop(KeyMotion(conftest.embodiment()), "", Terminal(pty.fd))
    teleop.close()
    teleop.close()
    assert pty.modes == before


def test_a_device_that_fails_to_close_still_leaves_the_terminal_as_it_was(pty: Any) -> None:
    class Stuck(KeyMotion):
        def close(self) -> None:
            raise OSError("stuck")

    before = pty.modes
    teleop = TerminalTeleop(Stuck(conftest.embodiment()), "", Terminal(pty.fd))
    with pytest.raises(OSError, match="stuck"):
        teleop.close()
    assert pty.modes == before


def test_counters_last_keys_and_key_map_are_drawn(pty: Any, clock: FakeClock) -> None:
    screen = io.StringIO()
    panel = Panel(Console(file=screen, force_terminal=True, width=100))
    motion = KeyMotion(conftest.embodiment())
    with contextlib.closing(TerminalTeleop(motion, "", Terminal(pty.fd), panel, clock)) as teleop:
        pty.type(b"w ")
        teleop.command()
        teleop.show(conftest.observation(), {"episode": "3 of 50", "rate": "9.8 Hz", "late ticks": "2"})
        drawn = screen.getvalue()
        for text in ("3 of 50", "9.8 Hz", "late ticks", "w space", "gripper closed", "lift the red cube", "E-STOP"):
            assert text in drawn.replace("\N{NO-BREAK SPACE}", " ")
        teleop.show(conftest.observation(), {"episode": "4 of 50"})
        assert "4 of 50" not in screen.getvalue()  # drawn some times a second, whatever the loop's rate
        clock.advance_ns(DRAW_EVERY_NS)
        teleop.show(conftest.observation(), {"episode": "4 of 50"})
        assert "4 of 50" in screen.getvalue()
    assert screen.getvalue().rstrip("\n").endswith("\x1b[?25h") or "\x1b[?25h" in screen.getvalue()


def test_what_is_typed_is_shown_as_it_is_and_never_as_markup() -> None:
    screen = io.StringIO()
    Console(file=screen, width=80).print(rendered(Status("lift [red]it[/red]", editing="[bold]x", last_keys=["["])))
    assert "[bold]x" in screen.getvalue()
