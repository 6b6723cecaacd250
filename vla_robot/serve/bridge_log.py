"""The bridge's own record of an episode, on the robot's disk: complete to the fault, whatever became of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.messages import Observation
from vla_robot.record.episode import SUFFIX, EpisodeStep, EpisodeWriter
from vla_robot.serve.bridge import EpisodeBegan, EpisodeOver, Ticked


class Log(Protocol):
    """Writes one episode; `EpisodeWriter` is one."""

    def add(self, step: EpisodeStep) -> None: ...

    def finish(self, last: Observation, summary: Mapping[str, Any]) -> Path: ...


class BridgeLog:
    """A listener of a Bridge. Every episode is kept, however it ended; a held tick has no commanded action (None)."""

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        open_log: Callable[[Path, Mapping[str, Any]], Log] = EpisodeWriter,
    ) -> None:
        """
        Args:
            folder: gets one .vlalog an episode.
            header: what all episodes share: recipe, embodiment, versions. Plain data.
            open_log: path and header -> who writes; `LogProcess.open` keeps the work out of this process.
        """
        self._folder = folder
        self._open_log = open_log
        self._header = header
        self._writer: Log | None = None
        self._steps = 0

    def __call__(self, event: EpisodeBegan | Ticked | EpisodeOver) -> None:
        match event:
            case EpisodeBegan():
                self._begin(event)
            case Ticked() if self._writer is not None:
                self._steps += 1
                self._writer.add(_step(event))
            case EpisodeOver() if self._writer is not None:
                writer, self._writer = self._writer, None
                summary = {"outcome": event.outcome, "error": event.reason or None, "steps": self._steps}
                writer.finish(event.last, summary)
            case _:
                raise RuntimeError(f"{type(event).__name__} came before EpisodeBegan.")

    def _begin(self, event: EpisodeBegan) -> None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        header = {**self._header, "seed": event.seed, "instruction": event.observation.instruction}
        self._writer = self._open_log(self._folder / f"{stamp}_seed_{event.seed}{SUFFIX}", header)
        self._steps = 0


def _step(event: Ticked) -> EpisodeStep:
    result, cause_ns = event.tick.result, event.tick.cause_ns
    stages_ms = {"capture_to_command": (result.command_ns - cause_ns) / NS_PER_MS} if cause_ns else {}
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
    )
