"""The bridge without its sockets: what the arm does at each tick of the control clock.

    chunk --> accept --> due row --> age --> limits --> arm.command      mode "run"
                            '- none, or refused ------> arm.hold         mode "hold"
              watchdog says stop, or e-stop --brake---> arm.stop         mode "stopped", until armed again

Only actions that this module allows reach the arm, and every tick ends in one of the three modes.

A stop is supported: from the next command on, the speed decreases as fast as the acceleration limits allow;
then the pose is held with power on, the grip kept. In terms of IEC 60204-1 that is category 2. It does not
replace a switch that cuts the power.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock
from vla_robot.core.errors import ContractError, PolicyError, VlaError, WorldError
from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult, Vector
from vla_robot.core.ports import ActionFilter, Arm, ReportsStages, Streamed
from vla_robot.core.robot import Mode, Tick, TimeLimits
from vla_robot.safety.chunk import ChunkBuffer, ChunkMerge
from vla_robot.safety.delay import DelayEstimator
from vla_robot.safety.filter import LimitStopError
from vla_robot.safety.limits import require_action
from vla_robot.safety.watchdog import Verdict, Watchdog
from vla_robot.serve.bridge.faults import Faults, contained, contained_listener
from vla_robot.serve.recent_times import RecentTimes

NOTHING_PROCESSED = -1

MAX_BRAKE_S = 1.0
"""A ramp to rest that would take longer [s], as a recipe's limits may ask, is cut short by `Arm.stop`."""

STOP_TRIES = 2
"""Attempts to stop the arm, so that one lost answer on a bus does not leave it moving."""

MAX_ROWS = 1000
"""Most actions of one chunk: 20 s at 50 Hz."""


@dataclass(frozen=True)
class EpisodeBegan:
    """An episode began; `observation` is the arm's first one."""

    episode: int
    seed: int
    observation: Observation


@dataclass(frozen=True)
class Ticked:
    """The arm executed a tick.

    Attributes:
        before: the observation before it.
        wanted: (D,) action that was due; None if the pose was held.
        tick: the tick's result.
    """

    before: Observation
    wanted: Vector | None
    tick: Tick


@dataclass(frozen=True)
class EpisodeOver:
    """The episode ended.

    Attributes:
        last: the last observation.
        outcome: "success", "failure", "timeout", or "stopped" if the world did not end it.
        reason: the reason of "stopped".
    """

    last: Observation
    outcome: str
    reason: str


type Listener = Callable[[EpisodeBegan | Ticked | EpisodeOver], None]


@dataclass(frozen=True)
class ExecutionConfig:
    """How a bridge executes actions.

    Attributes:
        max_age_s: an action is refused if the oldest frame that caused it is older than planned by this [s].
        splice: how two chunks are merged; see `vla_robot.safety.chunk`.
    """

    max_age_s: float = 0.5
    splice: ChunkMerge = "drop"

    def __post_init__(self) -> None:
        if not 0 < self.max_age_s <= 10:
            raise ContractError(f"max_age_s is {self.max_age_s:g}; it must be above 0 and at most 10 s.")


class _Due(NamedTuple):
    """An action whose tick has come: its chunk, and (D,) the action after merging chunks."""

    chunk: ActionChunk
    row: Vector


class _Allowed(NamedTuple):
    """(D,) what the limits left of an action, and what they cut."""

    action: Vector
    clamps: tuple[Clamp, ...]


