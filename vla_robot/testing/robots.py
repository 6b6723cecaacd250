"""A robot with a clock of its own, for tests of code that uses robots: no thread, socket or wait."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation, StepResult
from vla_robot.core.robot import Mode, Tick
from vla_robot.testing.embodiments import toy_embodiment, toy_observation


@dataclass
class ToyRobot:
    """A `StoppableRobot` that plays the first action of the newest chunk `delay` ticks after it came, or holds.

    A call of `ticks` with a timeout is one tick; `slow_by` more follow at each call, as for a slow controller.

    Attributes:
        clock: its clock, which advances by one period per tick.
        embodiment: embodiment of the arm.
        instruction: the task.
        delay: ticks between a chunk's arrival and its action.
        lost: steps whose ticks never arrive.
        silent: no tick arrives, and the timeout passes.
        slow_by: additional ticks at each call.
        trips_at: step at which its bridge stops the arm.
        horizon: step at which an episode is truncated.
        grip: opening of the gripper, 0 closed to 1 open.
        log: calls of begin, end, stop and arm, in words.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    embodiment: Embodiment = field(default_factory=toy_embodiment)
    instruction: str = "go right"
    delay: int = 0
    lost: tuple[int, ...] = ()
    silent: bool = False
    slow_by: int = 0
    trips_at: int | None = None
    horizon: int = 1000
    grip: float = 1.0
    log: list[str] = field(default_factory=list[str])
    step: int = 0
    x: float = 0.0
    running: bool = False
    stopped: str = ""
    _queue: list[tuple[int, ActionChunk]] = field(default_factory=list[tuple[int, ActionChunk]])
    _newest: int = -1

    def begin(self, seed: int) -> Observation:
        assert not self.stopped, f"the robot was stopped by {self.stopped} and must be armed before an episode begins"
        self.log.append(f"begin {seed}")
        self.step, self.x, self._newest, self._queue, self.running = 0, 0.0, -1, [], True
        return self._look()

    def send(self, chunk: ActionChunk) -> None:
        assert self.running, "a chunk was sent while no episode runs"
        self._queue.append((self.step + self.delay, chunk))

    def ticks(self, timeout_s: float) -> list[Tick]:
        if self.silent or not self.running:
            self.clock.advance_ns(round(timeout_s * NS_PER_S))
            return []
        if timeout_s <= 0:
            return []
        ticks = [self._tick() for _ in range(self.slow_by + 1)]
        while ticks[-1].result.observation.step in self.lost:
            ticks.append(self._tick())
        return [tick for tick in ticks if tick.result.observation.step not in self.lost]

    def end(self) -> None:
        self.log.append("end")
        self.running = False

    def stop(self, reason: str) -> None:
        self.log.append("stop")
        self.stopped, self.running = reason, False

    def arm(self) -> None:
        self.log.append("arm")
        self.stopped = ""

    def _tick(self) -> Tick:
        self.clock.advance_ns(round(NS_PER_S / self.embodiment.rate_hz))
        due = [chunk for at, chunk in self._queue if at <= self.step]
        self._queue = [(at, chunk) for at, chunk in self._queue if at > self.step]
        chunk = due[-1] if due else None
        rest = np.append(np.zeros(len(self.embodiment.action) - 1), self.grip)
        action = rest if chunk is None else chunk.actions[0]
        self.grip = float(action[-1])
        self.x, self.step = self.x + float(action[0]), self.step + 1
        self._newest = self._newest if chunk is None else chunk.step
        mode: Mode = "hold" if chunk is None else "run"
        reason = "no action came" if chunk is None else ""
        if self.step == self.trips_at:
            mode, reason, self.running = "stopped", "a finger", False
        result = StepResult(self._look(), action, False, False, self.step >= self.horizon)
        cause = (-1, 0) if chunk is None else (chunk.step, chunk.stamp_ns)
        return Tick(result, mode, reason, self._newest, cause[1], 0, cause_step=cause[0])

    def _look(self) -> Observation:
        stamp_ns = self.clock.now_ns()
        return toy_observation(self.embodiment, self.step, x=self.x, instruction=self.instruction, stamp_ns=stamp_ns)
