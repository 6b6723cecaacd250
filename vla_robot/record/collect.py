"""Makes demonstrations: one policy says what should be done (the label), one moves the arm (the driver).

    driver                        what it gives
    the label itself              a plain demonstration
    the label, disturbed          a demonstration of mistakes and how to get out of them (DART)
    a learned policy              a learner's own episodes, with what it should have done (DAgger)

Source: Ross et al. 2011 (DAgger); Laskey et al. 2017 (DART).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Policy, World
from vla_robot.data.demonstration import Demonstration, DemonstrationBuilder

Keep = Literal["all", "success"]


class WithoutTruth:
    """Wraps a policy and is a policy: the simulator's truth is hidden from a learner that drives."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act([replace(observation, privileged={}) for observation in observations])


@dataclass(frozen=True)
class Collector:
    """All that one demonstration needs but its seed.

    Attributes:
        world: built to give its truth where the label asks for it.
        label: says what should be done, in every state that the driver reaches.
        driver: moves the arm; may be the label itself.
        driver_name: its name, as it is stored.
        image_size: edge in pixels to which frames are resized before they are stored; None keeps them.
        max_steps: control steps after which an episode ends; None leaves it to the world's horizon.
        also_ask: instructions that each frame is labelled for too, beside the episode's own.
    """

    world: World
    label: Policy
    driver: Policy
    driver_name: str
    image_size: int | None = None
    max_steps: int | None = None
    also_ask: tuple[str, ...] = ()

    def collect(self, seed: int) -> Demonstration:
        """One episode. The same seed gives the same one, stamps aside.

        Raises:
            PolicyError: the label or the driver has no action.
            WorldError: the world fails.
        """
        self.label.reset(seed)
        self.driver.reset(seed)
        builder = DemonstrationBuilder(self.image_size)
        observation = self.world.reset(seed)
        others: dict[str, list[Vector]] = {words: [] for words in self.also_ask if words != observation.instruction}
        while True:
            label, sent = self._decide(observation)
            for words, labels in others.items():
                labels.append(self._first_action(self.label, replace(observation, instruction=words)))
            result = self.world.step(sent)
            builder.add(observation, label, result)
            if result.terminated or result.truncated or len(builder) == self.max_steps:
                made = builder.finish(self.world.embodiment, seed, self.driver_name)
                return replace(made, other_labels={words: np.stack(labels) for words, labels in others.items()})
            observation = result.observation

    def _decide(self, observation: Observation) -> tuple[Vector, Vector]:
        """The label, and what the arm is given; both within the limits."""
        label = self._first_action(self.label, observation)
        return label, label if self.driver is self.label else self._first_action(self.driver, observation)

    def _first_action(self, policy: Policy, observation: Observation) -> Vector:
        space = self.world.embodiment.action
        action = policy.act([observation])[0].actions[0]
        if action.shape != (len(space),) or not np.isfinite(action).all():
            raise PolicyError(f"an action must be {len(space)} finite numbers, got {action}. Nothing was recorded.")
        return np.clip(action, space.low, space.high)


class Writer(Protocol):
    """Where demonstrations go."""

    def write(self, demonstration: Demonstration) -> None: ...


@dataclass(frozen=True)
class Collected:
    """One demonstration was made.

    Attributes:
        seed: of the episode.
        steps: its length.
        success: the task was done at the end.
        kept: it was written.
    """

    seed: int
    steps: int
    success: bool
    kept: bool


def store(
    demonstrations: Iterable[Demonstration],
    writer: Writer,
    keep: Keep = "all",
    on_event: Callable[[Collected], None] = lambda event: None,
) -> list[Collected]:
    """Write demonstrations as they come, and tell about each.

    Args:
        demonstrations: e.g. `map(collector.collect, seeds)`, or `collect_in_processes(...)`.
        writer: each episode that is kept is on disk before the next one is asked for.
        keep: "success" leaves out episodes in which the task was not done.
        on_event: called after each episode.

    Raises:
        DataError: an episode does not fit the dataset, or the disk refuses.
    """
    made: list[Collected] = []
    for demonstration in demonstrations:
        kept = keep == "all" or demonstration.succeeded
        if kept:  # its own last: by it a recording that goes on knows that all are there
            for episode in (*demonstration.asked_otherwise(), demonstration):
                writer.write(episode)
        event = Collected(demonstration.seed, len(demonstration), demonstration.succeeded, kept)
        made.append(event)
        on_event(event)
    return made
