"""The control loop for a robot that moves on its own clock: see, ask, guard, send. What it did shows in its ticks.

    robot   tick   tick   tick   tick   tick         its clock, its limits, its watchdog
              \\                   ^
    loop       see, ask ..... send                   the robot moves on while the policy thinks

A policy with chunks is asked again at once: what is left of its last chunk is played meanwhile. A policy that gives one
action is asked again when that action shows in what it sees; asked earlier, it would give the same one twice. A person
who took over is asked at every tick: hands say something new each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import NoActionYetError, PolicyError, TransportError, VlaError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Policy
from vla_robot.core.robot import Robot, Tick
from vla_robot.loop.control_loop import (
    EndedByPersonError,
    Guard,
    Interventions,
    ask,
    marks_of,
    never,
    outcome_of,
    tell,
)
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, StepDone, Subscriber
from vla_robot.loop.results import EpisodeResult, Outcome
from vla_robot.loop.timing import TOTAL, ReportsStages, by_stage

PATIENCE_TICKS = 3
"""An action that does not show after so many ticks was lost on the way: the policy is asked anew."""

SLICE_S = 0.05
SILENCE_S = 5.0
"""A robot that does not tick for this long is lost; its bridge holds it."""


def run_live_episode(
    robot: Robot,
    policy: Policy,
    seed: int,
    *,
    guard: Guard,
    subscribers: Sequence[Subscriber] = (),
    clock: Clock | None = None,
    should_stop: Callable[[], bool] = never,
) -> EpisodeResult:
    """Drive the robot with the policy until the robot ends the episode.

    A policy without a valid action, a bridge that stopped the arm, and a connection that broke end the episode with
    outcome "error". However it ends, the robot is told to hold.

    Args:
        robot: keeps the clock.
        policy: who decides.
        seed: of both.
        guard: limits the actions here; the bridge has limits of its own.
        subscribers: are told every event, in the loop's thread. Ticks whose frames were replaced by newer ones on a
            slow network are not told; the bridge's own log has them all.
        clock: times the stages.
        should_stop: asked at least twenty times a second; True breaks the episode off.
    """
    clock = clock or MonotonicClock()
    policy.reset(seed)
    observation = robot.begin(seed)
    tally = _Tally(clock)
    tell(subscribers, EpisodeStarted(seed, observation))
    asked = _Asked(clock)
    outcome: Outcome | None = None
    error: str | None = None
    ended_here = True
    try:
        while outcome is None and not should_stop():
            if asked.may_ask(observation.step):
                asked.begin()
                with contextlib.suppress(NoActionYetError):  # the robot holds; the next tick brings the next question
                    robot.send(asked.answered(_guarded(ask(policy, observation), guard), robot))
            tick = robot.newest(after=observation.step, timeout_s=SLICE_S)
            if tick is None:
                tally.require_alive()
                continue
            step = asked.seen(observation, tick, tally.elapsed_s)
            tally.add(step)
            tell(subscribers, step)
            observation, outcome = tick.result.observation, outcome_of(tick.result)
            ended_here = outcome is None
            if tick.mode == "stopped":
                outcome, error = "error", f"the bridge stopped the arm: {tick.reason}"
    except EndedByPersonError as end:
        outcome = end.outcome
    except (PolicyError, TransportError) as failure:
        outcome, error = "error", str(failure)
    finally:
        ended = tally.result(seed, outcome or "stopped", error)
        tell(subscribers, EpisodeEnded(ended, observation))
        if ended_here:
            _let_go(robot)
    return ended


@dataclass
class _Asked:
    """What the policy was asked last, and what has become of it."""

    clock: Clock
    chunk: ActionChunk | None = None
    settled: int = -1
    stages_ms: dict[str, float] = field(default_factory=dict[str, float])
    begun_ns: int = 0
    answered_at: int = -1

    def may_ask(self, step: int) -> bool:
        """Whether asking at this step gives an action that is not on its way already."""
        if self.chunk is None or ((len(self.chunk.actions) > 1 or self.chunk.intervention) and step > self.chunk.step):
            return True
        played = self.settled >= self.chunk.step
        lost = self.answered_at >= 0 and step > self.answered_at + PATIENCE_TICKS
        return step > self.chunk.step and (played or lost)

    def begin(self) -> None:
        self.begun_ns = self.clock.now_ns()

    def answered(self, chunk: ActionChunk, robot: Robot) -> ActionChunk:
        """Note what the policy said, and where the time went until then."""
        policy_ms = (self.clock.now_ns() - self.begun_ns) / NS_PER_MS
        way_back_ms = robot.last_stages_ms if isinstance(robot, ReportsStages) else {}
        self.stages_ms = {**way_back_ms, "policy": policy_ms}
        self.chunk, self.answered_at = chunk, -1
        return chunk

    def seen(self, before: Observation, tick: Tick, elapsed_s: float) -> StepDone:
        """One tick in the loop's words."""
        self.settled = max(self.settled, tick.settled)
        if self.answered_at < 0:
            self.answered_at = tick.result.observation.step
        result = tick.result
        wanted = self._wanted(before, tick)
        step = StepDone(before, wanted, wanted, result.clamps, result, self._stages_of(tick), elapsed_s)
        chunk = self.chunk if self.chunk is not None and self._is_of(tick, self.chunk) else None
        return replace(
            step,
            intervention=tick.intervention,
            held=tick.mode != "run" or (chunk is not None and chunk.rests),
            policy_action=None if chunk is None else marks_of(chunk, 0)["policy_action"],
        )

    @staticmethod
    def _is_of(tick: Tick, chunk: ActionChunk) -> bool:
        """Whether the tick played this chunk; a person who takes over may see what the policy saw last."""
        return (tick.cause_ns, tick.intervention) == (chunk.stamp_ns, chunk.intervention)

    def _wanted(self, before: Observation, tick: Tick) -> Vector | None:
        """What was sent for this tick, within the limits here; None where nothing was."""
        chunk = self.chunk
        if chunk is None or tick.mode != "run" or not self._is_of(tick, chunk):
            return None
        row = 0 if len(chunk.actions) == 1 else before.step - chunk.step
        return chunk.actions[row] if 0 <= row < len(chunk.actions) else None

    def _stages_of(self, tick: Tick) -> Mapping[str, float]:
        """Of the first action of a chunk. The total is right on the bridge's clock, whatever ours says."""
        if self.chunk is None or not self._is_of(tick, self.chunk) or not self.stages_ms or self.chunk.intervention:
            return {}
        stages_ms, self.stages_ms = self.stages_ms, {}
        total_ms = (tick.result.command_ns - tick.cause_ns) / NS_PER_MS
        return {**stages_ms, "send_and_tick": max(total_ms - sum(stages_ms.values()), 0.0), TOTAL: total_ms}


