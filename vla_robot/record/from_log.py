"""Episode logs -> demonstrations: a policy's own episodes with a person's corrections become data to learn from.

A log is written while the arm moves, in a thread of its own; the dataset is made of it when the episode is over, so
that it costs the control loop nothing. Left out, and counted: steps in which the arm was held, as nobody said anything
that could be learnt, and steps whose frames the log had to drop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import StepResult
from vla_robot.record.collect import Keep, Writer
from vla_robot.record.demonstration import Corrections, Demonstration, DemonstrationBuilder
from vla_robot.record.episode import EpisodeLog, EpisodeStep

CORRECTED = ", corrected by a person"
"""Ends the name of a driver whom a person took over from."""


def demonstration_of(log: EpisodeLog, embodiment: Embodiment, driver: str) -> Demonstration | None:
    """The episode as data; None when no step of it can be learnt from.

    Args:
        log: as read back.
        embodiment: what its numbers mean.
        driver: the policy, as it is stored.

    Returns:
        Its actions are what was commanded, be it by the policy or by the person.
    """
    steps = [step for step in log.steps if _is_learnable(step, embodiment)]
    if not steps:
        return None
    builder = DemonstrationBuilder()
    for step in steps:
        assert step.commanded is not None  # `_is_learnable`
        result = StepResult(step.observation, step.executed, step.success, False, False)
        builder.add(step.observation, step.commanded, result)
    corrections = _corrections(steps)
    name = driver + CORRECTED if corrections.intervention.any() else driver
    made = builder.finish(embodiment, int(log.header["seed"]), name)
    success = made.success.copy()
    # Its own last step may be one that was left out; and where no test tells, a person may have said so.
    success[-1] |= log.steps[-1].success or (log.summary or {}).get("outcome") == "success"
    return replace(made, success=success, corrections=corrections)


@dataclass
class LogStore:
    """Writes finished episodes to a dataset.

    Attributes:
        writer: gets every episode that is kept, at once.
        embodiment: what the numbers mean.
        driver: the policy, as it is stored.
        keep: "success" leaves out episodes in which the task was not done.
        kept: episodes written so far.
        corrected: steps of them that a person drove.
        left_out: steps of them that cannot be learnt from.
    """

    writer: Writer
    embodiment: Embodiment
    driver: str
    keep: Keep = "all"
    kept: int = 0
    corrected: int = 0
    left_out: int = 0

    def add(self, log: EpisodeLog) -> None:
        """Write one episode.

        Raises:
            DataError: it does not fit the dataset, or the disk refuses.
        """
        demonstration = demonstration_of(log, self.embodiment, self.driver)
        if demonstration is None or (self.keep == "success" and not demonstration.succeeded):
            return
        self.writer.write(demonstration)
        self.kept += 1
        self.left_out += len(log.steps) - len(demonstration)
        assert demonstration.corrections is not None  # `demonstration_of` gives them
        self.corrected += int(demonstration.corrections.intervention.sum())


def _is_learnable(step: EpisodeStep, embodiment: Embodiment) -> bool:
    has_frames = all(camera.name in step.observation.images for camera in embodiment.cameras)
    return has_frames and not step.held and step.commanded is not None and step.executed is not None


def _corrections(steps: list[EpisodeStep]) -> Corrections:
    intervention = np.array([step.intervention for step in steps], dtype=np.bool_)
    beside = [step.policy_action for step in steps]
    wanted = [
        action
        for step, own in zip(steps, beside, strict=True)
        if (action := own if own is not None else step.commanded) is not None
    ]
    asked = ~intervention | np.array([action is not None for action in beside], dtype=np.bool_)
    return Corrections(intervention, np.stack(wanted), asked)
