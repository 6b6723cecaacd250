"""Wrappers of worlds for an evaluation: one changes the instruction, one replaces a world that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import ReportsStages, World
from vla_robot.core.ports.wrapped_world import step_without_frames
from vla_robot.evaluate.instruction_variants import Words

RAISED_M = 0.015
"""An object counts as raised above this height [m]; robosuite calls a cube of 4 cm lifted at 19 mm."""


class InstructedWorld:
    """World with another instruction. It notes which object is raised, if observations hold the simulator's state.

    Attributes:
        task: the world's own instruction, by which it judges success.
        raised: name of the object that is raised most above its start; None if none is.
    """

    def __init__(self, world: World, words: Words) -> None:
        """
        Args:
            world: the wrapped world; without `privileged` observations, no raised object is noted.
            words: maps its instruction to the new one.
        """
        self._world, self.embodiment = world, world.embodiment
        self._words = words
        self.task = world.instruction
        self.instruction = world.instruction
        self.raised: str | None = None
        self._start_m: dict[str, float] = {}

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        return self._world.last_stages_ms if isinstance(self._world, ReportsStages) else {}

    def reset(self, seed: int) -> Observation:
        observation = self._world.reset(seed)
        self.task = observation.instruction
        self.instruction = self._words(self.task, seed)
        self._start_m = _heights_m(observation)
        self.raised = None
        return self._told(observation)

    def step(self, action: Vector) -> StepResult:
        return self._noted(self._world.step(action))

    def step_without_frames(self, action: Vector) -> StepResult:
        return self._noted(step_without_frames(self._world, action))

    def close(self) -> None:
        self._world.close()

    def _noted(self, result: StepResult) -> StepResult:
        self.raised = self._highest(_heights_m(result.observation))
        return replace(result, observation=self._told(result.observation))

    def _told(self, observation: Observation) -> Observation:
        return replace(observation, instruction=self.instruction)

    def _highest(self, heights_m: Mapping[str, float]) -> str | None:
        risen_m = {name: height_m - self._start_m[name] for name, height_m in heights_m.items()}
        highest = max(risen_m, key=risen_m.__getitem__, default=None)
        return highest if highest is not None and risen_m[highest] > RAISED_M else None


def _heights_m(observation: Observation) -> dict[str, float]:
    """Return the height [m] of every movable object: those whose position and orientation are in `privileged`."""
    truth = observation.privileged
    names = (key.removesuffix("_mat") for key in truth if key.endswith("_mat"))
    return {name: float(truth[f"{name}_pos"][2]) for name in names}


class ReplaceableWorld:
    """World that wraps worlds: after one fails, the next episode begins in a new one."""

    def __init__(self, open_world: Callable[[], AbstractContextManager[World]]) -> None:
        """
        Args:
            open_world: called at the first use, and after a failure.
        """
        self._open_world = open_world
        self._life = ExitStack()
        self._world: World | None = None
        self._closed = False

    @property
    def embodiment(self) -> Embodiment:
        return self.open().embodiment

    @property
    def instruction(self) -> str:
        return self.open().instruction

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        return self._world.last_stages_ms if isinstance(self._world, ReportsStages) else {}

    def open(self) -> World:
        """Return the present world, opened if there is none.

        Raises:
            VlaError: it cannot be opened, or this wrapper is closed.
        """
        if self._closed:
            raise WorldError("this world was closed.")
        if self._world is None:
            self._world = self._life.enter_context(self._open_world())
        return self._world

    def reset(self, seed: int) -> Observation:
        with self._lifetime():
            return self.open().reset(seed)

    def step(self, action: Vector) -> StepResult:
        with self._lifetime():
            return self._present().step(action)

    def step_without_frames(self, action: Vector) -> StepResult:
        with self._lifetime():
            return step_without_frames(self._present(), action)

    def close(self) -> None:
        self._closed = True
        self._bury()

    def _present(self) -> World:
        if self._world is None:
            raise WorldError("the world has failed; reset opens a new one.")
        return self._world

    @contextmanager
    def _lifetime(self) -> Iterator[None]:
        """Close the world after an error, since its state is unknown."""
        try:
            yield
        except (WorldError, TransportError):
            self._bury()
            raise

    def _bury(self) -> None:
        """Close the present world; the next use opens another one."""
        self._world = None
        self._life.close()
