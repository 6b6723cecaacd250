"""An arm without motors, for what drives arms."""

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
    """Adds up the first number of its commands, and keeps each call with its time; holds and looks are no commands.

    Attributes:
        clock: stamps what it sees and keeps.
        embodiment: the first number of its state is x; the others stay in the middle of their ranges.
        instruction: the task.
        can_wait: its time stands still between commands.
        horizon: step at which an episode is truncated; None for never.
        succeeds: each step is a success.
        raises: name of a method -> what it raises, after the call was kept.
        commands: (stamp [ns], action) of each.
        resets, holds, looks, stops: stamps of those calls [ns].
        x, step: where it is, and how many ticks passed since reset.
        stamp_ns: of the newest frames.
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
