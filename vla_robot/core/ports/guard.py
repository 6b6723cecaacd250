"""Ports of the limits between a policy and an arm."""

from __future__ import annotations

from typing import Protocol

from vla_robot.core.messages import Clamp, Vector


class Guard(Protocol):
    """Limits the actions of a policy in the controller."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        """Return the action that may be sent, and every limit that changed it. Raises PolicyError if none may."""
        ...


class ActionFilter(Protocol):
    """Limits the actions that reach the arm; `vla_robot.safety.filter.SafetyFilter` is one."""

    @property
    def moving(self) -> bool:
        """Whether the arm is still moving after the last allowed action."""
        ...

    def reset(self, state: Vector) -> None:
        """Note that the arm is at rest in this (S,) state."""
        ...

    def note(self, executed: Vector) -> None:
        """Note the (D,) action that the arm was really sent in place of the last one that this filter allowed."""
        ...

    def brake(self, state: Vector) -> Vector:
        """Return the next (D,) action of a ramp to rest, with the grip kept."""
        ...

    def check(self, action: Vector, state: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        """Return the action that may be sent in this state, and every limit that changed it.

        Raises:
            PolicyError: no action may be sent.
        """
        ...
