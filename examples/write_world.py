"""Write a world: whatever has these methods can be driven by each policy, recorded, and put behind a bridge.

    .venv/bin/python examples/write_world.py

`check_world` calls it as the loops do, and quotes the sentence of the contract that does not hold.
"""

import time

import numpy as np

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.seeds import require_seed
from vla_robot.safety.limits import require_action
from vla_robot.testing import check_world

GOAL_M, TOLERANCE_M, HORIZON = 0.5, 0.03, 60


class RailWorld:
    """A tool on a rail: x goes from -1 m to 1 m, and the frame's brightness says where it is."""

    instruction = "go to the mark"
    embodiment = Embodiment(
        name="rail",
        action=ActionSpace("eef_delta", "base", (Dim("dx", "m", -0.05, 0.05), Dim("gripper", "1", 0.0, 1.0))),
        state=(Dim("x", "m", -1.0, 1.0),),
        cameras=(CameraSpec("front", height=28, width=28),),
        rate_hz=10.0,
    )

    is_open = True

    def reset(self, seed: int) -> Observation:
        self._require_open()
        self.x, self.steps = float(np.random.default_rng(require_seed(seed)).uniform(-0.5, 0.3)), 0
        return self._observe()

    def step(self, action: Vector) -> StepResult:
        self._require_open()
        require_action(action, self.embodiment.action)  # wrong shape, NaN, out of range: nothing moves
        command_ns = time.monotonic_ns()
        self.x, self.steps = float(np.clip(self.x + action[0], -1.0, 1.0)), self.steps + 1
        success = abs(self.x - GOAL_M) < TOLERANCE_M
        return StepResult(
            observation=self._observe(),
            executed=action.copy(),
            success=success,
            terminated=success,
            truncated=self.steps >= HORIZON,
            command_ns=command_ns,
        )

    def close(self) -> None:
        self.is_open = False  # here a real one lets go of its renderer or its motors

    def _require_open(self) -> None:
        if not self.is_open:
            raise WorldError("this world was closed.")

    def _observe(self) -> Observation:
        frame = np.full((28, 28, 3), round(255 * (self.x + 1) / 2), np.uint8)
        return Observation({"front": frame}, np.array([self.x]), self.instruction, time.monotonic_ns(), self.steps)


if __name__ == "__main__":
    check_world(RailWorld)
    print("RailWorld keeps the contract of a World.")
