"""Shares one policy among several worlds in this process: observations that are ready form one batch."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Self

from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.core.ports.wrapped_policy import history_steps
from vla_robot.serve.policy.batcher import Batcher, Line

ANSWER_TIMEOUT_S = 3600.0
"""A simulated world waits, so an answer may take as long as a large model needs on a slow computer [s]."""


class SharedPolicy:
    """Runs a policy in a thread of its own for several worlds; use it in a `with` block.

    >>> with SharedPolicy(policy, max_batch=4) as shared:                                        # doctest: +SKIP
    ...     chunks = shared.act("world 1", [observation])

    Attributes:
        history_steps: number of earlier observations that the policy reads.
    """

    def __init__(self, policy: Policy, max_batch: int) -> None:
        """
        Args:
            policy: must have no memory between observations, since it gets those of all worlds.
            max_batch: most rows of a batch.
        """
        # A batch does not wait: what arrives while the model computes is the next batch.
        self.history_steps = history_steps(policy)
        self._batcher = Batcher(lambda observations, _keys: policy.act(observations), Line(max_batch, max_wait_ns=0))
        self._thread = threading.Thread(target=self._batcher.run, name="policy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher.close()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Number of worlds whose observations are not in a batch yet."""
        return self._batcher.status()["waiting"]

    def seat(self) -> Policy:
        """Return a policy for one world of this process."""
        return PolicySeat(self.act, uuid.uuid4().hex, self.history_steps)

    def act(self, client: str, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return a chunk for each observation of a world, which has one question at a time; thread-safe.

        Args:
            client: the world's name, unlike that of any other.
            observations: its observations.

        Raises:
            VlaError: the policy's error.
        """
        return [self._batcher.ask(o, timeout_s=ANSWER_TIMEOUT_S, client=client) for o in observations]


class PolicySeat:
    """The policy of one world, which asks a shared one. It has no memory, so that a question may be asked twice."""

    def __init__(
        self, ask: Callable[[str, Sequence[Observation]], list[ActionChunk]], client: str, history_steps: int
    ) -> None:
        """
        Args:
            ask: `SharedPolicy.act`, here or in another process.
            client: the world's name, unlike that of any other.
            history_steps: number of earlier observations that the policy reads.
        """
        self._ask, self._client = ask, client
        self.history_steps = history_steps

    def reset(self, seed: int) -> None:
        """Do nothing: see `SharedPolicy`."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._ask(self._client, observations)
