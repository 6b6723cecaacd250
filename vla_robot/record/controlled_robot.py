"""One interface to the arm that a person drives: a world that waits for each action, or a robot with its own clock.

    waiting    action -> step, then the rest of the period             no action: no step, nothing is recorded
    live       action -> send, then the robot's next tick              no action: the robot is told to stay where it is

A tick of a live robot is recorded with the action that it executed, whenever that was sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, VlaError, WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.ports import StoppableRobot, World
from vla_robot.core.robot import Tick

PATIENCE_PERIODS = 2.0
"""Longest wait for a tick, in control periods, so that the person is asked once for each tick."""
SILENCE_S = 5.0
"""After this long without a tick the connection to the robot counts as lost; its bridge holds the arm."""

STILL = 1e-9
"""Largest step in metres or radians that counts as rest."""


@dataclass(frozen=True)
class Transition:
    """One control step to be recorded.

    Attributes:
        before: the observation before the step.
        action: (D,) the person's action, in the units of the action space.
        result: the executed action, and the observation after the step.
        after_gap: whether steps are missing before this one.
    """

    before: Observation
    action: Vector
    result: StepResult
    after_gap: bool = False


@dataclass(frozen=True)
class Advance:
    """The result of one control period, or of all periods since the last one.

    Attributes:
        observation: the newest observation.
        rows: steps to be recorded, in order; none when the arm rested.
        over: whether the world ended the episode.
    """

    observation: Observation
    rows: tuple[Transition, ...] = ()
    over: bool = False


class Controllable(Protocol):
    """The port of an arm that a person drives."""

    @property
    def embodiment(self) -> Embodiment:
        """The arm's embodiment: meaning of its actions, state and cameras."""
        ...

    @property
    def missed(self) -> int:
        """Number of this episode's periods that were late by this computer's clock, or whose frames never came."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """Numbers to store with this episode, by name."""
        ...

    def ready(self, seed: int) -> Observation:
        """Return an observation to show before the episode begins. A real robot does not move."""
        ...

    def begin(self, seed: int) -> Observation:
        """Begin the episode. Return its first observation."""
        ...

    def advance(self, observation: Observation, action: Vector | None) -> Advance:
        """Execute an action in one control period.

        Args:
            observation: the newest observation.
            action: (D,) the person's action; None lets the arm rest.

        Raises:
            WorldError: the arm was stopped by another client, or fails.
            TransportError: no tick came for SILENCE_S.
        """
        ...

    def pace(self) -> None:
        """Wait for the end of the period."""
        ...

    def stop(self) -> None:
        """Apply the person's e-stop: the arm does not move until `begin`."""
        ...

    def end(self) -> None:
        """End the episode: the arm holds its pose. Raises no error."""
        ...


class WaitingWorld:
    """A world that waits between two steps; the clock paces the steps at the world's rate."""

    def __init__(self, world: World, clock: Clock | None = None) -> None:
        self._world, self.embodiment = world, world.embodiment
        self._clock = clock or MonotonicClock()
        self._ready: Observation | None = None
        self._ticker = self._fresh_ticker()

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
        return Ticker(self._clock, round(NS_PER_S / self.embodiment.rate_hz))


