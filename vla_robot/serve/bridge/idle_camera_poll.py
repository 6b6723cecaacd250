"""Between episodes: what the cameras see, for those who watch a bridge.

    reset  tick  tick  tick  over   look  look  look   reset  tick ...

A look only reads: the arm is told nothing, and no log hears of it.
"""

from __future__ import annotations

import logging

from vla_robot.core.clock import NS_PER_S, Clock, Ticker
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Arm

_LOG = logging.getLogger(__name__)


class IdleCameraPoll:
    """Says when it is time to look, and looks; at absolute deadlines, as the arm ticks."""

    def __init__(self, arm: Arm, clock: Clock, period_ns: int) -> None:
        """
        Args:
            arm: stands still, and is not commanded while it is looked at.
            clock: the one that stamps the arm's frames.
            period_ns: from one look to the next.
        """
        self._arm = arm
        self._clock = clock
        self._ticker = Ticker(clock, period_ns)
        self._due_ns = self._ticker.next_ns()
        self.trouble = ""
        """Why the last look saw nothing, in plain words; empty when it saw something."""

    @property
    def due_in_s(self) -> float:
        """How long there is until the next look; 0 when it is due."""
        left_ns = self._due_ns - self._clock.now_ns()
        return left_ns / NS_PER_S if 0 < left_ns <= self._ticker.period_ns else 0.0  # further off: the clock went back

    def look(self) -> Observation | None:
        """What the arm sees and feels now; None when it does not tell, and then `trouble` says why."""
        try:
            observation, trouble = self._arm.look(), ""
        except VlaError as error:
            observation, trouble = None, str(error)
        if trouble not in ("", self.trouble):
            _LOG.warning("nothing is seen between episodes: %s", trouble)
        self.trouble = trouble
        self._due_ns = self._ticker.next_ns()
        return observation
