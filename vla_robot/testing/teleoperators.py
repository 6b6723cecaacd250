"""A teleoperator with scripted commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button, Driver, TeleopCommand

NO_COMMAND = TeleopCommand(None)
"""A command without motion or button."""


def move(dx: float, grip: float = 1.0) -> TeleopCommand:
    """Return a command that moves the tool along its first axis by `dx` [m]."""
    return TeleopCommand(np.array([dx, grip]))


def press(button: Button, instruction: str | None = None) -> TeleopCommand:
    """Return a command that presses a button, without motion."""
    return TeleopCommand(None, frozenset({button}), instruction)


@dataclass
class ScriptedTeleoperator:
    """A SharesControl that gives one command after the other, or that of the step shown last.

    Attributes:
        script: a sequence, one command per call of `command`; or step -> command: its buttons are given once, and its
            action as long as the step lasts.
        otherwise: command without an entry in the script.
        shown: (observation, counters) of each call of `show`.
        drivers: (driver, the arm's newest action) of each call of `tell_driver`.
    """

    script: Sequence[TeleopCommand] | Mapping[int, TeleopCommand] = ()
    otherwise: TeleopCommand = NO_COMMAND
    shown: list[tuple[Observation, Mapping[str, str]]] = field(default_factory=list)
    drivers: list[tuple[Driver, Vector | None]] = field(default_factory=list)
    closed: bool = False
    _calls: int = 0
    _pressed: set[int] = field(default_factory=set[int])

    @property
    def is_over(self) -> bool:
        """Whether each command of a sequence was said."""
        return self._calls >= len(self.script)

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        self.shown.append((observation, counters))

    def command(self) -> TeleopCommand:
        return self._at_step(self.script) if isinstance(self.script, Mapping) else self._next(self.script)

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        self.drivers.append((driver, executed))

    def close(self) -> None:
        self.closed = True

    def _next(self, script: Sequence[TeleopCommand]) -> TeleopCommand:
        said = script[self._calls] if self._calls < len(script) else self.otherwise
        self._calls += 1
        return said

    def _at_step(self, script: Mapping[int, TeleopCommand]) -> TeleopCommand:
        step = self.shown[-1][0].step if self.shown else 0
        said = script.get(step, self.otherwise)
        if step in self._pressed:
            return TeleopCommand(said.action)
        self._pressed.add(step)
        return said
