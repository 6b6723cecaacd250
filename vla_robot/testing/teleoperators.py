"""A person who follows a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button, Driver, TeleopCommand

NO_COMMAND = TeleopCommand(None)
"""The person asks for nothing."""


def move(dx: float, grip: float = 1.0) -> TeleopCommand:
    """The person moves the tool along its first axis."""
    return TeleopCommand(np.array([dx, grip]))


def press(button: Button, instruction: str | None = None) -> TeleopCommand:
    """The person presses a button, and asks for no motion."""
    return TeleopCommand(None, frozenset({button}), instruction)


@dataclass
class ScriptedTeleoperator:
    """Says one command after the other, or what the script has for the step that was shown last. SharesControl, too.

    Attributes:
        script: a sequence, of which each call of `command` takes the next; or step -> command, where a command's
            buttons are given once and its action as long as the step lasts.
        otherwise: said where the script has nothing.
        shown: every observation and what was shown beside it.
        drivers: (driver, the arm's newest action) as told.
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