class Bridge:
    """Executes the ticks of one arm. Single-threaded: the server calls it between messages."""

    def __init__(
        self,
        arm: Arm,
        limits: ActionFilter,
        watchdog: Watchdog,
        clock: Clock,
        execution: ExecutionConfig | None = None,
        listener: Listener = lambda _: None,
        faults: Faults | None = None,
    ) -> None:
        """
        Args:
            arm: the arm; the caller closes it. An exception that it raises stops it.
            limits: filter that every action passes.
            watchdog: decides on hold and stop; the server notifies it of heartbeats.
            clock: the clock that stamps the arm's frames.
            execution: age limit of actions, and how chunks are merged.
            listener: called with every event in this thread; it must return at once. Its exceptions are only counted.
            faults: counts failures.
        """
        self.faults = faults or Faults()
        self._arm = contained(arm, self.faults)
        self._limits = limits
        self._clock = clock
        self._execution = execution or ExecutionConfig()
        self._plan = ChunkBuffer(self._execution.splice, len(arm.embodiment.action))
        self._delay = DelayEstimator()
        self._listener = contained_listener(listener, self.faults)
        self._observation: Observation | None = None
        self._chunk: ActionChunk | None = None
        self._last_processed = NOTHING_PROCESSED
        self._lockstep = False
        self._refusal = ""
        self._ramp: list[Tick] = []
        self._commanded_ns = clock.now_ns()
        self.watchdog = watchdog
        self.episode = 0
        self.running = False
        self.dropped_rows = 0
        self.refused = 0
        """Number of actions refused, over all episodes: too old, or never to be sent."""
        self.unstopped = ""
        """Why the arm did not execute its last stop; empty if it did."""
        self.arm_stages: dict[str, RecentTimes] = {}
        """Stage of a command, as the arm reports it -> times of the newest commands."""

    @property
    def arm(self) -> Arm:
        return self._arm

    @property
    def lockstep(self) -> bool:
        """Whether the running episode waits for each action."""
        return self._lockstep

    @property
    def observation(self) -> Observation | None:
        return self._observation

    @property
    def time_limits(self) -> TimeLimits:
        """Limits of an action's age and of the silence between actions."""
        return TimeLimits(self._execution.max_age_s, self.watchdog.hold_after_s, self.watchdog.stop_after_s)

    def begin(self, episode: int, seed: int, lockstep: bool = False) -> Observation:
        """Begin an episode, after ending one that runs.

        Raises:
            ContractError: the arm is stopped and was not armed again, or cannot wait for lockstep.
            VlaError: the arm could not be reset, or was stopped during the reset; it is stopped.
        """
        if lockstep and not self._arm.can_wait:
            raise ContractError("lockstep is for simulations: this arm does not wait between commands.")
        if self.watchdog.stopped_by:
            raise ContractError(
                f"the arm is stopped: {self.watchdog.stopped_by}. `arm` it first: `vla run --robot ADDRESS --arm`, "
                "once you have removed the cause."
            )
        self.end("another episode began")
        self._observation = self._reset(seed)
        self._chunk, self._last_processed, self._lockstep = None, NOTHING_PROCESSED, lockstep
        self._refusal, self.dropped_rows = "", 0
        self._plan.clear()
        self._ramp.clear()
        self._commanded_ns = self._clock.now_ns()
        self.watchdog.start()
        self._listener(EpisodeBegan(episode, seed, self._observation))
        self.episode, self.running = episode, True
        return self._observation

    def put(self, chunk: ActionChunk) -> int:
        """Accept a chunk; the newest chunk wins.

        Returns:
            Number of rows whose tick has passed; they are skipped.

        Raises:
            PolicyError: the chunk holds an action that may never be sent, so all of it is refused.
            ContractError: no episode began, or the chunk is for a future tick.
        """
        if self._observation is None:
            raise ContractError("no episode began here; `reset` begins one.")
        now = self._observation.step
        if chunk.step > now:
            raise ContractError(f"a chunk for tick {chunk.step} came at tick {now}: that tick was not sent yet.")
        if not self.running or chunk.step <= self._last_processed:
            # It arrived after the end of the episode, or after a newer one.
            self.dropped_rows += len(chunk.actions)
            return len(chunk.actions)
        try:
            self._require_sendable(chunk)
        except PolicyError as error:
            self._refuse(chunk.step, str(error))
            raise
        if chunk.intervention or (self._chunk is not None and self._chunk.intervention):
            self._plan.clear()  # a person's and a policy's actions are never merged
        else:
            self._delay.add(self._clock.now_ns() - chunk.stamp_ns)
        # A single action is for the tick of its arrival; its stamp says whether it is too old then.
        skipped = self._plan.insert(replace(chunk, step=now) if len(chunk.actions) == 1 else chunk, now)
        self.dropped_rows += skipped
        if skipped < len(chunk.actions):  # no row of a chunk that is wholly late is executed
            self._chunk = chunk
        self.watchdog.accepted()
        return skipped

    def tick(self) -> Tick:
        """Execute one period: command the due action, or hold, or stop. An episode must be running."""
        before = self._observation
        assert before is not None and self.running
        verdict = self._verdict()
        if verdict.mode == "stopped":
            return self._stopped(verdict)
        due = self._due(before.step, verdict)
        allowed = None if due is None else self._allowed(due, before.state)
        released_ns = self._clock.now_ns()
        if due is None or allowed is None:
            tick = self._tick_of(self._held(before), "hold", self._why_held(verdict))
        else:
            tick = self._executed(due, allowed)
        command_ns = tick.result.command_ns or released_ns
        result = replace(tick.result, command_ns=command_ns, observation=self._promised(tick.result.observation))
        tick = replace(tick, result=result)
        self._observation, self._commanded_ns = result.observation, released_ns
        self._listener(Ticked(before, tick.wanted, tick))
        if tick.over:
            self._finish(_outcome(result), "")
            if not self._arm.can_wait:
                self._stop_arm()  # the last action may be a motion, and no further tick ends it
        return tick

    def take_ramp(self) -> list[Tick]:
        """Return the ticks of the ramp to rest since the last call; `tick` returns only the one after them."""
        ramp, self._ramp = self._ramp, []
        return ramp

    def emergency_stop(self, cause: str) -> None:
        """Latch the e-stop; from the next tick on the arm rests, until the watchdog is armed again."""
        self.watchdog.trip(cause)
        self.watchdog.release(cause)  # the cause is momentary, not a button that stays pressed

    def fail(self, error: Exception) -> str:
        """Latch a stop for an exception of the arm or of the code that commands it, as `emergency_stop` does.

        Returns:
            The error as text.
        """
        told = self.faults.add("arm", error)
        self.emergency_stop(f"a failure of the arm: {told}")
        return told

    def end(self, reason: str) -> None:
        """End the running episode as "stopped"; the arm comes to rest and holds."""
        if self.running:
            self._come_to_rest(reason)
            self._finish("stopped", reason)

    def _reset(self, seed: int) -> Observation:
        """Reset the arm and the limits; stop an arm that fails meanwhile."""
        try:
            observation = self._arm.reset(seed)
        except ContractError:
            raise  # it refuses this seed: the arm did not move
        except VlaError as error:
            self._fail_to_begin(error)
            raise
        try:
            self._limits.reset(observation.state)
        except Exception as error:
            told = self._fail_to_begin(error)
            raise WorldError(f"the arm was reset, and its state cannot be used: {told}") from error
        if self.watchdog.stopped_by:
            self._stop_arm()
            raise WorldError(f"the arm was stopped while it was reset: {self.watchdog.stopped_by}.")
        return observation

    def _fail_to_begin(self, error: Exception) -> str:
        told = self.fail(error)
        self._stop_arm()
        return told

    def _command(self, allowed: Vector) -> StepResult:
        """Command an allowed action; what the arm itself cuts from it is noted for the next one's limits."""
        result = self._arm.command(allowed)
        if result.executed is not None:
            self._limits.note(result.executed)
        stages_ms = self._arm.last_stages_ms if isinstance(self._arm, ReportsStages) else {}
        for stage, time_ms in stages_ms.items():
            self.arm_stages.setdefault(stage, RecentTimes()).add(round(time_ms * NS_PER_MS))
        return result

    def _executed(self, due: _Due, allowed: _Allowed) -> Tick:
        """Command what the limits left of the due action."""
        chunk, result = due.chunk, self._command(allowed.action)
        result = replace(result, clamps=(*allowed.clamps, *result.clamps))
        self._last_processed, self._refusal = max(self._last_processed, chunk.step), ""
        return replace(
            self._tick_of(result, "run", ""),
            obs_stamp_ns=chunk.stamp_ns,
            cause_step=chunk.step,
            wanted=due.row,
            intervention=chunk.intervention,
            entropy=chunk.entropy,
            chunk_gap=chunk.chunk_gap,
        )

    def _tick_of(self, result: StepResult, mode: Mode, reason: str) -> Tick:
        """Return a tick that no chunk caused."""
        return Tick(result, mode, reason, self._last_processed, obs_stamp_ns=0, dropped_rows=self.dropped_rows)

    def _held(self, before: Observation) -> StepResult:
        """Brake within the limits, then hold the pose."""
        if self._limits.moving:
            return self._command(self._limits.brake(before.state))
        result = self._arm.hold()
        self._limits.reset(result.observation.state)
        return result

    def _verdict(self) -> Verdict:
        """Return the watchdog's verdict. In lockstep no command is late, but a stop still counts."""
        if not self._lockstep:
            return self.watchdog.check()
        stopped_by = self.watchdog.stopped_by
        return Verdict("stopped", stopped_by) if stopped_by else Verdict("run")

    def _stopped(self, verdict: Verdict) -> Tick:
        self._come_to_rest(verdict.reason)
        before = self._observation
        assert before is not None
        nothing = StepResult(before, None, False, False, False)
        reason = "; ".join(filter(None, (verdict.reason, self.unstopped)))
        tick = self._tick_of(nothing, "stopped", reason)
        self._finish("stopped", reason)
        return tick

    def _come_to_rest(self, reason: str) -> None:
        """Brake at the control rate, then hold the pose. No request is answered meanwhile."""
        if not isinstance(self._arm, Streamed):  # an arm with set points ramps down in `stop`
            try:
                self._ramp_down(reason)
            except Exception as error:  # after a failure, only the arm's own `stop` is left
                self.fail(error)
        self._stop_arm()

    def stop_again(self) -> None:
        """Try to stop the arm again, between episodes, if it did not execute its last stop."""
        if self.unstopped and not self.running:
            self._stop_arm()

    def _stop_arm(self) -> None:
        """Call the arm's own stop; `unstopped` says that it failed until one succeeds."""
        for _ in range(STOP_TRIES):
            try:
                self._arm.stop()
                self.unstopped = ""
                return
            except VlaError as error:
                self.unstopped = f"the arm did not stop: {self.fail(error)} Use its own switch"

    def _ramp_down(self, reason: str) -> None:
        rate_hz = self._arm.embodiment.rate_hz
        for _ in range(max(round(MAX_BRAKE_S * rate_hz), 1)):
            if not self._limits.moving:
                return
            self._await_next(round(NS_PER_S / rate_hz))
            self._brake(reason)

    def _await_next(self, period_ns: int) -> None:
        """Wait until a period after the last command, which is still being executed; earlier would brake too hard."""
        now_ns = self._clock.now_ns()
        if not self._lockstep:
            # At most a period, even if the clock went back.
            self._clock.sleep_until_ns(min(self._commanded_ns, now_ns) + period_ns)

    def _brake(self, reason: str) -> None:
        """Send one command of the ramp to rest."""
        before = self._observation
        assert before is not None
        released_ns = self._clock.now_ns()
        result = self._command(self._limits.brake(before.state))
        result = replace(result, command_ns=result.command_ns or released_ns)
        self._observation, self._commanded_ns = result.observation, released_ns
        tick = self._tick_of(result, "hold", f"braking: {reason}")
        self._ramp.append(tick)
        self._listener(Ticked(before, None, tick))

    def _promised(self, observation: Observation) -> Observation:
        """Add the actions that will be executed before an answer can arrive, for policies that use them."""
        if self._execution.splice != "rtc":
            return observation
        steps = self._delay.steps(self._arm.embodiment.rate_hz)
        committed = self._plan.commit(observation.step, steps)
        return replace(observation, committed=committed, planned=self._plan.planned(observation.step + len(committed)))

    def _finish(self, outcome: str, reason: str) -> None:
        assert self._observation is not None
        self.running, self._chunk = False, None
        self._listener(EpisodeOver(self._observation, outcome, reason))

    def _require_sendable(self, chunk: ActionChunk) -> None:
        if not 1 <= len(chunk.actions) <= MAX_ROWS:
            raise PolicyError(f"a chunk holds {len(chunk.actions)} actions; 1 to {MAX_ROWS} are allowed.")
        ahead_s = (chunk.stamp_ns - self._clock.now_ns()) / NS_PER_S
        if ahead_s > 0:
            raise PolicyError(
                f"the frames that caused an action were captured {ahead_s:.3g} s from now: the clock went back, or the "
                "stamp is not from this bridge. The age of the action is unknown."
            )
        for row in chunk.actions:
            require_action(row, self._arm.embodiment.action, PolicyError)

    def _due(self, step: int, verdict: Verdict) -> _Due | None:
        """Return the action of this tick; None if there is none."""
        if verdict.mode != "run" or self._chunk is None:
            self._plan.clear()
            return None
        row = self._plan.pop(step)
        return None if row is None else _Due(self._chunk, row)

    def _allowed(self, due: _Due, state: Vector) -> _Allowed | None:
        """Return the action within the limits; None if it is too old or may not be sent."""
        try:
            self._require_young(due.chunk)
            return _Allowed(*self._limits.check(due.row, state))
        except LimitStopError as error:
            self._refuse(due.chunk.step, str(error))
            self.emergency_stop(f"a limit: {error}")
        except PolicyError as error:
            self._refuse(due.chunk.step, str(error))
        return None

    def _require_young(self, chunk: ActionChunk) -> None:
        """Raise PolicyError for an action that is too old. In lockstep the world waits, so age does not count."""
        horizon_steps = 0 if self._observation is None else max(self._observation.step - chunk.step, 0)
        planned_s = 0.0 if len(chunk.actions) == 1 else horizon_steps / self._arm.embodiment.rate_hz
        age_s = (self._clock.now_ns() - chunk.stamp_ns) / NS_PER_S - planned_s
        if not self._lockstep and age_s > self._execution.max_age_s:
            self.dropped_rows += 1
            raise PolicyError(
                f"an action was {age_s * 1000:.0f} ms late, {self._execution.max_age_s * 1000:.0f} ms are allowed"
                f"{self._stopped_cameras()}"
            )

    def _stopped_cameras(self) -> str:
        """Return a phrase with the cameras that stopped, which may be why an action is old."""
        now_ns, limit_ns = self._clock.now_ns(), self._execution.max_age_s * NS_PER_S
        old = {n: now_ns - at for n, at in self._arm.camera_stamps_ns.items() if now_ns - at > limit_ns}
        return "".join(f"; camera '{name}' gave its last frame {age // NS_PER_MS} ms ago" for name, age in old.items())

    def _refuse(self, step: int, why: str) -> None:
        self.refused += 1
        self._last_processed = max(self._last_processed, step)
        self._refusal = why

    def _why_held(self, verdict: Verdict) -> str:
        return self._refusal or verdict.reason or "no action is due yet"


def _outcome(result: StepResult) -> str:
    if result.terminated:
        return "success" if result.success else "failure"
    return "timeout"
