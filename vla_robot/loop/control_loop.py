"""The control loop for worlds that wait: observe, ask the policy, guard, act, record, wait.

Recording, live view and reports subscribe to its events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.errors import NoActionYetError, PolicyError, SessionError
from vla_robot.core.messages import ActionChunk, Observation, StepResult
from vla_robot.core.ports import Guard, Policy, World
from vla_robot.core.ports.wrapped_world import step_without_frames
from vla_robot.loop.chunk_gap import ChunkGapMeter
from vla_robot.loop.episode_stats import EpisodeStats
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, Subscriber
from vla_robot.loop.history import History
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.timing import Stopwatch


class EndedByPersonError(PolicyError):
    """A person ended the episode. On a real robot without a success test, only a person can end it as a success.

    Attributes:
        outcome: the outcome that the person chose.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"a person ended the episode as {outcome}.")
        self.outcome: Outcome = outcome


PAUSE_S = 0.02
"""Pause before the policy is asked again when it had no action [s]; the world waits meanwhile."""


def always_false() -> bool:
    """Return False: the stop flag of a run that is never stopped."""
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
    frames_every: int | None = 1,
) -> EpisodeResult:
    """Run the policy in the world until the world ends the episode.

    A policy without a valid action (PolicyError) ends the episode with outcome "error" and sends none. So does
    a restarted server of policy or world (SessionError), which the next episode may find again. After NoActionYetError
    the policy is asked again while the world waits. EndedByPersonError gives the outcome that the person chose. Every
    other exception reaches the caller, after the subscribers got an EpisodeEnded with outcome "stopped".

    Args:
        world: executes the actions; it also decides on success and on the horizon.
        policy: chooses the actions.
        seed: seed of world and policy.
        guard: limits the actions.
        subscribers: called with every event, in the loop's thread.
        clock: the clock that stamps the world's observations.
        rate_hz: control steps per second; None runs as fast as possible, for a simulation.
        should_stop: called before each step; True ends the episode as "stopped".
        frames_every: steps from one observation whose frames the subscribers read to the next; None if they read none.
            A world that can leave frames out renders these and those that the policy is shown: of a chunk of 16
            actions, the first step's.
    """
    clock = clock or MonotonicClock()
    policy.reset(seed)
    observation = world.reset(seed)
    stats, pace, history = EpisodeStats(clock, world.embodiment), _Pace(clock, rate_hz), History(policy)
    gaps = ChunkGapMeter(policy, world.embodiment.action)
    frames_every = 1 if history.is_kept else frames_every
    pace.watch.received(observation, world)
    notify(subscribers, EpisodeStarted(seed, observation))
    chunk: ActionChunk | None = None
    outcome: Outcome | None = None
    error: str | None = None
    try:
        while outcome is None and not should_stop():
            pace.wait(is_first=not stats.steps_ms)
            if chunk is None or not chunk.lasts(observation.step):
                try:
                    chunk = gaps.measured(ask(policy, history.put_before(observation)), observation)
                except NoActionYetError:
                    pace.pause()
                    continue
                pace.watch.lap("policy", chunk.stages_ms)
            wanted = chunk.actions[observation.step - chunk.step]
            commanded, clamps = guard.check(wanted)
            pace.watch.lap("guard")
            is_shown = not chunk.lasts(observation.step + 1) or _is_due(observation.step + 1, frames_every)
            result = world.step(commanded) if is_shown else step_without_frames(world, commanded)
            stages_ms = pace.watch.commanded(result)
            pace.watch.received(result.observation, world)
            clamps += result.clamps
            step = StepDone(observation, wanted, commanded, clamps, result, stages_ms, stats.elapsed_s)
            step = replace(step, **marks_of(chunk, observation.step - chunk.step))
            stats.add(step)
            notify(subscribers, step)
            history.add(observation)
            observation, outcome = result.observation, outcome_of(result)
    except EndedByPersonError as end:
        outcome = end.outcome
    except (PolicyError, SessionError) as failure:
        outcome, error = "error", str(failure)
    finally:
        ended = stats.result(seed, outcome or "stopped", error, pace.missed_ticks)
        notify(subscribers, EpisodeEnded(ended, observation))
    return ended


class _Pace:
    """Waits until the next step is due, and measures the stages of this one."""

    def __init__(self, clock: Clock, rate_hz: float | None) -> None:
        self.watch = Stopwatch(clock)
        self._clock = clock
        self._ticker = None if rate_hz is None else Ticker(clock, round(NS_PER_S / rate_hz))

    @property
    def missed_ticks(self) -> int:
        return 0 if self._ticker is None else self._ticker.missed

    def wait(self, is_first: bool) -> None:
        """Wait for the next tick, from the second step on. The time since the observation arrived is "record"."""
        self.watch.lap("record")
        if self._ticker is not None and not is_first:
            self._ticker.wait()
            self.watch.lap("wait")

    def pause(self) -> None:
        """Wait before the policy is asked again."""
        self._clock.sleep_until_ns(self._clock.now_ns() + round(PAUSE_S * NS_PER_S))


def marks_of(chunk: ActionChunk, row: int) -> dict[str, Any]:
    """Return the fields of a StepDone that say who chose the action, and how unsure the policy was."""
    beside = chunk.policy_actions
    return {
        "entropy": chunk.entropy,
        "chunk_gap": chunk.chunk_gap,
        "intervention": chunk.intervention,
        "policy_action": beside[row] if beside is not None and row < len(beside) else None,
    }


def notify(subscribers: Sequence[Subscriber], event: Event) -> None:
    """Call every subscriber with an event."""
    for subscriber in subscribers:
        subscriber(event)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _covers(chunk: ActionChunk, step: int) -> bool:
    return 0 <= step - chunk.step < len(chunk.actions)


def ask(policy: Policy, observation: Observation) -> ActionChunk:
    """Ask the policy for a chunk that has an action for this step. Raises PolicyError for any other answer."""
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
    """Return how the episode ended with this step, or None if it continues."""
    if result.terminated:
        return "success" if result.success else "failure"
    return "timeout" if result.truncated else None
