"""What moves the tool when a person drives from a terminal: its keys, sticks, or an arm that is led by hand."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button


class MotionCommand(NamedTuple):
    """What a device says at one moment.

    Attributes:
        action: (D,) in the units of the action space; None when nothing moves it. Then the arm holds.
        buttons: of the device itself, pressed since the last time.
    """

    action: Vector | None
    buttons: frozenset[Button] = frozenset()


class TeleopDevice(Protocol):
    """A device without the terminal's buttons."""

    @property
    def help(self) -> tuple[tuple[str, str], ...]:
        """(keys, what they do), to be shown."""
        ...

    @property
    def standing(self) -> str:
        """How it stands, in a few words: its speed, its grip."""
        ...

    def press(self, key: str) -> bool:
        """A key of the terminal; whether it means something to this device."""
        ...

    def see(self, observation: Observation) -> None:
        """The newest of the arm."""
        ...

    def move(self) -> MotionCommand:
        """What is asked for in this period of the control; called once in each.

        Raises:
            TeleopError: the device is gone.
        """
        ...

    def rest(self) -> None:
        """Let nothing move until the person moves again, and then from where the arm is."""
        ...

    def wake(self) -> None:
        """The person starts, or takes over: a device that is led moves from now on, from where the arm is."""
        ...

    def grip(self, opening: float) -> None:
        """Another driver drove: go on with its grip, 0 closed to 1 open."""
        ...

    def close(self) -> None:
        """Let go of the device. May be called twice."""
        ...
