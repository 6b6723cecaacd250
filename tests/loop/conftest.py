"""A world and a policy whose time and fate the tests decide. No simulator, no model, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult, Vector

SPACE = ActionSpace("eef_delta", "base", (Dim("dx", "m", -0.05, 0.05), Dim("gripper", "1", 0.0, 1.0)))
EMBODIMENT = Embodiment("toy", SPACE, (Dim("x", "m", -1, 1),), (CameraSpec("front", 32, 48),), rate_hz=10.0)

RENDER_MS, TRANSPORT_MS, SEND_MS, WORLD_MS = 16, 2, 1, 30


@dataclass
class FakeWorld:
    """Succeeds at step `succeed_at`, or ends at the horizon; its time is the fake clock's."""

    clock: FakeClock
    succeed_at: int | None = 3
    horizon: int = 5
    fail_at: int | None = None
    on_step: Callable[[int], None] = lambda step: None
    stages_known: bool = False
    calls: list[str] = field(default_factory=list[str])
    actions: list[Vector] = field(default_factory=list[Vector])
    embodiment: Embodiment = EMBODIMENT
    instruction: str = "lift the <red> cube"
    seed: int = 0
    at_step: int = 0

    def reset(self, seed: int) -> Observation:
        self.calls.append(f"world.reset({seed})")
        self.seed, self.at_step = seed, 0
        return self._observe()

    def step(self, action: Vector) -> StepResult:
        self.calls.append("world.step")
        self.clock.advance_ns(SEND_MS * NS_PER_MS)
        command_ns = self.clock.now_ns()
        self.on_step(self.at_step)
        self.clock.advance_ns(WORLD_MS * NS_PER_MS)
        self.actions.append(action)
        self.at_step += 1
        success = self.succeed_at is not None and self.at_step >= self.succeed_at
        return StepResult(
            observation=self._observe(),
            executed=action,
            success=success,
            terminated=success or self.at_step == self.fail_at,
            truncated=self.at_step >= self.horizon,
            command_ns=command_ns,
        )

    def close(self) -> None:
        self.calls.append("world.close")

    def _observe(self) -> Observation:
        stamp_ns = self.clock.now_ns()
        self.clock.advance_ns((RENDER_MS + TRANSPORT_MS) * NS_PER_MS)
        shade = (self.seed * 7 + self.at_step * 20) % 256
        image = np.full((32, 48, 3), shade, dtype=np.uint8)
        return Observation({"front": image}, np.array([0.1 * self.at_step]), self.instruction, stamp_ns, self.at_step)


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


class RangeGuard:
    """Clips to the action space."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        sent = np.clip(action, SPACE.low, SPACE.high)
        names = zip(SPACE.names, action, sent, strict=True)
        return sent, tuple(Clamp(n, "range", float(w), float(a)) for n, w, a in names if w != a)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start_ns=1_000_000)


@pytest.fixture
def guard() -> RangeGuard:
    return RangeGuard()


@pytest.fixture
def make_world(clock: FakeClock) -> Callable[..., FakeWorld]:
    return lambda reporting=False, **options: (ReportingWorld if reporting else FakeWorld)(clock, **options)


@pytest.fixture
def make_policy(clock: FakeClock) -> Callable[..., FakePolicy]:
    return lambda **options: FakePolicy(clock, **options)
