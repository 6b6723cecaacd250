"""Reads a SpaceMouse through Linux's hidraw interface: the device's own reports, without a driver or a library.

    report 1     x y z              3 times s16, little endian; right, towards the person, down; about +-350 counts
    report 1     x y z rx ry rz     6 times s16, from wireless devices
    report 2     rx ry rz           3 times s16, about the same axes
    report 3     buttons            one bit each

    AXES         x = -y (forward)   y = -x (left)     z = -z (up), and the same for rotations

Source: Linux, Documentation/hid/hidraw.rst; USB HID Usage Tables, Generic Desktop Page, for the direction of the axes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from vla_robot.core.errors import TeleopError
from vla_robot.teleop.sticks import DeviceFile, DeviceState, Pressed

TRANSLATION, ROTATION, BUTTONS = 1, 2, 3
FULL = 350.0
"""Counts of the cap at its stop, on all of 3Dconnexion's devices."""

LOGITECH, CONNEXION = 0x046D, 0x256F
LOGITECH_MICE = range(0xC603, 0xC62F)
"""Product numbers of 3Dconnexion's devices until 2013, which have Logitech's vendor number."""

PRESSES: tuple[tuple[int, Pressed], ...] = ((0, "grip"), (1, "start"))
"""(bit of report 3, button), for the left and the right button."""

READ_BYTES = 64
UDEV_RULE = (
    'KERNEL=="hidraw*", ATTRS{idVendor}=="256f", MODE="0660", TAG+="uaccess"',
    'KERNEL=="hidraw*", ATTRS{idVendor}=="046d", MODE="0660", TAG+="uaccess"',
)


class SpaceMouse(DeviceFile):
    """A SpaceMouse; implements Sticks."""

    help = (
        ("cap", "push and turn as the tool is to"),
        ("left button", "gripper"),
        ("right button", "start"),
    )

    def __init__(self, fd: int, path: str = "the SpaceMouse") -> None:
        """See `DeviceFile`; `fd` gives one report per read."""
        super().__init__(fd, path)
        self._counts = [0] * 6
        self._bits = 0

    def read(self) -> DeviceState:
        pressed: set[Pressed] = set()
        for report in self._reports():
            pressed |= self._take(report)
        return DeviceState(hand_of(self._counts), frozenset(pressed))

    def _take(self, report: bytes) -> set[Pressed]:
        """Store the values of one report. Return the buttons that it reports as newly pressed."""
        number, body = report[0], report[1:]
        if number == TRANSLATION and len(body) >= 12:
            self._counts = list(struct.unpack_from("<6h", body))
        elif number == TRANSLATION and len(body) >= 6:
            self._counts[:3] = struct.unpack_from("<3h", body)
        elif number == ROTATION and len(body) >= 6:
            self._counts[3:] = struct.unpack_from("<3h", body)
        elif number == BUTTONS and body:
            before, self._bits = self._bits, int.from_bytes(body, "little")
            return {what for bit, what in PRESSES if self._bits & ~before & 1 << bit}
        return set()

    def _reports(self) -> Iterator[bytes]:
        while (report := self._read_now(READ_BYTES)) is not None:
            if not report:
                raise TeleopError(f"{self._path} is gone. Plug it in again.")
            yield report


def hand_of(counts: list[int]) -> tuple[float, ...]:
    """Return the position of AXES, -1 to 1, from the device's six counts."""
    right, back, down, about_right, about_back, about_down = (max(-1.0, min(1.0, n / FULL)) for n in counts)
    return tuple(-v if v else 0.0 for v in (back, right, down, about_back, about_right, about_down))


def open_spacemouse(sysfs: Path = Path("/sys/class/hidraw"), devices: Path = Path("/dev")) -> SpaceMouse:
    """Open the first SpaceMouse of this computer.

    Raises:
        TeleopError: there is none, or this user may not read it.
    """
    names = [entry.name for entry in sorted(sysfs.glob("hidraw*")) if _is_spacemouse(entry)]
    if not names:
        raise TeleopError(
            f"there is no SpaceMouse among the devices in {sysfs}. Plug it into the computer that `vla` runs on, or "
            "use keys, which need no device: `--source keyboard`."
        )
    path = devices / names[0]
    try:
        return SpaceMouse(os.open(path, os.O_RDONLY | os.O_NONBLOCK), str(path))
    except OSError as error:
        raise TeleopError(
            f"the SpaceMouse {path} cannot be opened: {error.strerror}. Write the lines {' and '.join(UDEV_RULE)} to "
            "/etc/udev/rules.d/70-spacemouse.rules, then `sudo udevadm control --reload && sudo udevadm trigger`, "
            f"or once only: `sudo chmod a+r {path}`."
        ) from error


def _is_spacemouse(entry: Path) -> bool:
    """Return whether the line HID_ID=BUS:VENDOR:PRODUCT of a device's uevent file names a SpaceMouse."""
    try:
        lines = (entry / "device" / "uevent").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    ids = [line.removeprefix("HID_ID=").split(":") for line in lines if line.startswith("HID_ID=")]
    for _, vendor, product in (i for i in ids if len(i) == 3):
        number, model = int(vendor, 16), int(product, 16)
        if number == CONNEXION or (number == LOGITECH and model in LOGITECH_MICE):
            return True
    return False
