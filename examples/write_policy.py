"""Write a policy: observations in, chunks of actions out.

    .venv/bin/python examples/write_policy.py

A model's forward pass goes where `_plan` is. To give a policy a name in policies/, see CONTRIBUTING.md.
"""

from collections.abc import Sequence

import numpy as np
from write_world import GOAL_M, RailWorld

from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.results import EpisodeResult
from vla_robot.safety.limits import RangeGuard
from vla_robot.testing import check_policy

ROWS, FASTEST_M = 4, 0.05


class ToTheMark:
    """Drives to the mark in chunks of four actions."""

    def reset(self, seed: int) -> None:
        """It remembers nothing and draws nothing, so there is nothing to forget."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk for each observation; the chunk says which observation caused it."""
        return [ActionChunk(self._plan(seen), seen.stamp_ns, seen.step) for seen in observations]

    def _plan(self, seen: Observation) -> np.ndarray:
        """(ROWS, 2): metres along the rail, and the gripper open."""
        x, rows = float(seen.state[0]), []
        for _ in range(ROWS):
            dx = float(np.clip(GOAL_M - x, -FASTEST_M, FASTEST_M))
            rows.append([dx, 1.0])
            x += dx
        return np.array(rows)


def main() -> EpisodeResult:
    world = RailWorld()
    check_policy(ToTheMark, world.embodiment)
    result = run_episode(world, ToTheMark(), seed=1, guard=RangeGuard(world.embodiment.action))
    print(f"{result.outcome} after {result.steps} steps")
    return result


if __name__ == "__main__":
    main()
