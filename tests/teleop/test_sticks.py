"""Tests of gamepad and SpaceMouse: golden bytes in, motions of the tool out. No real device was available."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import TeleopError
from vla_robot.teleop.gamepad import EAST, NORTH, SOUTH, START, WEST, Gamepad, Layout, open_gamepad
from vla_robot.teleop.spacemouse import SpaceMouse, open_spacemouse
from vla_robot.teleop.sticks import LINGER_S, DeviceState, StickMotion, freed

conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("teleop.conftest"))]
XPAD = Layout([0, 1, 2, 3, 4, 5, 16, 17], [SOUTH, EAST, NORTH, WEST, 0x136, 0x137, 0x13A, START])
"""Layout of an Xbox pad with the kernel's driver xpad."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield a reader, which stands for the device's file and which the device closes, and a writer."""
    ends = os.pipe()
    yield ends
    os.close(ends[1])


@pytest.fixture
def packets() -> Iterator[tuple[int, int]]:
    """Yield the same ends, but each read gives one whole report, as a read of hidraw does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours.detach(), theirs.fileno()
    theirs.close()


# --- gamepad


def test_a_gamepads_events_move_the_axes(pipe: tuple[int, int]) -> None:
    pad = Gamepad(pipe[0], XPAD)
    assert pad.read() == DeviceState((0.0,) * 6)
    # 8 bytes: time 0x11 ms, value -32767, an axis, number 1: the left stick pushed to the front.
    os.write(pipe[1], bytes.fromhex("11000000 0180 02 01".replace(" ", "")))
    # value +32767, number 0: the left stick to the right; number 7, -32767: the cross up.
    os.write(pipe[1], bytes.fromhex("12000000 ff7f 02 00 13000000 0180 02 07".replace(" ", "")))
    held = pad.read()
    assert held.axes == (1.0, -1.0, 0.0, 0.0, 1.0, 0.0)
    assert pad.read().axes == held.axes  # it stays where it is held
    pad.close()


def test_a_gamepads_buttons_are_reported_once(pipe: tuple[int, int]) -> None:
    pad = Gamepad(pipe[0], XPAD)
    os.write(pipe[1], bytes.fromhex("11000000 0100 01 00 11000000 0100 01 07".replace(" ", "")))
    assert pad.read().pressed == {"grip", "start"}
    os.write(pipe[1], bytes.fromhex("15000000 0000 01 00".replace(" ", "")))
    assert pad.read().pressed == frozenset()
    pad.close()


def test_a_button_that_is_down_when_the_pad_is_opened_is_not_pressed(pipe: tuple[int, int]) -> None:
    pad = Gamepad(pipe[0], XPAD)
    os.write(pipe[1], bytes.fromhex("11000000 0100 81 00".replace(" ", "")))
    assert pad.read().pressed == frozenset()
    pad.close()


def test_an_event_cut_in_two_is_one_event(pipe: tuple[int, int]) -> None:
    pad = Gamepad(pipe[0], XPAD)
    event = struct.pack("<IhBB", 1, 16384, 2, 4)
    os.write(pipe[1], event[:3])
    assert pad.read().axes[2] == 0.0
    os.write(pipe[1], event[3:])
    assert pad.read().axes[2] == pytest.approx(-0.5, abs=1e-3)
    pad.close()


def test_a_missing_gamepad_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TeleopError, match=r"no gamepad.*modprobe joydev.*--source browser"):
        open_gamepad(tmp_path)


def test_a_file_that_is_no_joystick_is_refused(tmp_path: Path) -> None:
    (tmp_path / "js0").write_bytes(b"")
    with pytest.raises(TeleopError, match="is no joystick"):
        open_gamepad(tmp_path)


# --- SpaceMouse


def test_a_spacemouse_pushed_to_the_front_and_up(packets: tuple[int, int]) -> None:
    mouse = SpaceMouse(packets[0])
    os.write(packets[1], bytes.fromhex("01 0000 a2fe a2fe".replace(" ", "")))  # y -350, z -350
    np.testing.assert_allclose(mouse.read().axes, [1, 0, 1, 0, 0, 0])
    os.write(packets[1], bytes.fromhex("02 0000 0000 af00".replace(" ", "")))  # rz 175: clockwise from above
    np.testing.assert_allclose(mouse.read().axes, [1, 0, 1, 0, 0, -0.5])
    mouse.close()


def test_a_wireless_spacemouse_reports_all_six_axes_at_once(packets: tuple[int, int]) -> None:
    mouse = SpaceMouse(packets[0])
    os.write(packets[1], bytes.fromhex("01 5e01 0000 0000 af00 0000 0000".replace(" ", "")))  # x 350, rx 175
    np.testing.assert_allclose(mouse.read().axes, [0, -1, 0, 0, -0.5, 0])
    mouse.close()


