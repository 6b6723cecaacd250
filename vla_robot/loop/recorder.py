"""Writes every finished episode to a log, from the control loop's events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.core.host.durable import make_folder, writing
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, StepsLost
from vla_robot.record.episode import SUFFIX, EpisodeStep, EpisodeWriter, Gap


def log_path(folder: Path, seed: int) -> Path:
    """Return the path of an episode's log in the folder of its run."""
    return folder / "episodes" / f"seed_{seed}{SUFFIX}"


class EpisodeRecorder:
    """Subscriber that writes each episode to a log; an episode that was stopped leaves no file."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        """
        Args:
            folder: folder of the run; logs go to its `episodes/`.
            header: plain data that all episodes share: recipes, embodiment, versions.

        Raises:
            DataError: the folder cannot be made.
        """
        logs = log_path(folder, 0).parent
        with writing(logs):
            make_folder(logs)  # here, since an episode that has begun must not wait for the disk
        self._folder = folder
        self._header = header
        self._writer: EpisodeWriter | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case EpisodeStarted():
                header = {**self._header, "seed": event.seed, "instruction": event.observation.instruction}
                self._writer = EpisodeWriter(log_path(self._folder, event.seed), header)
            case StepDone() if self._writer is not None:
                self._writer.add(_logged(event))
            case StepsLost() if self._writer is not None:
                self._writer.add_gap(Gap(event.first, event.count))
            case EpisodeEnded() if self._writer is not None:
                writer, self._writer = self._writer, None
                if event.result.finished:
                    writer.finish(event.observation, event.result.to_dict())
                else:
                    writer.discard()
            case _:
                raise RuntimeError(f"{type(event).__name__} came before EpisodeStarted.")


def _logged(event: StepDone) -> EpisodeStep:
    return EpisodeStep(
        observation=event.observation,
        commanded=event.commanded,
        executed=event.result.executed,
        command_ns=event.result.command_ns,
        success=event.result.success,
        clamps=event.clamps,
        stages_ms=event.stages_ms,
        intervention=event.intervention,
        held=event.held,
        policy_action=event.policy_action,
        wanted=event.wanted,
        entropy=event.entropy,
        chunk_gap=event.chunk_gap,
    )
