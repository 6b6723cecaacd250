"""The bridge's own log of an episode on the robot's disk, which is complete even if the network fails."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.messages import Observation
from vla_robot.record.episode import SUFFIX, EpisodeStep, EpisodeWriter
from vla_robot.record.log_process import LogProcess
from vla_robot.serve.bridge.bridge import EpisodeBegan, EpisodeOver, Ticked
from vla_robot.serve.bridge.faults import Faults

CLOSE_TIMEOUT_S = 10.0
"""Time limit for ends of logs that are still being written when the bridge ends [s]."""


class Log(Protocol):
    """Writes one episode; `EpisodeWriter` is one."""

    def add(self, step: EpisodeStep) -> None:
        """Add a step and return at once. Raises DataError if writing has failed."""
        ...

    def finish(self, last: Observation, summary: Mapping[str, Any]) -> Path:
        """Write the end. Raises DataError if the log is not complete on the disk."""
        ...

    def abandon(self) -> None:
        """Leave the log without an end."""
        ...


type Job = Callable[[], object]


def _at_once(job: Job) -> None:
    job()


class Background:
    """Thread for slow jobs: the disk's work at the end of a log. Use it in a `with` block."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ends of logs", daemon=True)

    def __call__(self, job: Job) -> None:
        """Queue a job and return at once. A job reports its own failures."""
        self._jobs.put(job)

    def settle(self) -> None:
        """Wait until all jobs are done, at most CLOSE_TIMEOUT_S."""
        done = threading.Event()
        self._jobs.put(done.set)
        done.wait(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with contextlib.suppress(Exception):  # a job reports its own failures; later ones still run
                job()


type OpenLog = Callable[[Path, Mapping[str, Any]], Log]


@dataclass(frozen=True)
class Recording:
    """Functions with which a `BridgeLog` keeps disk work out of the control thread.

    Attributes:
        open_log: (path, header) -> writer.
        later: runs jobs that wait for the disk.
        settle: waits for these jobs.
    """

    open_log: OpenLog = EpisodeWriter
    later: Callable[[Job], None] = _at_once
    settle: Callable[[], None] = lambda: None


@contextlib.contextmanager
def recording_process() -> Iterator[Recording]:
    """Run a process that writes logs and a thread that waits for it; the block's exit waits for unfinished logs."""
    with Background() as later, LogProcess() as logs:
        try:
            yield Recording(logs.open, later, later.settle)
        finally:
            later.settle()


class BridgeLog:
    """Listener of a Bridge that logs every episode, however it ends; a held tick has `commanded` None.

    A log that fails is abandoned, and the next episode gets a new one.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        recording: Recording | None = None,
        faults: Faults | None = None,
    ) -> None:
        """
        Args:
            folder: gets one .vlalog per episode.
            header: plain data that all episodes share: recipe, embodiment, versions.
            recording: the writer; by default the caller's thread writes.
            faults: the bridge's; they count failures that no caller waits for.
        """
        self._folder = folder
        self._recording = recording or Recording()
        self._faults = faults or Faults()
        self._header = header
        self._writer: Log | None = None
        self._steps = 0

    def __call__(self, event: EpisodeBegan | Ticked | EpisodeOver) -> None:
        """
        Raises:
            DataError: the episode's log cannot be written; raised once per episode.
        """
        match event:
            case EpisodeBegan():
                self._begin(event)
            case Ticked() if self._writer is not None:
                self._add(self._writer, event)
            case EpisodeOver() if self._writer is not None:
                writer, self._writer = self._writer, None
                summary = {"outcome": event.outcome, "error": event.reason or None, "steps": self._steps}
                self._recording.later(lambda: self._finish(writer, event.last, summary))
            case _:
                pass  # the log of this episode was abandoned

    def _begin(self, event: EpisodeBegan) -> None:
        self._give_up()
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        header = {**self._header, "seed": event.seed, "instruction": event.observation.instruction}
        self._writer = self._recording.open_log(self._folder / f"{stamp}_seed_{event.seed}{SUFFIX}", header)
        self._steps = 0

    def _add(self, writer: Log, event: Ticked) -> None:
        try:
            writer.add(_step(event))
            self._steps += 1
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Abandon the log; what was written stays in its .part file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._recording.later(writer.abandon)

    def _finish(self, writer: Log, last: Observation, summary: Mapping[str, Any]) -> None:
        try:
            writer.finish(last, summary)
            self._faults.clear("log")
        except Exception as error:
            self._faults.add("log", error)


def _step(event: Ticked) -> EpisodeStep:
    result, obs_stamp_ns = event.tick.result, event.tick.obs_stamp_ns
    stages_ms = {"capture_to_command": (result.command_ns - obs_stamp_ns) / NS_PER_MS} if obs_stamp_ns else {}
    return EpisodeStep(
        observation=event.before,
        commanded=event.wanted,
        executed=result.executed,
        command_ns=result.command_ns,
        success=result.success,
        clamps=result.clamps,
        stages_ms=stages_ms,
        intervention=event.tick.intervention,
        held=event.wanted is None,
        wanted=event.wanted,
        entropy=event.tick.entropy,
        chunk_gap=event.tick.chunk_gap,
    )
