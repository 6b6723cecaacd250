"""Reads a gamepad through Linux's joystick interface. It needs no library and no display, so it works over SSH.

    /dev/input/js0    8 bytes an event:  u32 ms | s16 value | u8 type | u8 number      little endian

The numbers differ from pad to pad; two ioctls give the axis and the button of each number.

Source: Linux, Documentation/input/joydev/joystick-api.rst, include/uapi/linux/joystick.h, input-event-codes.h.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_robot.core.errors import TeleopError
from vla_robot.teleop.sticks import DeviceFile, DeviceState, Pressed

EVENT = struct.Struct("<IhBB")
BUTTON_EVENT, AXIS_EVENT, INITIAL = 0x01, 0x02, 0x80
FULL = 32767

JSIOCGAXES, JSIOCGBUTTONS = 0x80016A11, 0x80016A12
JSIOCGAXMAP, JSIOCGBTNMAP = 0x80406A32, 0x84006A34
MAX_AXES, MAX_BUTTONS = 64, 512

LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y, HAT_Y = 0, 1, 3, 4, 17
SOUTH, EAST, NORTH, WEST = 0x130, 0x131, 0x133, 0x134
LEFT_SHOULDER, RIGHT_SHOULDER, SELECT, START = 0x136, 0x137, 0x13A, 0x13B

PRESSES: Mapping[int, Pressed] = {
    SOUTH: "grip",
    EAST: "discard",
    NORTH: "success",
    WEST: "success",
    SELECT: "stop",
    START: "start",
}
"""Event code -> button. Drivers disagree on which of the upper and the left button is NORTH, so both mean "success"."""

READ_EVENTS = 256
UDEV_FIX = "`sudo usermod -aG input $USER` and log in again, or once only: `sudo chmod a+r {path}`"


@dataclass(frozen=True)
class Layout:
    """The axis and the button of each number of the joystick interface.

    Attributes:
        axes: code of each axis, by number.
        buttons: code of each button, by number.
    """

    axes: Sequence[int]
    buttons: Sequence[int]


class Gamepad(DeviceFile):
    """A gamepad that is plugged in; implements Sticks."""

    help = (
        ("left stick", "x, y"),
        ("right stick", "up, down, turn"),
        ("shoulders", "roll"),
        ("cross", "tilt"),
        ("A", "gripper"),
        ("start", "start"),
        ("X Y", "success"),
        ("back", "stop, keep"),
        ("B", "discard"),
    )

    def __init__(self, fd: int, layout: Layout, path: str = "the gamepad") -> None:
        """See `DeviceFile`. `layout` names the pad's axes and buttons."""
        super().__init__(fd, path)
        self._layout = layout
        self._left = b""
        self._axes: dict[int, float] = {}
        self._down: set[int] = set()

    def read(self) -> DeviceState:
        fresh: set[int] = set()
        for value, kind, number in self._events():
            if kind & ~INITIAL == AXIS_EVENT and number < len(self._layout.axes):
                self._axes[self._layout.axes[number]] = max(-1.0, value / FULL)
            elif kind & ~INITIAL == BUTTON_EVENT and number < len(self._layout.buttons):
                code = self._layout.buttons[number]
                # A button that is already down when the pad is opened does not count as pressed.
                fresh |= {code} if value and not kind & INITIAL else set()
                self._down = self._down | {code} if value else self._down - {code}
        return DeviceState(self._hand(), frozenset(PRESSES[code] for code in fresh if code in PRESSES))

    def _hand(self) -> tuple[float, ...]:
        """Return the position of AXES, -1 to 1. Sticks count right and down as positive; x is forward and y left."""
        axis = self._axes
        roll = float(RIGHT_SHOULDER in self._down) - float(LEFT_SHOULDER in self._down)
        sticks = [axis.get(code, 0.0) for code in (LEFT_Y, LEFT_X, RIGHT_Y, HAT_Y, RIGHT_X)]
        x, y, z, tilt, turn = (-value if value else 0.0 for value in sticks)
        return x, y, z, roll, tilt, turn

    def _events(self) -> list[tuple[int, int, int]]:
        data = self._left
        while more := self._read_now(READ_EVENTS * EVENT.size):
            data += more
        whole = len(data) // EVENT.size * EVENT.size
        self._left = data[whole:]
        return [(value, kind, number) for _, value, kind, number in EVENT.iter_unpack(data[:whole])]


def open_gamepad(folder: Path = Path("/dev/input")) -> Gamepad:
    """Open the first gamepad of this computer.

    Raises:
        TeleopError: there is none, or this user may not read it.
    """
    found = sorted(folder.glob("js*"))
    if not found:
        raise TeleopError(
            f"there is no gamepad: {folder} has no js0. Plug one in, or pair it; `sudo modprobe joydev` where the "
            "kernel lacks the joystick interface. `--source browser` reads the gamepad of the computer that opens the "
            "page."
        )
    path = found[0]
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        fix = UDEV_FIX.format(path=path)
        raise TeleopError(f"the gamepad {path} cannot be opened: {error.strerror}. {fix}.") from error
    try:
        return Gamepad(fd, _layout(fd), str(path))
    except OSError as error:
        os.close(fd)
        raise TeleopError(f"{path} is no joystick: {error.strerror}.") from error


def _layout(fd: int) -> Layout:
    """Ask the kernel for the pad's layout. Raise OSError when the file is no joystick."""
    axes, buttons = array.array("B", bytes(MAX_AXES)), array.array("H", bytes(2 * MAX_BUTTONS))
    fcntl.ioctl(fd, JSIOCGAXMAP, axes)
    fcntl.ioctl(fd, JSIOCGBTNMAP, buttons)
    counts = [array.array("B", [0]), array.array("B", [0])]
    for request, count in zip((JSIOCGAXES, JSIOCGBUTTONS), counts, strict=True):
        fcntl.ioctl(fd, request, count)
    return Layout(axes.tolist()[: counts[0][0]], buttons.tolist()[: counts[1][0]])
