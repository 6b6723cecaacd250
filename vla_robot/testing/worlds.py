"""A world without physics, for tests of code that uses worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vla_robot.core.clock import NS_PER_MS, Clock, FakeClock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.seeds import require_seed
from vla_robot.safety.limits import require_action
from vla_robot.testing.embodiments import grey_frames, toy_embodiment


@dataclass
class ToyWorld:
    """A point on a line; each step adds the action's first number to x. A `VisibleWorld` that `StepsWithoutFrames`.

    Attributes:
        clock: clock of the observations. A FakeClock advances by the durations of each step's parts.
        embodiment: the first number of its state is x; the others stay in the middle of their ranges.
        instruction: the task.
        start: seed -> x at reset.
        goal: x from which on the task is done and the episode ends; None for never.
        succeed_at: step from which on the task is done and the episode ends; None for never.
        fail_at: step at which the episode ends as a failure; None for never.
        horizon: step at which it is truncated; None for never.
        shade: world -> grey of the frames, 0 to 255.
        truth: world -> the observation's `privileged`.
        on_step: called during each step with the number of steps before it.
        bounded: whether actions outside of the action space are refused, as by simulators.
        send_ms, step_ms, render_ms: durations on a FakeClock before the command, after it, and for the frames [ms].
        seeds: seed of every reset.
        actions: action of every step since the world was built.
        without_frames: number, since reset, of each step whose frames were left out.
        x, at_step: the point's position, and the number of steps since reset.
    """

    clock: Clock = field(default_factory=MonotonicClock)
    embodiment: Embodiment = field(default_factory=toy_embodiment)
    instruction: str = "go right"
    start: Callable[[int], float] = lambda seed: 0.0
    goal: float | None = None
    succeed_at: int | None = None
    fail_at: int | None = None
    horizon: int | None = None
    shade: Callable[[ToyWorld], int] = lambda world: world.seed * 7 + world.at_step * 20
    truth: Callable[[ToyWorld], Mapping[str, Vector]] = lambda world: {}
    on_step: Callable[[int], None] = lambda step: None
    bounded: bool = True
    send_ms: float = 1.0
    step_ms: float = 30.0
    render_ms: float = 16.0
    seeds: list[int] = field(default_factory=list[int])
    actions: list[Vector] = field(default_factory=list[Vector])
    without_frames: list[int] = field(default_factory=list[int])
    closed: bool = False
    seed: int = 0
    x: float = 0.0
    at_step: int = 0

    def reset(self, seed: int) -> Observation:
        self._require_open()
        self.seed = require_seed(seed)
        self.seeds.append(seed)
        self.x, self.at_step = self.start(seed), 0
        return self._observe()

    def step(self, action: Vector) -> StepResult:
        self._require_open()
        wanted = self._checked(action)
        self._pass_ms(self.send_ms)
        command_ns = self.clock.now_ns()
        self.on_step(self.at_step)
        self._pass_ms(self.step_ms)
        self.actions.append(wanted)
        self.x, self.at_step = self.x + float(wanted[0]), self.at_step + 1
        success = self._is_done()
        return StepResult(
            observation=self._observe(),
            executed=wanted.copy(),
            success=success,
            terminated=success or self.at_step == self.fail_at,
            truncated=self.horizon is not None and self.at_step >= self.horizon,
            command_ns=command_ns,
        )

    def step_without_frames(self, action: Vector) -> StepResult:
        result = self.step(action)
        if result.terminated or result.truncated:
            return result
        self.without_frames.append(self.at_step)
        return replace(result, observation=replace(result.observation, images={}))

    def look(self) -> Observation:
        self._require_open()
        return self._observe()

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> Observation:
        stamp_ns = self.clock.now_ns()
        self._pass_ms(self.render_ms)
        state = np.array([(dim.low + dim.high) / 2 for dim in self.embodiment.state])
        state[:1] = self.x
        frames = grey_frames(self.embodiment, self.shade(self))
        return Observation(frames, state, self.instruction, stamp_ns, self.at_step, self.truth(self))

    def _is_done(self) -> bool:
        """Return whether the task is done."""
        by_place = self.goal is not None and self.x >= self.goal
        return by_place or (self.succeed_at is not None and self.at_step >= self.succeed_at)

    def _checked(self, action: Vector) -> Vector:
        wanted = require_action(action, self.embodiment.action).copy()
        for dim, value in zip(self.embodiment.action.dims, wanted, strict=True):
            if self.bounded and not dim.low <= value <= dim.high:
                raise ContractError(f"{dim.name} is {value:g} {dim.unit}, allowed is {dim.low:g} to {dim.high:g}.")
        return wanted

    def _pass_ms(self, duration_ms: float) -> None:
        if isinstance(self.clock, FakeClock):
            self.clock.advance_ns(round(duration_ms * NS_PER_MS))

    def _require_open(self) -> None:
        if self.closed:
            raise WorldError("this world was closed.")
