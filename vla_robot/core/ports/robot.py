"""The port of a robot that moves on its own clock, whether or not an answer comes in time.

A World waits for its next action; a Robot does not. It ticks at its rate, plays what is due, and holds otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.robot import Tick


class Robot(Protocol):
    """An arm with a clock of its own, here or behind a bridge."""

    @property
    def embodiment(self) -> Embodiment:
        """What actions, state and cameras mean here."""
        ...

    @property
    def instruction(self) -> str:
        """The task in plain words."""
        ...

    def begin(self, seed: int) -> Observation:
        """Begin an episode; the clock starts. What is seen before the first tick, unless that was lost on the way."""
        ...

    def send(self, chunk: ActionChunk) -> None:
        """Hand over actions; returns at once.

        Raises:
            PolicyError: an earlier chunk was refused.
        """
        ...

    def ticks(self, timeout_s: float) -> list[Tick]:
        """Every tick of this episode that arrived since the last call, in order; waits for one when there is none.

        Ticks are numbered by `result.observation.step`, which grows by one a tick; the tick that stops the arm has the
        number of the one before it. Where the numbers jump, ticks were lost on the way, or arrived faster than they
        were taken. A recorder must not join the ticks on both sides of such a gap.

        Args:
            timeout_s: how long to wait for the first one; 0 returns at once.

        Returns:
            Oldest first; empty when none came in time.
        """
        ...

    def end(self) -> None:
        """Break the episode off; the arm holds."""
        ...


@runtime_checkable
class ReportsStatus(Protocol):
    """A robot whose bridge can be asked how it stands, beside its ticks."""

    def status(self) -> Mapping[str, Any]:
        """With `mode` and `reason`, in words. Raises TransportError when no answer comes."""
        ...


@runtime_checkable
class StoppableRobot(Robot, Protocol):
    """A robot whose e-stop can be pressed and released from here."""

    def stop(self, reason: str) -> None:
        """E-stop, latched."""
        ...

    def arm(self) -> None:
        """Release it."""
        ...
