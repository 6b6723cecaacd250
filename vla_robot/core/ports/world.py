"""Port of a world, which waits for each action, and of what some worlds can do besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.language.boxes import Box
from vla_robot.core.messages import Observation, StepResult, Vector


@runtime_checkable
class World(Protocol):
    """A robot and its surroundings: simulated, real, or behind a socket."""

    @property
    def embodiment(self) -> Embodiment:
        """Meaning of its actions, state and cameras."""
        ...

    @property
    def instruction(self) -> str:
        """The task as text."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin an episode. In simulation, a seed gives the same initial state after any history."""
        ...

    def step(self, action: Vector) -> StepResult:
        """Execute one control step.

        Args:
            action: (D,) float64 in the units of `embodiment.action`.

        Raises:
            ContractError: the action has a wrong shape, or a number that is not finite. The robot does not move.
        """
        ...

    def close(self) -> None:
        """Release renderer, sockets and motors. May be called twice."""
        ...


@runtime_checkable
class VisibleWorld(World, Protocol):
    """A world that can also be observed between its steps, as every world in this process."""

    def look(self) -> Observation:
        """Return the present observation, stamped now. The robot does not move, and simulated time does not pass."""
        ...


@runtime_checkable
class StepsWithoutFrames(World, Protocol):
    """A world that can leave out the frames of a step: rendering takes most of a simulation's time."""

    def step_without_frames(self, action: Vector) -> StepResult:
        """Execute one control step as `step` does, and return an observation whose `images` may be empty.

        The episode's last step has frames.
        """
        ...


@runtime_checkable
class OutlinesObjects(World, Protocol):
    """A simulated world that says where its cameras see its movable objects."""

    def outlines(self) -> Mapping[str, Mapping[str, Box]]:
        """Return camera name -> object name -> box around the pixels that the camera sees of it now.

        An object that a camera does not see is left out.
        """
        ...


@runtime_checkable
class ReportsStages(Protocol):
    """A world or an arm that reports the times of its stages."""

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        """Stage name -> time [ms] in the last reset, step or command."""
        ...
