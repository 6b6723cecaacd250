"""Two wrappers that make a world fit for an examination: it may be asked in other words, and it may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import ReportsStages, World
from vla_robot.evaluate.instruction_variants import Words

RAISED_M = 0.015
"""An object counts as raised above this; robosuite calls a cube of 4 cm lifted 19 mm above where it lay."""


class InstructedWorld:
    """One episode of a world, asked in other words. It notes which object is raised, where the world tells the truth.

    Attributes:
        task: what the world says is to be done, which it also judges by.
        raised: the object that is highest above where it lay, by its name in the world; None while none is.
    """

    def __init__(self, world: World, words: Words) -> None:
        """
        Args:
            world: its observations hold the simulator's truth, or nothing is noted.
            words: what is said in the place of its instruction.
        """
        self._world = world
        self._words = words
        self.task = world.instruction
        self.instruction = world.instruction
        self.raised: str | None = None
        self._start_m: dict[str, float] = {}

    @property
    def embodiment(self) -> Embodiment:
        return self._world.embodiment

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
        result = self._world.step(action)
        self.raised = self._highest(_heights_m(result.observation))
        return replace(result, observation=self._told(result.observation))

    def close(self) -> None:
        self._world.close()

    def _told(self, observation: Observation) -> Observation:
        return replace(observation, instruction=self.instruction)

    def _highest(self, heights_m: Mapping[str, float]) -> str | None:
        risen_m = {name: height_m - self._start_m[name] for name, height_m in heights_m.items()}
        highest = max(risen_m, key=risen_m.__getitem__, default=None)
        return highest if highest is not None and risen_m[highest] > RAISED_M else None


def _heights_m(observation: Observation) -> dict[str, float]:
    """Of every object that can be moved: those whose place and orientation the world tells."""
    truth = observation.privileged
    names = (key.removesuffix("_mat") for key in truth if key.endswith("_mat"))
    return {name: float(truth[f"{name}_pos"][2]) for name in names}


class ReplaceableWorld:
    """Wraps worlds and is a world: where one dies, the next episode begins in a new one."""

    def __init__(self, open_world: Callable[[], AbstractContextManager[World]]) -> None:
        """
        Args:
            open_world: called at the first use, and after a death.
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
        """The world of now.

        Raises:
            VlaError: it cannot be opened.
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
        if self._world is None:
            raise WorldError("the world has died; reset begins a new one.")
        with self._lifetime():
            return self._world.step(action)

    def close(self) -> None:
        self._closed = True
        self._bury()

    @contextmanager
    def _lifetime(self) -> Iterator[None]:
        """An error of the world is its end: nothing is known of its state."""
        try:
            yield
        except (WorldError, TransportError):
            self._bury()
            raise

    def _bury(self) -> None:
        """Close the world of now; the next use opens another one."""
        self._world = None
        self._life.close()
