"""What wrappers of a world have in common."""

from __future__ import annotations

from vla_robot.core.messages import StepResult, Vector
from vla_robot.core.ports.world import StepsWithoutFrames, World


def step_without_frames(world: World, action: Vector) -> StepResult:
    """Execute one control step, without frames if the world can leave them out. Raises what `World.step` raises."""
    return world.step_without_frames(action) if isinstance(world, StepsWithoutFrames) else world.step(action)
