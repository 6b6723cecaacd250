"""Statistics of an episode, collected from its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vla_robot.core.clock import NS_PER_S, Clock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Vector
from vla_robot.loop.events import StepDone, StepsLost
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.stillness import steps_at_rest
from vla_robot.loop.timing import by_stage


@dataclass
class Interventions:
    """Counts a person's takeovers, and their steps."""

    steps: int = 0
    takeovers: int = 0
    _running: bool = False

    def add(self, step: StepDone) -> None:
        self.steps += step.intervention and not step.held
        self.takeovers += step.intervention and not self._running
        # A tick in which the arm held its pose for want of an action does not say who is in control.
        self._running = step.intervention or (step.held and self._running)


@dataclass
class EpisodeStats:
    """Sums over an episode's events; gives its result at the end."""

    clock: Clock
    embodiment: Embodiment
    clamps: int = 0
    lost_steps: int = 0
    steps_ms: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    entropy: list[float | None] = field(default_factory=list[float | None])
    chunk_gap: list[float | None] = field(default_factory=list[float | None])
    states: list[Vector] = field(default_factory=list[Vector])
    interventions: Interventions = field(default_factory=Interventions)

    def __post_init__(self) -> None:
        self._start_ns = self.clock.now_ns()

    @property
    def elapsed_s(self) -> float:
        """Time since the episode began [s]."""
        return (self.clock.now_ns() - self._start_ns) / NS_PER_S

    def add(self, event: StepDone | StepsLost) -> None:
        """Add a step, or a gap."""
        if isinstance(event, StepsLost):
            self.lost_steps += event.count
            return
        self.clamps += len(event.clamps)
        self.steps_ms.append({} if event.intervention else event.stages_ms)  # a person's steps have no policy latency
        self.entropy.append(event.entropy)
        self.chunk_gap.append(event.chunk_gap)
        self.states.append(event.result.observation.state)
        self.interventions.add(event)

    def result(self, seed: int, outcome: Outcome, error: str | None, missed_ticks: int = 0) -> EpisodeResult:
        """Return the result so far."""
        return EpisodeResult(
            seed=seed,
            outcome=outcome,
            steps=len(self.steps_ms),
            duration_s=self.elapsed_s,
            clamps=self.clamps,
            missed_ticks=missed_ticks,
            stages_ms=by_stage(self.steps_ms),
            entropy=_told(self.entropy),
            chunk_gap=_told(self.chunk_gap),
            still_s=steps_at_rest(self.states, self.embodiment.state) / self.embodiment.rate_hz,
            error=error,
            interventions=self.interventions.steps,
            takeovers=self.interventions.takeovers,
            lost_steps=self.lost_steps,
        )


def _told(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the values of the steps; empty if no step has one."""
    return tuple(values) if any(value is not None for value in values) else ()
