"""Port of a robot with its own clock, which does not wait for answers.

A World waits for its next action; a Robot does not. It ticks at its rate, executes due actions, and holds otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.robot import Tick


class Robot(Protocol):
    """An arm with its own clock, in this process or behind a bridge."""

    @property
    def embodiment(self) -> Embodiment:
        """Meaning of its actions, state and cameras."""
        ...

    @property
    def instruction(self) -> str:
        """The task as text."""
        ...

    def begin(self, seed: int) -> Observation:
        """Begin an episode, start its clock, and return the first observation, or the first one that arrived."""
        ...

    def send(self, chunk: ActionChunk) -> None:
        """Send actions; return at once.

        Raises:
            PolicyError: an earlier chunk was refused.
        """
        ...

    def ticks(self, timeout_s: float) -> list[Tick]:
        """Return every tick of this episode that arrived since the last call, in order; wait for one if there is none.

        Ticks are numbered by `result.observation.step`, which grows by one per tick; the tick that stops the arm has
        the number of the one before it. If numbers are missing, ticks were lost on the way, or arrived faster than they
        were taken. A recorder must not join the ticks on both sides of such a gap.

        Args:
            timeout_s: how long to wait for the first one; 0 returns at once.

        Returns:
            The ticks, oldest first; empty after the timeout.
        """
        ...

    def end(self) -> None:
        """End the episode; the arm holds."""
        ...


@runtime_checkable
class ReportsStatus(Protocol):
    """A robot whose bridge also reports a status."""

    def status(self) -> Mapping[str, Any]:
        """Return the status, with `mode` and `reason`. Raises TransportError if no answer comes."""
        ...


@runtime_checkable
class StoppableRobot(Robot, Protocol):
    """A robot whose e-stop can be triggered and released."""

    def stop(self, reason: str) -> None:
        """Latch the e-stop."""
        ...

    def arm(self) -> None:
        """Release the e-stop."""
        ...
