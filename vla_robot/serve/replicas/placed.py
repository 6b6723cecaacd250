"""A replica on a node of a cluster: an object that a runner of tasks placed there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import LostError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import TaskRunner
from vla_robot.core.ports.tasks import Resources
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.serve.policy.batcher import ModelLostError
from vla_robot.serve.replicas import replica
from vla_robot.serve.replicas.program import Ready, answered, load
from vla_robot.serve.replicas.replica import Loaded, Replica, without_truth


@dataclass(frozen=True)
class LoadThere:
    """Loads the policy on a node, which must see its folder under the same path.

    Attributes:
        source: the policy.
        number: number of the replica, from 0.
    """

    source: PolicySource
    number: int

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Ready]:
        yield load(self.source, self.number)


class PlacedReplica(Replica):
    """One copy of the policy on a node."""

    def __init__(self, runner: TaskRunner, make: Callable[[], AbstractContextManager[Ready]], needs: Resources) -> None:
        """Have it made.

        Args:
            runner: places it.
            make: loads the policy where it is placed.
            needs: what it takes of its node.

        Raises:
            ContractError: no node has as much.
        """
        self._placed, self._pid = runner.place(make, needs), 0

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def lost(self) -> str:
        return f"the replica on a node is lost: {why}" if (why := self._placed.lost) else ""

    def await_loaded(self) -> Loaded:
        with _lost_as_model():
            embodiment, device, self._pid = self._placed.call(replica.START_TIMEOUT_S, _loaded)
        return Loaded(embodiment, device)

    def act(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        with _lost_as_model():
            rows = without_truth(observations)
            return list(self._placed.call(replica.STUCK_S, _acted, rows, list(keys)))

    def close(self) -> None:
        self._placed.close()

    def kill(self) -> None:
        self._placed.kill()


def _loaded(ready: Ready) -> tuple[Embodiment | None, str, int]:
    return ready.embodiment, f"{ready.device} on {socket.gethostname()}", os.getpid()


def _acted(ready: Ready, observations: Sequence[Observation], keys: Sequence[str | None]) -> Sequence[ActionChunk]:
    return answered(ready.act, observations, keys)


@contextlib.contextmanager
def _lost_as_model() -> Iterator[None]:
    try:
        yield
    except LostError as error:
        raise ModelLostError(f"the replica on a node is lost: {error}") from error
