"""What a bridge needs of an arm: read, command, hold, stop. A simulated one here; a driver of motors fits as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from vla_robot.core.embodiment import GRIPPER_OPEN, ActionSpace, Dim, Embodiment
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import VisibleWorld
from vla_robot.serve.camera_frames import stamps_of


class Arm(Protocol):
    """An arm with its cameras. One thread calls it, once a control tick."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def instruction(self) -> str: ...

    @property
    def can_wait(self) -> bool:
        """Whether its time stands still between commands, as a simulation's does."""
        ...

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        """When each camera gave the frame that was last read, by the bridge's clock."""
        ...

    def reset(self, seed: int) -> Observation:
        """Go to where an episode begins."""
        ...

    def command(self, action: Vector) -> StepResult:
        """Execute one action for one tick. It is finite and within the limits."""
        ...

    def hold(self) -> StepResult:
        """Keep the pose and the grip for one tick."""
        ...

    def look(self) -> Observation:
        """What it sees and feels now, between episodes. It is read only: nothing is sent to it, and nothing moves.

        Raises:
            WorldError: it does not answer.
        """
        ...

    def stop(self) -> None:
        """Come to rest, supported: the pose and the grip are kept, nothing is dropped. May be called twice.

        Raises:
            WorldError: the arm did not take it.
        """
        ...

    def close(self) -> None:
        """Stop, and let go of the hardware."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """What an arm has beside that when it takes set points between the ticks; see `vla_robot.serve.set_points`."""

    @property
    def next_set_point_ns(self) -> int:
        """When the next one is due, by the bridge's clock."""
        ...

    def send_set_point(self) -> None:
        """Send it. Raises WorldError when the arm does not take it."""
        ...


class WrappedArm:
    """The Arm port over another arm: what it says of itself."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm

    @property
    def embodiment(self) -> Embodiment:
        return self._arm.embodiment

    @property
    def instruction(self) -> str:
        return self._arm.instruction

    @property
    def can_wait(self) -> bool:
        return self._arm.can_wait

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._arm.camera_stamps_ns


class WorldArm:
    """A world as an arm: one control step a tick."""

    can_wait = True

    def __init__(self, world: VisibleWorld) -> None:
        self._world = world
        self._holding: Vector | None = None
        self._stamps_ns: dict[str, int] = {}

    @property
    def embodiment(self) -> Embodiment:
        return self._world.embodiment

    @property
    def instruction(self) -> str:
        return self._world.instruction

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._stamps_ns

    def reset(self, seed: int) -> Observation:
        observation = self._world.reset(seed)
        self._seen(observation, after=None)
        return observation

    def command(self, action: Vector) -> StepResult:
        result = self._world.step(action)
        self._seen(result.observation, after=action)
        return result

    def hold(self) -> StepResult:
        """The pose is that after the last command: holding does not follow an arm that sags."""
        if self._holding is None:
            raise WorldError("an arm that was never reset has no pose to hold.")
        result = self._world.step(self._holding)
        self._stamps_ns = stamps_of(result.observation)
        return result

    def look(self) -> Observation:
        observation = self._world.look()
        self._stamps_ns = stamps_of(observation)
        return observation

    def stop(self) -> None:
        """A simulation that is not stepped stands still in its pose."""

    def close(self) -> None:
        self._world.close()

    def _seen(self, observation: Observation, after: Vector | None) -> None:
        self._stamps_ns = stamps_of(observation)
        self._holding = holding(self.embodiment.action, self.embodiment.state, observation.state, after)


def holding(space: ActionSpace, state: tuple[Dim, ...], at: Vector, after: Vector | None = None) -> Vector:
    """(D,) the action that keeps the pose and the grip.

    Args:
        space: of the action.
        state: what `at` means.
        at: (S,) where the arm is.
        after: (D,) the last action; None before the first, when the gripper is open.

    Raises:
        ContractError: the arm is moved by positions that its state does not tell.
    """
    grip = GRIPPER_OPEN if after is None else float(after[-1])
    if space.kind == "eef_delta":
        return np.append(np.zeros(len(space) - 1), grip)
    measured = {dim.name: float(value) for dim, value in zip(state, at, strict=True)}
    missing = [name for name in space.names[:-1] if name not in measured]
    if missing:
        raise ContractError(
            f"the arm cannot be held: it takes positions, and its state does not tell {', '.join(missing)}."
        )
    return np.array([*(measured[name] for name in space.names[:-1]), grip])