class LiveRobot:
    """A robot behind a bridge. Its arm moves to the start pose when the person starts an episode, and not before."""

    def __init__(self, robot: StoppableRobot, clock: Clock | None = None) -> None:
        self._robot, self.embodiment = robot, robot.embodiment
        self._clock = clock or MonotonicClock()
        self._newest: Observation | None = None
        self._running = self._stopped_here = False
        self._place: Vector | None = None
        self._executed: Vector | None = None
        self._sent: dict[int, Vector | None] = {}
        self._heard_ns = 0
        self._is_gap = False
        self._dropped = self._held = self._stayed = self._late = 0

    @property
    def missed(self) -> int:
        return self._dropped

    @property
    def facts(self) -> Mapping[str, float]:
        """Counts of this episode.

        dropped_frames: steps that are missing, see `Transition.after_gap`. held_ticks: ticks for which the bridge had
        no action. rested_ticks: ticks without an action of the person, which are not recorded. late_actions: actions
        that arrived after their tick.
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
        self._running, self._place, self._executed, self._sent = True, None, None, {}
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
                f"the bridge stopped the arm: {ticks[-1].reason}. Find out why; then give the same command with --arm."
            )
        rows: list[Transition] = []
        for tick in ticks:
            rows += self._rows(observation, tick)
            observation = replace(tick.result.observation, instruction=observation.instruction)
        self._newest = ticks[-1].result.observation
        return Advance(self._newest, tuple(rows), ticks[-1].over)

    def pace(self) -> None:
        """Wait for a period when no episode runs; while one runs, the robot's ticks give the pace."""
        if not self._running:
            self._clock.sleep_until_ns(self._clock.now_ns() + round(NS_PER_S / self.embodiment.rate_hz))

    def stop(self) -> None:
        self._robot.stop("the person who drives")
        self._stopped_here, self._running = True, False

    def end(self) -> None:
        if self._running:
            self._running = False
            with contextlib.suppress(VlaError):  # without this message the robot's watchdog holds it, only later
                self._robot.end()

    def _send(self, before: Observation, action: Vector | None) -> None:
        """Send the action, or "stay" when there is none: the bridge takes silence for a lost controller."""
        self._sent[before.step] = action
        if action is not None:
            self._stand(action, self.embodiment.action.is_grip)
        told = self._stay() if action is None else action
        if told is not None:  # else the first tick tells where the arm and its gripper are
            self._robot.send(ActionChunk(told[None], before.stamp_ns, before.step))

    def _rows(self, before: Observation, tick: Tick) -> list[Transition]:
        """Return the row of one tick; no row for a tick that is not recorded."""
        self._late = tick.dropped_rows
        self._held += tick.mode == "hold"
        if tick.result.observation.step > before.step + 1:
            # The observation before this tick was lost, too, so this tick cannot be recorded either.
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
        """Return the person's action of this tick, or "stay" while the arm comes to rest; None while it rests."""
        executed = tick.result.executed
        if executed is None:  # a dry run: no action was executed
            return None
        is_grip = self.embodiment.action.is_grip
        moves = self._moves(executed)
        self._executed = executed
        self._stand(executed, ~is_grip)
        action = self._sent.get(tick.cause_step) if tick.mode == "run" else None
        if action is not None:
            return action
        if moves:
            stay = self._stay()
            return stay if stay is None else np.where(is_grip, executed, stay)
        self._stayed += 1
        return None

    def _moves(self, executed: Vector) -> bool:
        """Return whether an executed action moved the arm; its grip does not count."""
        space = self.embodiment.action
        rest = executed if self._executed is None else self._executed
        motion = np.where(space.is_step, executed, executed - rest)[~space.is_grip]
        return bool(np.abs(motion).max(initial=0.0) > STILL)

    def _stand(self, action: Vector, which: NDArray[np.bool_]) -> None:
        """Note some numbers (D,) of an action as where the arm stays."""
        self._place = action if self._place is None else np.where(which, action, self._place)

    def _stay(self) -> Vector | None:
        """Return the action (D,) that keeps pose and grip; None before the first action of person or arm."""
        return None if self._place is None else np.where(self.embodiment.action.is_step, 0.0, self._place)

    def _require_alive(self) -> None:
        silent_s = (self._clock.now_ns() - self._heard_ns) / NS_PER_S
        if silent_s > SILENCE_S:
            raise TransportError(
                f"the robot has been silent for {silent_s:.1f} s; its bridge holds it meanwhile. "
                "Check the network and the bridge, then start again."
            )


def _nothing_yet(embodiment: Embodiment, instruction: str) -> Observation:
    """Return an observation to show before the first episode: black frames and a state of zeros."""
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in embodiment.cameras}
    return Observation(images, np.zeros(len(embodiment.state)), instruction, stamp_ns=0, step=0)
