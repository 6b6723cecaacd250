"""Results of episodes and runs, as numbers for screens, reports and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.host.provenance import row
from vla_robot.core.stats import wilson_interval
from vla_robot.loop.stillness import STALL_S
from vla_robot.loop.timing import TOTAL, WORLD_STEP, Latency, summarise

Outcome = Literal["success", "failure", "timeout", "error", "stopped"]
"""failure: the world ended it without success; timeout: the horizon was reached; error: there was no action; stopped:
it was interrupted."""


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode.

    Attributes:
        seed: seed of world and policy.
        outcome: how it ended.
        steps: number of control steps done.
        duration_s: time from the first observation to the end [s].
        clamps: number of times that a limit changed a number of an action.
        missed_ticks: control periods that the loop missed; 0 if it was not paced.
        stages_ms: stage -> (N,) durations of each step that had it [ms]; see `vla_robot.loop.timing`.
        entropy: how unsure the policy was of each step's action [nats], see `ActionChunk.entropy`; None where it did
            not choose it, or does not say. Empty if it never said.
        chunk_gap: how far each step's answer was from the policy's former plan, 0 to 1, see `ActionChunk.chunk_gap`;
            None and empty likewise.
        still_s: time [s of the arm's steps] that the arm had stood still at the end, see `vla_robot.loop.stillness`.
        error: the reason, for outcome "error".
        interventions: number of steps in which a person was in control.
        takeovers: number of a person's takeovers.
        lost_steps: control steps of a robot that never reached the loop; they are not among `steps`.
    """

    seed: int
    outcome: Outcome
    steps: int
    duration_s: float
    clamps: int = 0
    missed_ticks: int = 0
    stages_ms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])
    entropy: tuple[float | None, ...] = ()
    chunk_gap: tuple[float | None, ...] = ()
    still_s: float = 0.0
    error: str | None = None
    interventions: int = 0
    takeovers: int = 0
    lost_steps: int = 0

    @property
    def success(self) -> bool:
        """Whether the policy succeeded without a person's help."""
        return self.outcome == "success" and not self.interventions

    @property
    def helped(self) -> bool:
        """Whether the task succeeded with a person's help."""
        return self.outcome == "success" and self.interventions > 0

    @property
    def stalled(self) -> bool:
        """Whether it failed with an arm that had stood still for STALL_S."""
        return self.outcome in ("failure", "timeout") and self.still_s >= STALL_S

    @property
    def finished(self) -> bool:
        """Whether the episode counts, since it was not interrupted."""
        return self.outcome != "stopped"

    @property
    def rate_hz(self) -> float:
        """Measured control steps per second."""
        return self.steps / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def latency(self) -> Latency | None:
        """Latency from capture to command; None if no command was sent."""
        return summarise(self.stages_ms[TOTAL]) if TOTAL in self.stages_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        latency = self.latency
        return {
            "seed": self.seed,
            "success": self.success,
            "outcome": self.outcome,
            "steps": self.steps,
            "duration_s": round(self.duration_s, 4),
            "rate_hz": round(self.rate_hz, 3),
            "capture_to_command_ms": None if latency is None else _rounded(latency),
            "clamps": self.clamps,
            "missed_ticks": self.missed_ticks,
            "error": self.error,
            "interventions": self.interventions,
            "takeovers": self.takeovers,
            "lost_steps": self.lost_steps,
            "helped": self.helped,
            "still_s": round(self.still_s, 3),
            "entropy": _rounded_each(self.entropy),
            "chunk_gap": _rounded_each(self.chunk_gap),
        }


@dataclass(frozen=True)
class RunInfo:
    """Names of what is run.

    Attributes:
        env: name of the world's recipe.
        policy: name of the policy's recipe.
        instruction: the task as text.
        command: the command line that repeats the run.
        recipes: file name -> the merged recipe as TOML, stored with every episode.
        device: device of the policy's weights, in words; None for a policy without weights in this process.
    """

    env: str
    policy: str
    instruction: str
    command: str = ""
    recipes: Mapping[str, str] = field(default_factory=dict[str, str])
    device: str | None = None


