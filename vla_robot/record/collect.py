"""Records demonstrations with two policies: the label gives the action to be learned, the driver moves the arm.

    driver                        recorded episode
    the label itself              a plain demonstration
    the label, disturbed          a demonstration with mistakes and their corrections (DART)
    a learned policy              the learner's own episode, with the label's action in each state (DAgger)

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
from vla_robot.core.ports.wrapped_policy import WrappedPolicy
from vla_robot.data.demonstration import Demonstration, DemonstrationBuilder

Keep = Literal["all", "success"]


class WithoutTruth(WrappedPolicy):
    """A policy that removes the simulator's privileged values from observations and asks another policy."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act([_without_truth(observation) for observation in observations])


def _without_truth(observation: Observation) -> Observation:
    return replace(observation, privileged={}, before=tuple(map(_without_truth, observation.before)))


@dataclass(frozen=True)
class Collector:
    """World and policies for recording demonstrations.

    Attributes:
        world: the world; its observations hold privileged values where the label needs them.
        label: policy that gives the action to be learned, in each state that the driver reaches.
        driver: policy that moves the arm; may be the label itself.
        driver_name: name of the driver in the dataset.
        image_size: edge in pixels to which frames are resized before they are stored; None keeps their size.
        max_steps: number of control steps after which an episode ends; None leaves it to the world's horizon.
        also_ask: further instructions for which the label's action is recorded in each frame.
        world_name: name of the world in the dataset.
    """

    world: World
    label: Policy
    driver: Policy
    driver_name: str
    image_size: int | None = None
    max_steps: int | None = None
    also_ask: tuple[str, ...] = ()
    world_name: str = ""

    def collect(self, seed: int) -> Demonstration:
        """Record one episode. The same seed gives the same episode, except for the stamps.

        Raises:
            PolicyError: the label or the driver fails, or its action is not D finite numbers.
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
                other_labels = {words: np.stack(labels) for words, labels in others.items()}
                return replace(made, other_labels=other_labels, world=self.world_name)
            observation = result.observation

    def _decide(self, observation: Observation) -> tuple[Vector, Vector]:
        """Return the label's action and the driver's, each (D,) and within the limits of the action space."""
        label = self._first_action(self.label, observation)
        return label, label if self.driver is self.label else self._first_action(self.driver, observation)

    def _first_action(self, policy: Policy, observation: Observation) -> Vector:
        space = self.world.embodiment.action
        action = policy.act([observation])[0].actions[0]
        if action.shape != (len(space),) or not np.isfinite(action).all():
            raise PolicyError(f"an action must be {len(space)} finite numbers, got {action}. Nothing was recorded.")
        return np.clip(action, space.low, space.high)


class Writer(Protocol):
    """The port of what stores demonstrations."""

    def write(self, demonstration: Demonstration) -> None:
        """Store one episode on the disk.

        Raises:
            DataError: the episode does not fit the dataset, or writing to disk failed.
        """
        ...


@dataclass(frozen=True)
class Collected:
    """The event that an episode has ended.

    Attributes:
        seed: the episode's seed.
        steps: number of its steps.
        success: whether the task was done at the end.
        kept: whether the episode was written.
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
    """Write demonstrations as they come, and return an event for each.

    Args:
        demonstrations: e.g. `map(collector.collect, seeds)`, or `collect_in_processes(...)`.
        writer: writes each kept episode to the disk before the next one is recorded.
        keep: "success" leaves out episodes in which the task was not done.
        on_event: called with the event of each episode.

    Raises:
        DataError: an episode does not fit the dataset, or writing to disk failed.
    """
    made: list[Collected] = []
    for demonstration in demonstrations:
        kept = keep == "all" or demonstration.succeeded
        if kept:  # the driver's own episode is last: when it is there, a resumed recording knows that all are
            for episode in (*demonstration.asked_otherwise(), demonstration):
                writer.write(episode)
        event = Collected(demonstration.seed, len(demonstration), demonstration.succeeded, kept)
        made.append(event)
        on_event(event)
    return made
