"""A world and a policy whose time and fate the tests decide. No simulator, no model, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.safety.limits import RangeGuard
from vla_robot.testing import ToyWorld, toy_embodiment

EMBODIMENT = toy_embodiment(height=32, width=48)
SPACE = EMBODIMENT.action

RENDER_MS, TRANSPORT_MS, SEND_MS, WORLD_MS = 16, 2, 1, 30


@dataclass
class FakeWorld(ToyWorld):
    """Succeeds at step `succeed_at`, or ends at the horizon, and keeps its calls; its time is the fake clock's."""

    embodiment: Embodiment = EMBODIMENT
    instruction: str = "lift the <red> cube"
    succeed_at: int | None = 3
    horizon: int | None = 5
    send_ms: float = SEND_MS
    step_ms: float = WORLD_MS
    render_ms: float = RENDER_MS + TRANSPORT_MS
    calls: list[str] = field(default_factory=list[str])

    def reset(self, seed: int) -> Observation:
        self.calls.append(f"world.reset({seed})")
        return super().reset(seed)

    def step(self, action: Vector) -> StepResult:
        self.calls.append("world.step")
        return super().step(action)

    def close(self) -> None:
        self.calls.append("world.close")


class ReportingWorld(FakeWorld):
    """Also says where its time went, as a world behind a socket does."""

    last_stages_ms: ClassVar = {"render": float(RENDER_MS), "world_step": float(WORLD_MS)}


@dataclass
class FakePolicy:
    """Answers after `think_ms` with a chunk of `rows` actions; `fails_at` raises `error` instead."""

    clock: FakeClock
    rows: int = 1
    think_ms: int = 20
    stages_ms: dict[str, float] = field(default_factory=dict[str, float])
    error: Exception | None = None
    fails_at: int = 0
    late_by: int = 0
    calls: list[str] = field(default_factory=list[str])
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def reset(self, seed: int) -> None:
        self.calls.append(f"policy.reset({seed})")
        self.rng = np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.calls.append("policy.act")
        (observation,) = observations
        if self.error is not None and observation.step >= self.fails_at:
            raise self.error
        self.clock.advance_ns(self.think_ms * NS_PER_MS)
        actions = self.rng.uniform(-0.1, 0.1, (self.rows, len(SPACE)))
        step = observation.step - self.late_by
        return [ActionChunk(actions, observation.stamp_ns, step, self.stages_ms)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start_ns=1_000_000)


@pytest.fixture
def guard() -> RangeGuard:
    return RangeGuard(SPACE)


@pytest.fixture
def make_world(clock: FakeClock) -> Callable[..., FakeWorld]:
    return lambda reporting=False, **options: (ReportingWorld if reporting else FakeWorld)(clock, **options)


@pytest.fixture
def make_policy(clock: FakeClock) -> Callable[..., FakePolicy]:
    return lambda **options: FakePolicy(clock, **options)
