"""The control loop: observe, ask, guard, act, record, wait. One episode, one screen.

Whatever else a run needs (recording, live view, reports) subscribes to its events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.errors import NoActionYetError, PolicyError, SessionError
from vla_robot.core.messages import ActionChunk, Observation, StepResult
from vla_robot.core.ports import Guard, Policy, World
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, Subscriber
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.timing import Stopwatch, by_stage


class EndedByPersonError(PolicyError):
    """A person ended the episode. Where no success test exists, only a person can.

    Attributes:
        outcome: what they call it.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"a person ended the episode as {outcome}.")
        self.outcome: Outcome = outcome


PAUSE_S = 0.02
"""Between two questions where no action was available [s]; the world waits meanwhile."""


def always_false() -> bool:
    """The stop flag of a run that is never stopped."""
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
    should_stop: Callable[[], bool] = always_false,
) -> EpisodeResult:
    """Drive the world with the policy until the world ends the episode.

    A policy that has no valid action ends the episode with outcome "error"; nothing is sent in its place. So does a
    server of policy or world that was started anew (SessionError): the next episode may find it. A policy that has none
    yet (NoActionYetError) is asked again, and the world waits; one that says that a person ended the episode
    (EndedByPersonError) is believed. Every other exception reaches the caller, after the subscribers were told that the
    episode was stopped.

    Args:
        world: where it happens; it also decides on success and on the horizon.
        policy: gives the actions.
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
    tally = _EpisodeStats(clock, rate_hz)
    tally.watch.received(observation, world)
    notify(subscribers, EpisodeStarted(seed, observation))
    chunk: ActionChunk | None = None
    outcome: Outcome | None = None
    error: str | None = None
    try:
        while outcome is None and not should_stop():
            tally.wait()
            if chunk is None or not _covers(chunk, observation.step):
                try:
                    chunk = ask(policy, observation)
                except NoActionYetError:
                    tally.pause()
                    continue
                tally.watch.lap("policy", chunk.stages_ms)
            wanted = chunk.actions[observation.step - chunk.step]
            commanded, clamps = guard.check(wanted)
            tally.watch.lap("guard")
            result = world.step(commanded)
            stages_ms = tally.watch.commanded(result)
            tally.watch.received(result.observation, world)
            clamps += result.clamps
            step = StepDone(observation, wanted, commanded, clamps, result, stages_ms, tally.elapsed_s)
            step = replace(step, **marks_of(chunk, observation.step - chunk.step))
            tally.add(step)
            notify(subscribers, step)
            observation, outcome = result.observation, outcome_of(result)
    except EndedByPersonError as end:
        outcome = end.outcome
    except (PolicyError, SessionError) as failure:
        outcome, error = "error", str(failure)
    finally:
        ended = tally.result(seed, outcome or "stopped", error)
        notify(subscribers, EpisodeEnded(ended, observation))
    return ended


@dataclass
class _EpisodeStats:
    """The episode's book-keeping, kept out of the loop's paragraph."""

    clock: Clock
    rate_hz: float | None
    clamps: int = 0
    steps_ms: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    interventions: Interventions = field(default_factory=lambda: Interventions())

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

    def pause(self) -> None:
        """No action was available: ask again in a moment."""
        self.clock.sleep_until_ns(self.clock.now_ns() + round(PAUSE_S * NS_PER_S))

    @property
    def elapsed_s(self) -> float:
        return (self.clock.now_ns() - self._start_ns) / NS_PER_S

    def add(self, step: StepDone) -> None:
        self.clamps += len(step.clamps)
        self.steps_ms.append({} if step.intervention else step.stages_ms)  # a person's time is no policy's latency
        self.interventions.add(step)

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
            interventions=self.interventions.steps,
            takeovers=self.interventions.takeovers,
        )


@dataclass
class Interventions:
    """How often a person took over, and for how many steps."""

    steps: int = 0
    takeovers: int = 0
    _running: bool = False

    def add(self, step: StepDone) -> None:
        self.steps += step.intervention and not step.held
        self.takeovers += step.intervention and not self._running
        # A tick that was held does not tell which of the two drives.
        self._running = self._running if step.held else step.intervention


def marks_of(chunk: ActionChunk, row: int) -> dict[str, Any]:
    """Which of policy and person drove, as the fields of a StepDone."""
    beside = chunk.policy_actions
    return {
        "intervention": chunk.intervention,
        "policy_action": beside[row] if beside is not None and row < len(beside) else None,
    }


def notify(subscribers: Sequence[Subscriber], event: Event) -> None:
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