def test_a_spacemouses_buttons_are_reported_once(packets: tuple[int, int]) -> None:
    mouse = SpaceMouse(packets[0])
    os.write(packets[1], bytes.fromhex("0301 00".replace(" ", "")))
    assert mouse.read().pressed == {"grip"}
    os.write(packets[1], bytes.fromhex("0303 00".replace(" ", "")))
    assert mouse.read().pressed == {"start"}
    os.write(packets[1], bytes.fromhex("0300 00".replace(" ", "")))
    assert mouse.read().pressed == frozenset()
    mouse.close()


def test_reports_of_other_kinds_and_short_ones_are_ignored(packets: tuple[int, int]) -> None:
    mouse = SpaceMouse(packets[0])
    os.write(packets[1], bytes.fromhex("1764"))  # a battery
    os.write(packets[1], bytes.fromhex("01ffff"))
    assert mouse.read() == DeviceState((0.0,) * 6)
    mouse.close()


def test_an_unplugged_spacemouse_raises_an_error(packets: tuple[int, int]) -> None:
    mouse = SpaceMouse(packets[0])
    socket.socket(fileno=os.dup(packets[1])).shutdown(socket.SHUT_RDWR)
    with pytest.raises(TeleopError, match="is gone"):
        mouse.read()
    mouse.close()


@pytest.mark.parametrize(
    ("hid_id", "found"),
    [
        ("0003:0000256F:0000C635", True),
        ("0003:0000046D:0000C626", True),
        ("0003:0000046D:0000C52B", False),  # a receiver of Logitech's keyboards
        ("garbage", False),
    ],
)
def test_a_spacemouse_is_known_by_its_numbers(tmp_path: Path, hid_id: str, found: bool) -> None:
    entry = tmp_path / "sys" / "hidraw3" / "device"
    entry.mkdir(parents=True)
    (entry / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID={hid_id}\n")
    # The device's file is missing in both cases; the message says whether opening it was tried.
    with pytest.raises(TeleopError, match=r"udev/rules\.d" if found else "there is no SpaceMouse"):
        open_spacemouse(tmp_path / "sys", tmp_path)


def test_a_spacemouse_that_is_there_is_opened(tmp_path: Path) -> None:
    entry = tmp_path / "sys" / "hidraw3" / "device"
    entry.mkdir(parents=True)
    (entry / "uevent").write_text("HID_ID=0003:0000256F:0000C635\n")
    os.mkfifo(tmp_path / "hidraw3")
    writer = os.open(tmp_path / "hidraw3", os.O_RDWR)
    mouse = open_spacemouse(tmp_path / "sys", tmp_path)
    os.write(writer, bytes.fromhex("01 0000 a2fe 0000".replace(" ", "")))
    assert mouse.read().axes[0] == 1.0
    mouse.close()
    mouse.close()
    os.close(writer)
    with pytest.raises(TeleopError, match="was closed"):
        mouse.read()


# --- both


class Stub:
    help = ()

    def __init__(self) -> None:
        self.held = DeviceState((0.0,) * 6)

    def read(self) -> DeviceState:
        held, self.held = self.held, DeviceState(self.held.axes)
        return held

    def close(self) -> None: ...


def test_a_stick_moves_while_it_is_held_and_a_moment_longer() -> None:
    stub = Stub()
    motion = StickMotion(stub, conftest.embodiment(10.0))
    assert motion.move().action is None
    stub.held = DeviceState((1.0, 0, 0, 0, 0, 0))
    action = motion.move().action
    assert action is not None and action[0] == pytest.approx(5 / 9 * conftest.STEP_M)
    stub.held = DeviceState((0.0,) * 6)
    after = [motion.move().action for _ in range(4)]
    assert sum(a is not None for a in after) == round(LINGER_S * 10) - 1
    assert all(not a[:-1].any() for a in after if a is not None)


def test_after_a_rest_a_deflected_stick_counts_again_once_it_was_in_its_middle() -> None:
    stub = Stub()
    motion = StickMotion(stub, conftest.embodiment(10.0))
    stub.held = DeviceState((1.0, 0, 0, 0, 0, 0))
    motion.rest()
    assert motion.move().action is None
    stub.held = DeviceState((0.0,) * 6)
    motion.move()
    stub.held = DeviceState((1.0, 0, 0, 0, 0, 0))
    assert motion.move().action is not None


def test_the_grip_button_toggles_and_buttons_pass() -> None:
    stub = Stub()
    motion = StickMotion(stub, conftest.embodiment(10.0))
    stub.held = DeviceState((0.0,) * 6, frozenset({"grip", "success"}))
    moved = motion.move()
    assert moved.buttons == {"success"} and moved.action is not None and moved.action[-1] == 0.0


def test_the_dead_zone_gives_0_and_the_full_deflection_gives_1() -> None:
    assert freed(0.1) == freed(-0.1) == 0.0
    assert freed(1.0) == 1.0 and freed(-1.0) == -1.0 and 0 < freed(0.2) < 0.2
