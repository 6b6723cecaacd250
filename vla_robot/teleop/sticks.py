"""Moves the tool by a device that springs back to its middle: a gamepad's sticks, a SpaceMouse's cap."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Protocol

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TeleopError
from vla_robot.core.teleop import Button
from vla_robot.core.teleop_device import action_of, is_closed
from vla_robot.teleop.keys import FULL_SPEED, HandMotion
from vla_robot.teleop.motion import MotionCommand

DEAD_ZONE = 0.12
"""Share of an axis's range about its middle that counts as the middle, since sticks do not return exactly."""

LINGER_S = 0.3
"""Time for which actions are sent after the last deflection, so that a stick may pass its middle without a hold."""

Pressed = Button | Literal["grip"]


@dataclass(frozen=True)
class DeviceState:
    """The state of such a device.

    Attributes:
        axes: (6,) one for each of AXES, -1 to 1; x forward and y left in the arm's base frame, z up.
        pressed: buttons that were pressed since the last read.
        opening: opening of the gripper, 0 closed to 1 open, where the device reports it; None leaves it as it is.
    """

    axes: tuple[float, ...]
    pressed: frozenset[Pressed] = frozenset()
    opening: float | None = None


class Sticks(Protocol):
    """The port of a device that springs back to its middle."""

    @property
    def help(self) -> tuple[tuple[str, str], ...]:
        """Lines of the key map: (what is moved or pressed, what it does)."""
        ...

    def read(self) -> DeviceState:
        """Return the device's state now, without waiting.

        Raises:
            TeleopError: the device is gone.
        """
        ...

    def close(self) -> None:
        """Release the device. May be called twice."""
        ...


class DeviceFile:
    """A device that is read through a file descriptor."""

    def __init__(self, fd: int, path: str) -> None:
        """
        Args:
            fd: descriptor to read from; `close` closes it.
            path: the device's name in error messages.
        """
        self._fd: int | None = fd
        self._path = path
        os.set_blocking(fd, False)

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _read_now(self, size: int) -> bytes | None:
        """Return up to `size` bytes: None while there are none, b"" at the end of the file.

        Raises:
            TeleopError: the device is gone, or was closed.
        """
        if self._fd is None:
            raise TeleopError(f"{self._path} was closed.")
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return None
        except OSError as error:
            raise TeleopError(f"{self._path} is gone: {error.strerror}. Plug it in again.") from error


class StickMotion(HandMotion):
    """The port TeleopDevice for sticks."""

    def __init__(self, sticks: Sticks, embodiment: Embodiment) -> None:
        """See `HandMotion`."""
        super().__init__(embodiment)
        self._sticks = sticks
        self._linger = max(1, round(LINGER_S * embodiment.rate_hz))
        self._released = False

    @property
    def help(self) -> tuple[tuple[str, str], ...]:
        return (*self._sticks.help, ("1 … 9", "speed"), ("space", "gripper"))

    def move(self) -> MotionCommand:
        held = self._sticks.read()
        if "grip" in held.pressed or (held.opening is not None and self._closed != is_closed(held.opening)):
            self._toggle()
        buttons: frozenset[Button] = frozenset(b for b in held.pressed if b != "grip")
        axes = [freed(axis) for axis in held.axes]
        if any(axes) and not self._released:
            self._goes_on = max(self._goes_on, self._linger)
        elif not any(axes):
            self._released = False
        if not self._goes_on:
            return MotionCommand(None, buttons)
        self._goes_on -= 1
        shares = [0.0 if self._released else axis * self._speed / FULL_SPEED for axis in axes]
        return MotionCommand(action_of(self._space, shares, self._closed), buttons)

    def rest(self) -> None:
        """Stop the motion. A stick that is deflected now counts again after it was in its middle."""
        self._released, self._goes_on = True, 0

    def close(self) -> None:
        self._sticks.close()


def freed(axis: float) -> float:
    """Remove the dead zone: return 0 inside it, and beyond it a linear value up to 1 with the axis's sign."""
    beyond = (min(abs(axis), 1.0) - DEAD_ZONE) / (1 - DEAD_ZONE)
    return 0.0 if beyond <= 0 else beyond if axis > 0 else -beyond
