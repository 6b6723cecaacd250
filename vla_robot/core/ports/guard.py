"""The ports of what stands between a policy and an arm."""

from __future__ import annotations

from typing import Protocol

from vla_robot.core.messages import Clamp, Vector


class Guard(Protocol):
    """Stands between the policy and the arm."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        """The action that may be sent, and every limit that changed it. Raises PolicyError when none may."""
        ...


class ActionFilter(Protocol):
    """Decides what may reach the arm; `vla_robot.safety.filter.SafetyFilter` is one."""

    @property
    def moving(self) -> bool:
        """Whether the last action that was let through leaves the arm with some speed."""
        ...

    def reset(self, state: Vector) -> None:
        """The arm is at rest here."""
        ...

    def brake(self, state: Vector) -> Vector:
        """The next action of a ramp to rest, the grip kept."""
        ...

    def check(self, action: Vector, state: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        """The action that may be sent from here, and every limit that changed it. Raises PolicyError when none may."""
        ...
