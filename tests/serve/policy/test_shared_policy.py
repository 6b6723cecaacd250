"""Several worlds, one policy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.shared_policy import SharedPolicy


class Echo:
    """Answers with the state. The first call waits until it is let go, so that others gather meanwhile."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.inside, self.let_go = threading.Event(), threading.Event()

    def reset(self, seed: int) -> None:
        raise AssertionError("a policy for all worlds is never reset by one of them")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.batches.append(len(observations))
        self.inside.set()
        assert self.let_go.wait(timeout=60)
        if any(o.state[0] < 0 for o in observations):
            raise PolicyError("a negative state")
        return [ActionChunk(o.state[None], o.stamp_ns, o.step) for o in observations]


def seen(value: float) -> Observation:
    return Observation({}, np.array([value]), "lift", stamp_ns=0, step=0)


def test_what_gathers_while_the_policy_thinks_is_one_batch() -> None:
    policy = Echo()
    with SharedPolicy(policy, max_batch=4) as shared, ThreadPoolExecutor(4) as threads:
        seats = [shared.seat() for _ in range(4)]
        first = threads.submit(seats[0].act, [seen(0)])
        assert policy.inside.wait(timeout=60)
        rest = [threads.submit(seat.act, [seen(k)]) for k, seat in enumerate(seats[1:], start=1)]
        while shared.waiting < 3:
            assert not any(future.done() for future in rest)
        policy.let_go.set()
        answers = [future.result(timeout=60)[0].actions[0, 0] for future in (first, *rest)]
    assert answers == [0, 1, 2, 3]
    assert policy.batches == [1, 3]


def test_an_observation_that_cannot_be_answered_fails_alone() -> None:
    policy = Echo()
    policy.let_go.set()
    with SharedPolicy(policy, max_batch=2) as shared:
        good, bad = shared.seat(), shared.seat()
        good.reset(1)
        with pytest.raises(PolicyError, match="a negative state"):
            bad.act([seen(-1)])
        assert good.act([seen(2)])[0].actions == [[2.0]]
