"""An arm without motors, for tests of code that drives arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_robot.core.clock import Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.testing.contract import rest_action
from vla_robot.testing.embodiments import toy_embodiment, toy_observation


@dataclass
class ToyArm:
    """An arm at x, the sum of the first numbers of its commands. It logs each call with its time.

    Attributes:
        clock: clock of its observations and its log.
        embodiment: the first number of its state is x; the others stay in the middle of their ranges.
        instruction: the task.
        can_wait: whether its time stops between commands.
        horizon: step at which an episode is truncated; None for never.
        succeeds: whether each step is a success.
        raises: name of a method -> exception that it raises, after the call was logged.
        commands: (stamp [ns], action) of each command; `hold` and `look` are none.
        resets, holds, looks, stops: stamps of those calls [ns].
        x, step: its position, and the number of ticks since reset.
        stamp_ns: stamp of the newest frames.
    """

    clock: Clock = field(default_factory=MonotonicClock)
    embodiment: Embodiment = field(default_factory=toy_embodiment)
    instruction: str = "lift the cube"
    can_wait: bool = True
    horizon: int | None = None
    succeeds: bool = False
    raises: dict[str, BaseException] = field(default_factory=dict[str, BaseException])
    commands: list[tuple[int, Vector]] = field(default_factory=list[tuple[int, Vector]])
    resets: list[int] = field(default_factory=list[int])
    holds: list[int] = field(default_factory=list[int])
    looks: list[int] = field(default_factory=list[int])
    stops: list[int] = field(default_factory=list[int])
    closed: bool = False
    x: float = 0.0
    step: int = 0
    stamp_ns: int = 0
    _grip: float = 1.0

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return {camera.name: self.stamp_ns for camera in self.embodiment.cameras}

    def reset(self, seed: int) -> Observation:
        self._called("reset", self.resets)
        self.x, self.step, self._grip = 0.0, 0, 1.0
        return self._observe()

    def command(self, action: Vector) -> StepResult:
        self.commands.append((self.clock.now_ns(), action.copy()))
        self._may_fail("command")
        self.x, self._grip = self.x + float(action[0]), float(action[-1])
        return self._after(action.copy())

    def hold(self) -> StepResult:
        self._called("hold", self.holds)
        action = rest_action(self.embodiment, self._observe().state)
        action[-1] = self._grip
        return self._after(action)

    def look(self) -> Observation:
        self._called("look", self.looks)
        return self._observe()

    def stop(self) -> None:
        self._called("stop", self.stops)

    def close(self) -> None:
        self.closed = True

    def _called(self, method: str, kept: list[int]) -> None:
        kept.append(self.clock.now_ns())
        self._may_fail(method)

    def _may_fail(self, method: str) -> None:
        if method in self.raises:
            raise self.raises[method]

    def _after(self, action: Vector) -> StepResult:
        self.step += 1
        over = self.horizon is not None and self.step >= self.horizon
        return StepResult(self._observe(), action, self.succeeds, False, over)

    def _observe(self) -> Observation:
        self.stamp_ns = self.clock.now_ns()
        return toy_observation(
            self.embodiment, self.step, x=self.x, instruction=self.instruction, stamp_ns=self.stamp_ns
        )
