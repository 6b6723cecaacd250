"""The port of devices that move the tool when a person drives from a terminal: keys, sticks, or a leader arm."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button


class MotionCommand(NamedTuple):
    """A device's command for one control period.

    Attributes:
        action: (D,) in the units of the action space; None when the device is at rest. Then the arm holds.
        buttons: the device's own buttons that were pressed since the last command.
    """

    action: Vector | None
    buttons: frozenset[Button] = frozenset()


class TeleopDevice(Protocol):
    """A device that moves the tool. The terminal's keys begin and end episodes beside it."""

    @property
    def help(self) -> tuple[tuple[str, str], ...]:
        """Lines of the key map: (keys, what they do)."""
        ...

    @property
    def standing(self) -> str:
        """The device's state in a few words, such as its speed and its grip."""
        ...

    def press(self, key: str) -> bool:
        """Handle a key of the terminal. Return False when the device does not use that key."""
        ...

    def see(self, observation: Observation) -> None:
        """Take the newest observation of the arm."""
        ...

    def move(self) -> MotionCommand:
        """Return the command for this control period. The caller calls it once per period.

        Raises:
            TeleopError: the device is gone.
        """
        ...

    def rest(self) -> None:
        """Stop moving until the person moves the device again; motion then begins at the arm's pose."""
        ...

    def wake(self) -> None:
        """Begin to follow the person, who starts or takes over; a leader arm leads from the arm's pose from now on."""
        ...

    def grip(self, executed: Vector) -> None:
        """Continue with the grip of the (D,) action that another driver commanded."""
        ...

    def close(self) -> None:
        """Release the device. May be called twice."""
        ...
