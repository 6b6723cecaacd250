"""The control loop: observe, ask, guard, act, record, wait. One episode, one screen.

Whatever else a run needs (recording, live view, reports) subscribes to its events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult, Vector
from vla_robot.core.ports import Policy, World
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, Subscriber
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.timing import Stopwatch, by_stage


class Guard(Protocol):
    """Stands between the policy and the arm."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        """The action that may be sent, and every limit that changed it. Raises PolicyError when none may."""
        ...


def never() -> bool:
    """The stop flag of a run that nobody stops."""
    return False


def run_episode(
    world: World,
    policy: Policy,
    seed: int,
    *,
    guard: Guard,
    subscribers: Sequence[Subscriber] = (),
    clock: Clock | None = None,
    rate_hz: float | None = None,
    should_stop: Callable[[], bool] = never,
) -> EpisodeResult:
    """Drive the world with the policy until the world ends the episode.

    A policy that has no valid action ends the episode with outcome "error"; nothing is sent in its place. Every other
    exception reaches the caller, after the subscribers were told that the episode was stopped.

    Args:
        world: where it happens; it also decides on success and on the horizon.
        policy: who decides.
        seed: of both.
        guard: limits the actions.
        subscribers: are told every event, in the loop's thread.
        clock: the one that stamps the world's observations.
        rate_hz: steps per second of the clock; None for as fast as it goes, as suits a simulation.
        should_stop: asked before each step; True breaks the episode off.
    """
    clock = clock or MonotonicClock()
    policy.reset(seed)
    observation = world.reset(seed)
    tally = _Tally(clock, rate_hz)
    tally.watch.received(observation, world)
    tell(subscribers, EpisodeStarted(seed, observation))
    chunk: ActionChunk | None = None
    outcome: Outcome | None = None
    error: str | None = None
    try:
        while outcome is None and not should_stop():
            tally.wait()
            if chunk is None or not _covers(chunk, observation.step):
                chunk = ask(policy, observation)
                tally.watch.lap("policy", chunk.stages_ms)
            wanted = chunk.actions[observation.step - chunk.step]
            commanded, clamps = guard.check(wanted)
            tally.watch.lap("guard")
            result = world.step(commanded)
            stages_ms = tally.watch.commanded(result)
            tally.watch.received(result.observation, world)
            clamps += result.clamps
            step = StepDone(observation, wanted, commanded, clamps, result, stages_ms, tally.elapsed_s)
            tally.add(step)
            tell(subscribers, step)
            observation, outcome = result.observation, outcome_of(result)
    except PolicyError as failure:
        outcome, error = "error", str(failure)
    finally:
        ended = tally.result(seed, outcome or "stopped", error)
        tell(subscribers, EpisodeEnded(ended, observation))
    return ended


@dataclass
class _Tally:
    """The episode's book-keeping, kept out of the loop's paragraph."""

    clock: Clock
    rate_hz: float | None
    clamps: int = 0
    steps_ms: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.clock)
        self._start_ns = self.clock.now_ns()
        self._ticker = None if self.rate_hz is None else Ticker(self.clock, round(NS_PER_S / self.rate_hz))

    def wait(self) -> None:
        """Keep the rate, from the second step on. The time since the step was received is the subscribers'."""
        self.watch.lap("record")
        if self._ticker is not None and self.steps_ms:
            self._ticker.wait()
            self.watch.lap("wait")

    @property
    def elapsed_s(self) -> float:
        return (self.clock.now_ns() - self._start_ns) / NS_PER_S

    def add(self, step: StepDone) -> None:
        self.clamps += len(step.clamps)
        self.steps_ms.append(step.stages_ms)

    def result(self, seed: int, outcome: Outcome, error: str | None) -> EpisodeResult:
        return EpisodeResult(
            seed=seed,
            outcome=outcome,
            steps=len(self.steps_ms),
            duration_s=self.elapsed_s,
            clamps=self.clamps,
            missed_ticks=0 if self._ticker is None else self._ticker.missed,
            stages_ms=by_stage(self.steps_ms),
            error=error,
        )


def tell(subscribers: Sequence[Subscriber], event: Event) -> None:
    """Let every subscriber know."""
    for subscriber in subscribers:
        subscriber(event)


def _covers(chunk: ActionChunk, step: int) -> bool:
    return 0 <= step - chunk.step < len(chunk.actions)


def ask(policy: Policy, observation: Observation) -> ActionChunk:
    """A chunk that has an action for this very step. Raises PolicyError when the policy answers anything else."""
    chunks = policy.act([observation])
    if len(chunks) != 1:
        raise PolicyError(f"the policy gave {len(chunks)} chunks for one observation.")
    (chunk,) = chunks
    if not _covers(chunk, observation.step):
        last = chunk.step + len(chunk.actions) - 1
        raise PolicyError(
            f"the policy has no action for step {observation.step}: its chunk holds steps {chunk.step} to {last}."
        )
    return chunk


def outcome_of(result: StepResult) -> Outcome | None:
    """How the episode ended with this step, or None when it goes on."""
    if result.terminated:
        return "success" if result.success else "failure"
    return "timeout" if result.truncated else None