@dataclass
class _Tally:
    """The episode's book-keeping."""

    clock: Clock
    clamps: int = 0
    steps_ms: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    interventions: Interventions = field(default_factory=Interventions)

    def __post_init__(self) -> None:
        self._start_ns = self._heard_ns = self.clock.now_ns()

    @property
    def elapsed_s(self) -> float:
        return (self.clock.now_ns() - self._start_ns) / NS_PER_S

    def add(self, step: StepDone) -> None:
        self._heard_ns = self.clock.now_ns()
        self.clamps += len(step.clamps)
        self.steps_ms.append(step.stages_ms)
        self.interventions.add(step)

    def require_alive(self) -> None:
        silent_s = (self.clock.now_ns() - self._heard_ns) / NS_PER_S
        if silent_s > SILENCE_S:
            raise TransportError(f"the robot has been silent for {silent_s:.1f} s. Its bridge holds it meanwhile.")

    def result(self, seed: int, outcome: Outcome, error: str | None) -> EpisodeResult:
        return EpisodeResult(
            seed=seed,
            outcome=outcome,
            steps=len(self.steps_ms),
            duration_s=self.elapsed_s,
            clamps=self.clamps,
            stages_ms=by_stage(self.steps_ms),
            error=error,
            interventions=self.interventions.steps,
            takeovers=self.interventions.takeovers,
        )


def _guarded(chunk: ActionChunk, guard: Guard) -> ActionChunk:
    """Every row within the limits; the bridge would cut it too, and tell."""
    return replace(chunk, actions=np.stack([guard.check(row)[0] for row in chunk.actions]))


def _let_go(robot: Robot) -> None:
    """The robot holds without being told, only later."""
    with contextlib.suppress(VlaError):
        robot.end()
