"""The bridge treats a real arm and a simulated Panda alike: the same calls, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.build import build_arm, build_limits
from vla_robot.core.clock import FakeClock
from vla_robot.core.errors import WorldError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Arm
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge

pytest.importorskip("scservo_sdk")
pytestmark = pytest.mark.sim


class Overheard:
    """An arm whose calls are written down: which, and of what shape."""

    def __init__(self, arm: Arm, clock: FakeClock) -> None:
        self._arm, self._clock = arm, clock
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._arm, name)
        if name not in ("reset", "command", "hold", "stop", "close"):
            return value

        def call(*args: Any) -> Any:
            self.calls.append(f"{name}{tuple(np.shape(a) for a in args)}")
            return self._stamped(value(*args))

        return call

    def _stamped(self, result: Any) -> Any:
        """With stamps of the test's clock, by which the bridge judges ages."""
        if isinstance(result, Observation):
            return replace(result, stamp_ns=self._clock.now_ns())
        if result is None:
            return None
        return replace(result, observation=self._stamped(result.observation), command_ns=self._clock.now_ns())


def drive(recipe: EnvRecipe) -> list[str]:
    """An episode with everything that can happen in one; what the arm was told."""
    clock = FakeClock()
    arm: Any = Overheard(build_arm(recipe), clock)
    period_ns = round(1e9 / recipe.rate_hz)
    bridge = Bridge(arm, build_limits(arm.embodiment, recipe), Watchdog(clock), clock)
    observation = bridge.begin(1, seed=0)

    def tick(action: list[float] | None) -> Observation:
        clock.advance_ns(period_ns)
        bridge.watchdog.beat()
        if action is not None:
            assert bridge.observation is not None
            seen = bridge.observation
            bridge.put(ActionChunk(np.array([action]), clock.now_ns(), seen.step))
        return bridge.tick().result.observation

    for _ in range(4):
        observation = tick([0.002, 0, 0, 0, 0, 0, 1.0])
    for _ in range(8):  # it brakes as its limits ask, then holds
        observation = tick(None)
    observation = tick([0, 0, 0, 0, 0, 0, 0.5])
    bridge.emergency_stop("the test")
    tick(None)
    bridge.watchdog.arm()
    bridge.begin(2, seed=1)
    tick([0, 0, 0, 0, 0, 0, 1.0])
    bridge.end("done")
    arm.close()
    assert observation.step == 13
    return arm.calls


def test_the_panda_and_the_so101_are_called_alike(bus: Any, desk: Callable[..., Path]) -> None:
    try:
        panda = drive(read(EnvRecipe, "lift"))
    except WorldError as error:
        pytest.skip(str(error))
    so101 = drive(read(EnvRecipe, desk(robot="home_speed_deg_s = 300")))
    # The two tick at 10 and 30 Hz and brake over as many ticks as their limits ask: compared is what they are told.
    assert collapsed(so101) == collapsed(panda)
    assert collapsed(so101) == [
        "reset((),)",
        "command((7,),)",
        "hold()",
        "command((7,),)",
        "stop()",
        "reset((),)",
        "command((7,),)",
        "stop()",
        "close()",
    ]


def collapsed(calls: list[str]) -> list[str]:
    return [call for i, call in enumerate(calls) if i == 0 or call != calls[i - 1]]
