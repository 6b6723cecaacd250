"""Makes a simulated robot behind a bridge a World that waits for each action."""

from __future__ import annotations

from collections.abc import Mapping

from vla_robot.core.errors import WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.safety.limits import require_action
from vla_robot.serve.bridge.remote_robot import RemoteRobot


class SynchronousEnv:
    """World over a RemoteRobot in lockstep; `close` closes the robot."""

    def __init__(self, robot: RemoteRobot) -> None:
        self._robot, self.embodiment = robot, robot.embodiment
        self._observation: Observation | None = None

    @property
    def instruction(self) -> str:
        return self._robot.instruction

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        return self._robot.last_stages_ms

    def reset(self, seed: int) -> Observation:
        self._observation = self._robot.begin(seed, lockstep=True)
        return self._observation

    def step(self, action: Vector) -> StepResult:
        """Execute one control step.

        Raises:
            ContractError: the action has a wrong shape or a number that is not finite. Nothing was sent.
            WorldError: the bridge stopped the arm, and the message says why; or there was no reset.
            PolicyError: the bridge refused the action; the arm did not move.
            TransportError: no answer came in time. Whether the arm moved is unknown: reset before the next step.
        """
        if self._observation is None:
            raise WorldError("this robot's last step did not complete, or there was no reset; reset it first.")
        action = require_action(action, self.embodiment.action)
        before, self._observation = self._observation, None
        tick = self._robot.play(ActionChunk(action[None], before.stamp_ns, before.step))
        if tick.mode == "stopped":
            raise WorldError(f"the bridge stopped the arm: {tick.reason}")
        self._observation = tick.result.observation
        return tick.result

    def close(self) -> None:
        self._robot.close()
