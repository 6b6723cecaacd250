"""Keeps the newest observations of an episode, for a policy that reads several."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from vla_robot.core.messages import Observation
from vla_robot.core.ports import Policy, ReadsHistory


class History:
    """The observations before the present one; none are kept for a policy that does not read them."""

    def __init__(self, policy: Policy) -> None:
        steps = policy.history_steps if isinstance(policy, ReadsHistory) else 0
        self._seen: deque[Observation] = deque(maxlen=steps)

    @property
    def is_kept(self) -> bool:
        """Whether the policy reads earlier observations."""
        return self._seen.maxlen != 0

    def add(self, observation: Observation) -> None:
        """Note that a newer observation than this one came."""
        self._seen.append(observation)

    def put_before(self, observation: Observation) -> Observation:
        """Return the observation with those before it."""
        return replace(observation, before=tuple(self._seen)) if self._seen else observation
