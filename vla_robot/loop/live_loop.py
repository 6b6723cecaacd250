"""The control loop for a robot with its own clock: observe, ask the policy, guard, send. Ticks report the results.

    robot   tick   tick   tick   tick   tick         its clock, its limits, its watchdog
              \\                   ^
    loop       see, ask ..... send                   the robot moves on while the policy thinks

Every tick becomes one StepDone: the observation before it, the action wanted for it, and the action executed in
it. Ticks that arrive while the policy computes are processed afterwards, and the policy gets the newest one.

A policy with chunks is asked again at once, or after `ActionChunk.rows` steps, while its last chunk is executed. Where
observations say what the arm has committed to (`--splice rtc`), it is asked as soon as the last chunk is part of that:
before, it would continue a plan that this chunk has replaced. A policy of single actions is asked again when its last
action shows in the observation; earlier, it would give the same action twice. A person who took over is asked at every
tick, since the teleoperator's action changes each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import NoActionYetError, PolicyError, TransportError, VlaError
from vla_robot.core.messages import ActionChunk, Clamp, Observation, Vector
from vla_robot.core.ports import Guard, Policy, ReportsStages, ReportsStatus, Robot
from vla_robot.core.robot import Tick
from vla_robot.loop.chunk_gap import ChunkGapMeter
from vla_robot.loop.control_loop import EndedByPersonError, always_false, ask, marks_of, notify, outcome_of
from vla_robot.loop.episode_stats import EpisodeStats
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, StepDone, StepsLost, Subscriber
from vla_robot.loop.history import History
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.timing import TOTAL

PATIENCE_TICKS = 3
"""An action that no tick reports after so many ticks was lost on the way: the policy is asked anew."""

MAX_UNPLAYED = 1000
"""Largest number of stored answers that no tick has reported yet."""

SLICE_S = 0.05
SILENCE_S = 5.0
"""A robot that sends no tick for this long is lost [s]."""


def run_live_episode(
    robot: Robot,
    policy: Policy,
    seed: int,
    *,
    guard: Guard,
    subscribers: Sequence[Subscriber] = (),
    clock: Clock | None = None,
    should_stop: Callable[[], bool] = always_false,
) -> EpisodeResult:
    """Control the robot with the policy until the robot ends the episode.

    A policy without a valid action, a bridge that stopped the arm, and a broken connection end the episode with
    outcome "error". In every case the robot is told to hold.

    Args:
        robot: sends the ticks of its control clock.
        policy: gets the newest observation.
        seed: seed of robot and policy.
        guard: limits the actions before they are sent; the bridge has limits of its own.
        subscribers: called with every event, in the loop's thread. Each tick is one StepDone; those that arrived while
            the policy computed come after its answer. Lost ticks are a StepsLost.
        clock: measures the stages.
        should_stop: called at least 20 times a second while the policy does not compute; True ends the episode.
    """
    clock = clock or MonotonicClock()
    policy.reset(seed)
    observation = robot.begin(seed)
    stats = _LiveStats(clock, robot.embodiment)
    notify(subscribers, EpisodeStarted(seed, observation))
    gaps = ChunkGapMeter(policy, robot.embodiment.action)
    pairing = _Pairing(observation, guard, clock, History(policy), gaps)
    course = _Course(pairing, stats, subscribers)
    ended_here = True
    try:
        course.begin()
        while course.goes_on and not should_stop():
            course.follow(robot.ticks(timeout_s=0.0))  # the policy sees the newest
            if course.goes_on and pairing.may_ask():
                with contextlib.suppress(NoActionYetError):  # the robot holds; the next tick asks again
                    robot.send(pairing.ask(policy, robot))
            course.follow(robot.ticks(timeout_s=SLICE_S))
            stats.require_alive(robot)
        ended_here = course.outcome is None
    except EndedByPersonError as end:
        course.end(robot, end.outcome)
    except (PolicyError, TransportError) as failure:
        course.end(robot, "error", str(failure))
    finally:
        ended = stats.result(seed, course.outcome or "stopped", course.error)
        if ended_here:  # before the subscribers, which may wait for a disk or raise
            _release(robot)
        notify(subscribers, EpisodeEnded(ended, pairing.newest))
    return ended


@dataclass
class _Course:
    """State of an episode: its events so far, and how it ended."""

    pairing: _Pairing
    stats: _LiveStats
    subscribers: Sequence[Subscriber]
    outcome: Outcome | None = None
    error: str | None = None

    @property
    def goes_on(self) -> bool:
        return self.outcome is None

    def begin(self) -> None:
        """Report the steps before the first observation that arrived as a gap."""
        if self.pairing.newest.step:
            self._tell(StepsLost(0, self.pairing.newest.step))

    def follow(self, ticks: Sequence[Tick]) -> None:
        """Report every tick to the subscribers, until one ends the episode."""
        for tick in ticks:
            if not self.goes_on:
                return
            for event in self.pairing.events_of(tick, self.stats.elapsed_s):
                self._tell(event)
            self.outcome = outcome_of(tick.result)
            if tick.mode == "stopped":
                self.outcome, self.error = "error", f"the bridge stopped the arm: {tick.reason}"
        if ticks:
            self.stats.heard()
            self.pairing.caught_up()

    def end(self, robot: Robot, outcome: Outcome, error: str | None = None) -> None:
        """End the episode, unless a tick that arrived meanwhile ended it."""
        with contextlib.suppress(VlaError):
            self.follow(robot.ticks(timeout_s=0.0))
        if self.goes_on:
            self.outcome, self.error = outcome, error
        elif self.error and error:  # the bridge stopped the arm because the failing policy sent no action
            self.error = f"{error} Meanwhile {self.error}"

    def _tell(self, event: StepDone | StepsLost) -> None:
        self.stats.add(event)
        notify(self.subscribers, event)


@dataclass
class _Sent:
    """One answer of the policy that was sent.

    Attributes:
        chunk: the policy's chunk.
        commanded: (T, D) actions as sent, within the guard's limits.
        clamps: (T,) the guard's clamps of each row.
        stages_ms: time of each stage until it was sent [ms]; empty once a step has reported it.
    """

    chunk: ActionChunk
    commanded: NDArray[np.float64]
    clamps: tuple[tuple[Clamp, ...], ...]
    stages_ms: Mapping[str, float]


_Cause = tuple[int, int, bool]
"""Identifies the chunk that a tick executed: stamp [ns] and step of its observation, and whether it was a person's,
since a person who takes over may get the observation that the policy got last."""


class _Pairing:
    """Matches ticks with the answers that they executed."""

    def __init__(self, first: Observation, guard: Guard, clock: Clock, history: History, gaps: ChunkGapMeter) -> None:
        self.newest = first
        self._history = history
        self._gaps = gaps
        self._guard = guard
        self._clock = clock
        self._sent: dict[_Cause, _Sent] = {}
        self._last: ActionChunk | None = None
        self._last_processed = -1
        self._answered_at = -1

    def may_ask(self) -> bool:
        """Return whether asking now gives an action that was not sent already."""
        step, last = self.newest.step, self._last
        if last is None:
            return True
        is_due = step >= last.step + (last.rows or 1)
        if last.intervention or (len(last.actions) > 1 and self.newest.committed is None):
            return is_due
        played = self._last_processed >= last.step
        lost = self._answered_at >= 0 and step > self._answered_at + PATIENCE_TICKS
        return is_due and (played or lost)

    def ask(self, policy: Policy, robot: Robot) -> ActionChunk:
        """Ask the policy with the newest observation; return and store its answer, within the guard's limits."""
        begun_ns = self._clock.now_ns()
        chunk = self._gaps.measured(ask(policy, self._history.put_before(self.newest)), self.newest)
        commanded, clamps = zip(*(self._guard.check(row) for row in chunk.actions), strict=True)
        policy_ms = (self._clock.now_ns() - begun_ns) / NS_PER_MS
        way_back_ms = robot.last_stages_ms if isinstance(robot, ReportsStages) else {}
        sent = _Sent(chunk, np.stack(commanded), clamps, {**way_back_ms, "policy": policy_ms})
        self._sent[chunk.stamp_ns, chunk.step, chunk.intervention] = sent
        self._last, self._answered_at = chunk, -1
        if len(self._sent) > MAX_UNPLAYED:
            del self._sent[next(iter(self._sent))]
        return replace(chunk, actions=sent.commanded)

    def caught_up(self) -> None:
        """Note that all ticks that arrived so far were reported."""
        if self._answered_at < 0:
            self._answered_at = self.newest.step

    def events_of(self, tick: Tick, elapsed_s: float) -> Iterator[StepDone | StepsLost]:
        """Yield the event of a tick, if it is new, and make its observation `newest`."""
        before, after = self.newest, tick.result.observation
        # The tick that stops the arm executes no action, and has the number of the one before it.
        due = before.step if tick.mode == "stopped" else before.step + 1
        if after.step < due:
            return  # older than the newest tick
        self._history.add(before)
        self.newest = after
        self._last_processed = max(self._last_processed, tick.last_processed_step)
        if after.step > due:
            yield StepsLost(before.step, after.step - before.step)
        elif tick.mode != "stopped":
            yield self._step(before, tick, elapsed_s)

    def _step(self, before: Observation, tick: Tick, elapsed_s: float) -> StepDone:
        result, sent = tick.result, self._sent_for(tick)
        step = StepDone(before, tick.wanted, tick.wanted, result.clamps, result, {}, elapsed_s, tick.intervention)
        row = 0 if sent is None or len(sent.commanded) == 1 else before.step - tick.cause_step
        if sent is None or not 0 <= row < len(sent.commanded):
            return replace(step, held=tick.mode != "run")
        return replace(
            step,
            # Merged chunks: the wanted action is the mean of several.
            wanted=sent.chunk.actions[row] if sent.commanded[row].tolist() == _listed(tick.wanted) else tick.wanted,
            clamps=(*sent.clamps[row], *result.clamps),
            stages_ms=self._stages_of(tick, sent),
            held=sent.chunk.rests,
            **marks_of(sent.chunk, row),
        )

    def _sent_for(self, tick: Tick) -> _Sent | None:
        """Return the answer that a tick executed, and forget those before it, which will not be executed any more."""
        cause = tick.obs_stamp_ns, tick.cause_step, tick.intervention
        if tick.mode != "run" or cause not in self._sent:
            return None
        while next(iter(self._sent)) != cause:
            del self._sent[next(iter(self._sent))]
        return self._sent[cause]

    @staticmethod
    def _stages_of(tick: Tick, sent: _Sent) -> Mapping[str, float]:
        """Return the stages [ms] of a chunk's first action. The total is measured by the bridge's clock alone."""
        if not sent.stages_ms or sent.chunk.intervention:
            return {}
        stages_ms, sent.stages_ms = sent.stages_ms, {}
        total_ms = (tick.result.command_ns - tick.obs_stamp_ns) / NS_PER_MS
        return {**stages_ms, "send_and_tick": max(total_ms - sum(stages_ms.values()), 0.0), TOTAL: total_ms}


class _LiveStats(EpisodeStats):
    """Statistics of an episode, and the time of its robot's last tick."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heard()

    def heard(self) -> None:
        """Note that a tick arrived now."""
        self._heard_ns = self.clock.now_ns()

    def require_alive(self, robot: Robot) -> None:
        silent_s = (self.clock.now_ns() - self._heard_ns) / NS_PER_S
        if silent_s > SILENCE_S:
            raise TransportError(f"no tick came from the robot for {silent_s:.1f} s. {_known_of(robot)}")


def _listed(values: Vector | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _known_of(robot: Robot) -> str:
    """Return a sentence with the status of the robot's bridge, or that it is unknown."""
    if isinstance(robot, ReportsStatus):
        with contextlib.suppress(VlaError):
            status = robot.status()
            return f"Its bridge answers: {status.get('mode')}, {status.get('reason') or 'no reason given'}."
    return (
        "Whether its bridge runs, and holds the arm, is not known here: look at the arm, and use its own switch if it "
        "moves."
    )


def _release(robot: Robot) -> None:
    """Tell the robot to hold. Errors are ignored: without this message, a running bridge holds the arm later."""
    with contextlib.suppress(VlaError):
        robot.end()