@dataclass(frozen=True)
class RunSummary:
    """All finished episodes of one run.

    Attributes:
        info: names of what was run.
        episodes: their results in the order of seeds, without interrupted ones.
        planned: number of episodes that were asked for.
        started_at: wall clock, ISO 8601 with the zone's offset.
        error: the error that ended the run early; None after an interruption.
        notes: other problems, one sentence each.
    """

    info: RunInfo
    episodes: tuple[EpisodeResult, ...]
    planned: int
    started_at: str
    error: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a person or a stop flag ended the run before the last episode."""
        return len(self.episodes) < self.planned and self.error is None

    @property
    def successes(self) -> int:
        return sum(e.success for e in self.episodes)

    @property
    def helped(self) -> int:
        """Number of episodes that succeeded with a person's help; they are not among the successes."""
        return sum(e.helped for e in self.episodes)

    @property
    def interventions(self) -> int:
        """Number of steps in which a person was in control, over all episodes."""
        return sum(e.interventions for e in self.episodes)

    @property
    def lost_steps(self) -> int:
        """Number of control steps that never reached the loop, over all episodes."""
        return sum(e.lost_steps for e in self.episodes)

    @property
    def success_rate(self) -> float | None:
        """Share of successes; None if no episode was finished."""
        return self.successes / len(self.episodes) if self.episodes else None

    @property
    def success_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate; an episode with a person's help counts as no success."""
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def rate_hz(self) -> float:
        """Control steps per second of episode time."""
        duration_s = sum(e.duration_s for e in self.episodes)
        return sum(e.steps for e in self.episodes) / duration_s if duration_s > 0 else 0.0

    @property
    def stages_ms(self) -> dict[str, NDArray[np.float64]]:
        """Durations of each stage over all episodes [ms]; the total and the world's own step come last."""
        names = dict.fromkeys(name for e in self.episodes for name in e.stages_ms)
        ordered = [n for n in names if n not in (TOTAL, WORLD_STEP)] + [n for n in (TOTAL, WORLD_STEP) if n in names]
        return {n: np.concatenate([e.stages_ms[n] for e in self.episodes if n in e.stages_ms]) for n in ordered}

    def to_dict(self) -> dict[str, Any]:
        """Return rows, episodes and the score as plain data for JSON."""
        low, high = self.success_interval
        return {
            "env": self.info.env,
            "policy": self.info.policy,
            "instruction": self.info.instruction,
            "device": self.info.device,
            "started_at": self.started_at,
            "rows": self.rows(),
            "episodes": [e.to_dict() for e in self.episodes],
            "planned": self.planned,
            "interrupted": self.interrupted,
            "error": self.error,
            "notes": list(self.notes),
            "successes": self.successes,
            "success_rate": self.success_rate,
            "success_interval_95": [low, high],
            "successes_with_help": self.helped,
            "interventions": self.interventions,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per measured number."""
        rows = [row("success_rate", self.success_rate, "1"), row("loop_rate", round(self.rate_hz, 3), "Hz")]
        rows.append(row("clamps", sum(e.clamps for e in self.episodes), "1"))
        rows.append(row("missed_ticks", sum(e.missed_ticks for e in self.episodes), "1"))
        rows.append(row("lost_steps", self.lost_steps, "1"))
        for stage, durations_ms in self.stages_ms.items():
            for statistic, value in _rounded(summarise(durations_ms)).items():
                rows.append(row(f"{stage}_{statistic}", value, "ms"))
        return rows


def _rounded(latency: Latency) -> dict[str, float]:
    return {"p50": round(latency.p50, 3), "p99": round(latency.p99, 3), "max": round(latency.max, 3)}


def _rounded_each(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]
