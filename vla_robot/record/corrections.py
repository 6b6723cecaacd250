"""Converts episode logs, of a policy's episodes with a person's corrections, to demonstrations for training.

A log is written while the arm moves, in a thread of its own; it is converted when the episode is over, so that this
takes no time from the control loop. Each control step becomes:

    an action was executed                            a row; `action` is the commanded action after the guard
    none was due, and the arm braked                  a row; `action` is the executed action, since none was commanded
    none was due, and the pose was held               no row; the step is counted
    lost on the network, or its frames were dropped   a gap: the demonstration ends before it, another begins after it

A gap ends an episode of the dataset and is not marked in a column, since every reader respects an episode's end: no
window of observations or actions reaches across it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import StepResult, Vector
from vla_robot.data.demonstration import Corrections, Demonstration, DemonstrationBuilder
from vla_robot.record.collect import Keep, Writer
from vla_robot.record.controlled_robot import STILL
from vla_robot.record.episode import EpisodeLog, EpisodeStep

CORRECTED = ", corrected by a person"
"""Suffix of the driver's name where a person took over."""


def demonstrations_of(log: EpisodeLog, embodiment: Embodiment, driver: str) -> list[Demonstration]:
    """Convert a log to demonstrations, one for each part between gaps.

    Args:
        log: the log of an episode, as read back.
        embodiment: meaning of its numbers.
        driver: name of the policy in the dataset.

    Returns:
        The demonstrations in order; none when no step becomes a row. Only the last one can have succeeded.
    """
    builder, rows = DemonstrationBuilder(), list[_Row]()
    before: EpisodeStep | None = None
    for step in log.steps:
        has_frames = _has_frames(step, embodiment)
        if not has_frames or (before is not None and step.observation.step != _next(before)):
            builder.cut()
        row = _row(step, before, embodiment) if has_frames else None
        if row is not None:
            builder.add(
                step.observation, row.action, StepResult(step.observation, row.executed, step.success, False, False)
            )
            rows.append(row)
        before = step
    made = builder.finish_parts(embodiment, int(log.header["seed"]), driver)
    if made:
        # The episode's last step may have been left out; and where the world has no success test, a person decides.
        made[-1].success[-1] |= log.steps[-1].success or (log.summary or {}).get("outcome") == "success"
    corrected = CORRECTED if any(row.step.intervention for row in rows) else ""
    starts = np.cumsum([0, *map(len, made)])
    return [
        replace(d, driver=driver + corrected, corrections=_corrections(rows[start : start + len(d)]))
        for d, start in zip(made, starts.tolist(), strict=False)
    ]


@dataclass
class LogStore:
    """A store that writes the logs of finished episodes to a dataset.

    Attributes:
        writer: writes each kept episode at once.
        embodiment: meaning of the numbers.
        driver: name of the policy in the dataset.
        keep: "success" leaves out episodes in which the task was not done.
        kept: number of driven episodes that were stored so far.
        stored: number of the dataset's episodes that they became: one more for each gap.
        corrected: number of their steps that a person drove.
        rested: number of their steps that were left out since the arm was held.
        missing: number of their steps that were lost, or whose frames were.
    """

    writer: Writer
    embodiment: Embodiment
    driver: str
    keep: Keep = "all"
    kept: int = 0
    stored: int = 0
    corrected: int = 0
    rested: int = 0
    missing: int = 0

    def add(self, log: EpisodeLog) -> None:
        """Write one episode.

        Raises:
            DataError: the episode does not fit the dataset, or writing to disk failed.
        """
        made = demonstrations_of(log, self.embodiment, self.driver)
        if not made or (self.keep == "success" and not made[-1].succeeded):
            return
        for demonstration in made:
            self.writer.write(demonstration)
            assert demonstration.corrections is not None  # `demonstrations_of` gives them
            self.corrected += int(demonstration.corrections.intervention.sum())
        without_frames = sum(not _has_frames(step, self.embodiment) for step in log.steps)
        self.kept += 1
        self.stored += len(made)
        self.rested += len(log.steps) - without_frames - sum(map(len, made))
        self.missing += without_frames + sum(gap.count for gap in log.gaps)


@dataclass(frozen=True)
class _Row:
    """A step that becomes a row of the dataset, with the action to be learned and the executed one, each (D,)."""

    step: EpisodeStep
    action: Vector
    executed: Vector


def _row(step: EpisodeStep, before: EpisodeStep | None, embodiment: Embodiment) -> _Row | None:
    """Return the row of a step; None where the arm was held, or no action was sent."""
    if step.executed is None:
        return None
    if not step.held and step.commanded is not None:
        return _Row(step, step.commanded, step.executed)
    last = None if before is None else before.executed
    return _Row(step, step.executed, step.executed) if _moves(step.executed, last, embodiment) else None


def _moves(executed: Vector, last: Vector | None, embodiment: Embodiment) -> bool:
    """Return whether an action moves the arm; grip and positions are compared with the last action that was sent."""
    rest = np.where(embodiment.action.is_step, 0.0, executed if last is None else last)
    return bool(np.abs(executed - rest).max() > STILL)


def _next(step: EpisodeStep) -> int:
    return step.observation.step + 1


def _has_frames(step: EpisodeStep, embodiment: Embodiment) -> bool:
    return all(camera.name in step.observation.images for camera in embodiment.cameras)


def _corrections(rows: list[_Row]) -> Corrections:
    steps = [row.step for row in rows]
    intervention = np.array([step.intervention for step in steps], dtype=np.bool_)
    wanted = [row.action if row.step.policy_action is None else row.step.policy_action for row in rows]
    asked = [step.policy_action is not None or not (step.intervention or step.held) for step in steps]
    return Corrections(intervention, np.stack(wanted), np.array(asked, dtype=np.bool_))
