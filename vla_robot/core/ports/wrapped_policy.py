"""Base of wrappers of a policy."""

from __future__ import annotations

from vla_robot.core.ports import Policy


class WrappedPolicy:
    """Base class of a policy that wraps another one; it is reset with it, and reads as many earlier observations."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def history_steps(self) -> int:
        return history_steps(self._policy)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)


def history_steps(policy: object) -> int:
    """Return the number of earlier observations that a policy reads; 0 for one that does not read any."""
    return getattr(policy, "history_steps", 0)
