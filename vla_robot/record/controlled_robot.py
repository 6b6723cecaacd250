"""What a person drives: a world that waits for each action, or a robot that ticks on its own clock.

    waiting    action -> step, then the rest of the period             no action: nothing happens, nothing is recorded
    live       action -> send, then the robot's next tick              no action: the robot is told to stay where it is

A tick of a live robot that plays an earlier action is recorded with that action, whenever it was sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, VlaError, WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.ports import StoppableRobot, World
from vla_robot.core.robot import Tick

PATIENCE_PERIODS = 2.0
"""A tick is waited for as long as this, so that the person is asked once for each."""
SILENCE_S = 5.0
"""A robot that does not tick for this long is lost; its bridge holds it."""

STILL = 1e-9
"""Metres or radians of a step below which the arm rests."""


@dataclass(frozen=True)
class Transition:
    """One control step to be recorded.

    Attributes:
        before: what was seen before it.
        action: (D,) what the person asked for.
        result: what was really done, and what came of it.
        after_gap: steps are missing before this one: it follows no other row.
    """

    before: Observation
    action: Vector
    result: StepResult
    after_gap: bool = False


@dataclass(frozen=True)
class Advance:
    """One period, or all that passed since the last one.

    Attributes:
        observation: the newest.
        rows: to be recorded, in order; none when the arm rested.
        over: the world ended the episode.
    """

    observation: Observation
    rows: tuple[Transition, ...] = ()
    over: bool = False


class Controllable(Protocol):
    """An arm in a person's hands."""

    @property
    def embodiment(self) -> Embodiment:
        """What actions, state and cameras mean here."""
        ...

    @property
    def missed(self) -> int:
        """Periods of this episode that came too late: by this computer's clock, or frames that never came."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """What shall be noted of this episode."""
        ...

    def ready(self, seed: int) -> Observation:
        """What a person sees before the episode begins. No real robot moves."""
        ...

    def begin(self, seed: int) -> Observation:
        """Begin the episode that is ready."""
        ...

    def advance(self, observation: Observation, action: Vector | None) -> Advance:
        """Let one period pass.

        Args:
            observation: the newest.
            action: (D,) what the person asks for; None lets the arm rest.

        Raises:
            WorldError: the arm was stopped by another client, or fails.
            TransportError: the robot is silent.
        """
        ...

    def pace(self) -> None:
        """Wait for what is left of the period."""
        ...

    def stop(self) -> None:
        """The person pressed the e-stop: nothing moves until `begin`."""
        ...

    def end(self) -> None:
        """The episode is over: the arm holds its pose. Never raises."""
        ...


class WaitingWorld:
    """A world that stands still between two steps; the clock paces them at its rate."""

    def __init__(self, world: World, clock: Clock | None = None) -> None:
        self._world = world
        self._clock = clock or MonotonicClock()
        self._ready: Observation | None = None
        self._ticker = self._fresh_ticker()

    @property
    def embodiment(self) -> Embodiment:
        return self._world.embodiment

    @property
    def missed(self) -> int:
        return self._ticker.missed

    @property
    def facts(self) -> Mapping[str, float]:
        return {"late_ticks": self._ticker.missed}

    def ready(self, seed: int) -> Observation:
        self._ready = self._world.reset(seed)
        return self._ready

    def begin(self, seed: int) -> Observation:
        observation, self._ready = self._ready or self._world.reset(seed), None
        self._ticker = self._fresh_ticker()
        return observation

    def advance(self, observation: Observation, action: Vector | None) -> Advance:
        if action is None:
            return Advance(observation)
        result = self._world.step(action)
        row = Transition(observation, action, result)
        return Advance(result.observation, (row,), result.terminated or result.truncated)

    def pace(self) -> None:
        self._ticker.wait()

    def stop(self) -> None: ...

    def end(self) -> None: ...

    def _fresh_ticker(self) -> Ticker:
        return Ticker(self._clock, round(NS_PER_S / self._world.embodiment.rate_hz))


class LiveRobot:
    """A robot behind a bridge. Its arm goes to where episodes begin when the person starts one, and not before."""

    def __init__(self, robot: StoppableRobot, clock: Clock | None = None) -> None:
        self._robot = robot
        self._clock = clock or MonotonicClock()
        self._newest: Observation | None = None
        self._running = self._stopped_here = False
        self._grip: float | None = None
        self._sent: dict[int, Vector | None] = {}
        self._heard_ns = 0
        self._is_gap = False
        self._dropped = self._held = self._stayed = self._late = 0

    @property
    def embodiment(self) -> Embodiment:
        return self._robot.embodiment

    @property
    def missed(self) -> int:
        return self._dropped

    @property
    def facts(self) -> Mapping[str, float]:
        """dropped_frames: steps that are missing, see `Transition.after_gap`. held_ticks: in which the bridge had no
        action. rested_ticks: in which the person asked for nothing, and which are not recorded. late_actions: after
        their tick.
        """
        return {
            "dropped_frames": self._dropped,
            "held_ticks": self._held,
            "rested_ticks": self._stayed,
            "late_actions": self._late,
        }

    def ready(self, seed: int) -> Observation:
        return replace(self._newest or _nothing_yet(self.embodiment, self._robot.instruction), step=0)

    def begin(self, seed: int) -> Observation:
        if self._stopped_here:
            self._robot.arm()
            self._stopped_here = False
        self._newest = self._robot.begin(seed)
        self._running, self._grip, self._sent = True, None, {}
        self._is_gap = False
        self._dropped = self._held = self._stayed = self._late = 0
        self._heard_ns = self._clock.now_ns()
        return self._newest

    def advance(self, observation: Observation, action: Vector | None) -> Advance:
        if observation.step not in self._sent:
            self._send(observation, action)
        ticks = self._robot.ticks(timeout_s=PATIENCE_PERIODS / self.embodiment.rate_hz)
        if not ticks:
            self._require_alive()
            return Advance(observation)
        self._heard_ns = self._clock.now_ns()
        self._running = not ticks[-1].over
        if ticks[-1].mode == "stopped":
            raise WorldError(
                f"the bridge stopped the arm: {ticks[-1].reason}. Look why; then the same command with --arm."
            )
        rows: list[Transition] = []
        for tick in ticks:
            rows += self._rows(observation, tick)
            observation = replace(tick.result.observation, instruction=observation.instruction)
        self._newest = ticks[-1].result.observation
        return Advance(self._newest, tuple(rows), ticks[-1].over)

    def pace(self) -> None:
        """The robot's ticks do, while it is driven."""
        if not self._running:
            self._clock.sleep_until_ns(self._clock.now_ns() + round(NS_PER_S / self.embodiment.rate_hz))

    def stop(self) -> None:
        self._robot.stop("the person who drives")
        self._stopped_here, self._running = True, False

    def end(self) -> None:
        if self._running:
            self._running = False
            with contextlib.suppress(VlaError):  # the robot holds without being told, only later
                self._robot.end()

    def _send(self, before: Observation, action: Vector | None) -> None:
        """An arm that is not moved is told to stay: to its bridge, silence is a controller that is lost."""
        self._sent[before.step] = action
        if action is not None:
            self._grip = float(action[-1])
        elif self._grip is None:
            return  # the first tick tells how the gripper begins
        told = self._stay(self._grip) if action is None else action
        self._robot.send(ActionChunk(told[None], before.stamp_ns, before.step))

    def _rows(self, before: Observation, tick: Tick) -> list[Transition]:
        """The row of one tick, if it is to be recorded."""
        self._late = tick.dropped_rows
        self._held += tick.mode == "hold"
        if tick.result.observation.step > before.step + 1:
            # What was seen right before this tick was lost, too: a gap, which no row is joined across.
            self._dropped += tick.result.observation.step - before.step
            self._is_gap = True
            return []
        action = self._recorded_action(tick)
        if action is None:
            return []
        row = Transition(before, action, tick.result, self._is_gap)
        self._is_gap = False
        return [row]

    def _recorded_action(self, tick: Tick) -> Vector | None:
        """What the person asked for in this tick, or "stay" while the arm comes to rest; None while it rests."""
        executed = tick.result.executed
        if executed is None:  # a dry run: nothing was done that could be learnt from
            return None
        grip = float(executed[-1])
        self._grip = grip if self._grip is None else self._grip
        action = self._sent.get(tick.cause_step) if tick.mode == "run" else None
        if action is not None:
            return action
        if np.abs(executed[:-1]).max(initial=0.0) > STILL:
            return self._stay(grip)
        self._stayed += 1
        return None

    def _stay(self, grip: float) -> Vector:
        return np.append(np.zeros(len(self.embodiment.action) - 1), grip)

    def _require_alive(self) -> None:
        silent_s = (self._clock.now_ns() - self._heard_ns) / NS_PER_S
        if silent_s > SILENCE_S:
            raise TransportError(f"the robot has been silent for {silent_s:.1f} s. Its bridge holds it meanwhile.")


def _nothing_yet(embodiment: Embodiment, instruction: str) -> Observation:
    """What is shown before the first episode: black frames."""
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in embodiment.cameras}
    return Observation(images, np.zeros(len(embodiment.state)), instruction, stamp_ns=0, step=0)
