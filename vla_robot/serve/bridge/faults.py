"""Failures that the control loop survives: each is caught, counted, logged once and shown in the status.

arm       any exception --> WorldError               the bridge makes a supported stop
log       any exception --> counted, shown           the arm continues
bridge    any exception --> an error answer          a bug of this package; the process stays
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from vla_robot.core.errors import ContractError, VlaError, WorldError, in_words
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import Arm, Streamed
from vla_robot.core.ports.wrapped_arm import WrappedArm

Part = Literal["arm", "log", "bridge"]
SAID: dict[Part, str] = {
    "arm": "the arm failed, and is stopped",
    "log": "the bridge's log of an episode failed; the arm continues, and the next episode gets a new log",
    "bridge": "the bridge failed, and stops the arm; it still answers requests",
}

_LOG = logging.getLogger(__name__)


class Faults:
    """Counts the failures of each part, and stores the newest as text. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Part, int] = dict.fromkeys(SAID, 0)
        self._present: dict[Part, str] = {}
        self._logged: set[str] = set()

    @property
    def counts(self) -> dict[str, int]:
        """Failures so far: `arm_failures`, `log_failures`, `bridge_failures`."""
        with self._lock:
            return {f"{part}_failures": count for part, count in self._counts.items()}

    def present(self, part: Part) -> str:
        """Return the part's present failure as text; empty if there is none."""
        with self._lock:
            return self._present.get(part, "")

    def add(self, part: Part, error: BaseException) -> str:
        """Count a failure of the part, which lasts until `clear`; log it as `explain` does.

        Returns:
            The error as text.
        """
        told = self.explain(part, error)
        with self._lock:
            self._counts[part] += 1
            self._present[part] = told
        return told

    def explain(self, part: Part, error: BaseException) -> str:
        """Return the error as text, and log it if it is new; a bug is logged with its traceback."""
        told = str(error) if isinstance(error, VlaError) else in_words(error)
        with self._lock:
            is_new = told not in self._logged
            self._logged.add(told)
        if is_new:
            _LOG.error("%s: %s", SAID[part], told, exc_info=None if isinstance(error, VlaError) else error)
        return told

    def clear(self, part: Part) -> None:
        """Note that the part works again; its count stays."""
        with self._lock:
            self._present.pop(part, None)


class ContainedArm(WrappedArm):
    """Arm that wraps a driver: exceptions other than VlaError become WorldError."""

    def __init__(self, arm: Arm, faults: Faults) -> None:
        """
        Args:
            arm: the driver.
            faults: log the traceback of every such exception.
        """
        super().__init__(arm)
        self._faults = faults

    def reset(self, seed: int) -> Observation:
        with self._contained():
            observation = self._arm.reset(seed)
            self._require_whole(observation)
        return observation

    def command(self, action: Vector) -> StepResult:
        with self._contained():
            result = self._arm.command(action)
            self._require_whole(result.observation)
        return result

    def hold(self) -> StepResult:
        with self._contained():
            result = self._arm.hold()
            self._require_whole(result.observation)
        return result

    def look(self) -> Observation:
        with self._contained():
            observation = self._arm.look()
            self._require_whole(observation)
        return observation

    def stop(self) -> None:
        with self._contained():
            self._arm.stop()

    def close(self) -> None:
        with self._contained():
            self._arm.close()

    def _require_whole(self, observation: Observation) -> None:
        """Raise WorldError unless the observation fits the embodiment, on which limits and clients rely."""
        try:
            self._arm.embodiment.check(observation)
        except ContractError as error:
            raise WorldError(f"its observation does not fit its embodiment: {error}") from error

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except (VlaError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a native library's panic or exit() is not an Exception
            raise WorldError(f"its driver raised {self._faults.explain('arm', error)}") from error


class ContainedStreamedArm(ContainedArm):
    """ContainedArm for an arm that takes set points between the ticks."""

    def __init__(self, arm: Arm, streamed: Streamed, faults: Faults) -> None:
        super().__init__(arm, faults)
        self._streamed = streamed

    @property
    def next_set_point_ns(self) -> int:
        return self._streamed.next_set_point_ns

    def send_set_point(self) -> None:
        with self._contained():
            self._streamed.send_set_point()


def contained(arm: Arm, faults: Faults) -> Arm:
    """Wrap an arm so that it raises only VlaError and KeyboardInterrupt."""
    return ContainedStreamedArm(arm, arm, faults) if isinstance(arm, Streamed) else ContainedArm(arm, faults)


def contained_listener[E](listener: Callable[[E], None], faults: Faults) -> Callable[[E], None]:
    """Wrap a listener so that its failures are counted as the log's and never reach the caller."""

    def listen(event: E) -> None:
        try:
            listener(event)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            faults.add("log", error)

    return listen
