"""Reads the cameras between episodes for the viewers of a bridge.

    reset  tick  tick  tick  over   look  look  look   reset  tick ...

A look only reads: the arm gets no command, and no log records it.
"""

from __future__ import annotations

import logging

from vla_robot.core.clock import NS_PER_S, Clock, Ticker
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Arm

_LOG = logging.getLogger(__name__)


class IdleCameraPoll:
    """Reads the arm's cameras at absolute deadlines, like the ticks."""

    def __init__(self, arm: Arm, clock: Clock, period_ns: int) -> None:
        """
        Args:
            arm: the arm, which gets no command meanwhile.
            clock: the clock that stamps the arm's frames.
            period_ns: time between looks [ns].
        """
        self._arm = arm
        self._clock = clock
        self._ticker = Ticker(clock, period_ns)
        self._due_ns = self._ticker.next_ns()
        self.trouble = ""
        """Why the last look failed; empty if it succeeded."""

    @property
    def due_in_s(self) -> float:
        """Time until the next look [s]; 0 if it is due."""
        left_ns = self._due_ns - self._clock.now_ns()
        return left_ns / NS_PER_S if 0 < left_ns <= self._ticker.period_ns else 0.0  # further off: the clock went back

    def look(self) -> Observation | None:
        """Return the arm's present observation; None after an error, which `trouble` then holds."""
        try:
            observation, trouble = self._arm.look(), ""
        except VlaError as error:
            observation, trouble = None, str(error)
        if trouble not in ("", self.trouble):
            _LOG.warning("the cameras cannot be read between episodes: %s", trouble)
        self.trouble = trouble
        self._due_ns = self._ticker.next_ns()
        return observation
