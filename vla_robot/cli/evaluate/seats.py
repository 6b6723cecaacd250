"""What a worker of an evaluation has and does: one world at a time, one policy, one episode after the other.

It runs in a thread of the command, or in a process on a node of a cluster; neither knows which.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.cli.evaluate.plan import Plan
from vla_robot.core.embodiment import Embodiment, contract_differences
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy, SharedObject
from vla_robot.core.ports.tasks import ShouldStop
from vla_robot.evaluate.eval_wrappers import ReplaceableWorld
from vla_robot.evaluate.evaluation import Examiner, Trial, TrialKey
from vla_robot.evaluate.video_selection import Film, Videos, VideoSelection
from vla_robot.recipe.env import EnvRecipe, SimulationRecipe
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.record.collect import WithoutTruth
from vla_robot.serve.policy.shared_policy import PolicySeat, SharedPolicy
from vla_robot.world.environments.install import make_once
from vla_robot.world.environments.location import find_environment


class Seat:
    """A place for one world at a time, which shows the simulator's state, and for the policy of the moment.

    Attributes:
        what: the evaluation.
        videos: records the episodes of this seat.
        client: the seat's name in a shared model, unlike that of any other seat.
    """

    def __init__(self, what: Plan, videos: VideoSelection) -> None:
        """
        Args:
            what: the evaluation.
            videos: records the episodes of this seat.
        """
        self.what, self.videos = what, videos
        self.client = uuid.uuid4().hex
        self._of: tuple[str, EnvRecipe] | None = None
        self._world: ReplaceableWorld | None = None
        self._policy: tuple[tuple[str, str], Policy] | None = None

    def enter(self, name: str, policy: str) -> ReplaceableWorld:
        """Return the named world for a policy, opened; the one before is closed, since its memory may be needed."""
        recipe = self.what.world_for(name, policy)
        if self._world is None or (name, recipe) != self._of:
            self.close()
            self._world, self._of = ReplaceableWorld(partial(open_world, recipe, privileged=True)), (name, recipe)
        self._world.open()
        return self._world

    def policy_in(self, name: str, world: str, embodiment: Embodiment) -> Policy:
        """Return a policy without weights, which may have a state and know its task: built anew in every world."""
        if self._policy is None or self._policy[0] != (name, world):
            source = self.what.policies[name]
            policy = build_policy(source, self.what.worlds[world].recipe, embodiment, rows=self.what.rows)
            self._policy = (name, world), policy if source.is_privileged else WithoutTruth(policy)
        return self._policy[1]

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None


@dataclass(frozen=True)
class SeatHere:
    """Makes seats in this process, whose videos go straight into the evaluation's folder."""

    what: Plan
    videos: VideoSelection

    def __call__(self) -> contextlib.AbstractContextManager[Seat]:
        return contextlib.closing(Seat(self.what, self.videos))


@dataclass(frozen=True)
class SeatThere:
    """Makes seats on a node: environments of their own are made once for the node, videos travel with the results."""

    what: Plan
    videos: Videos

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Seat]:
        for world in self.what.worlds.values():
            if isinstance(world.recipe, SimulationRecipe) and world.recipe.environment:
                make_once(find_environment(world.recipe.environment))
        with tempfile.TemporaryDirectory(prefix="vla_eval_") as folder:
            videos = VideoSelection(Path(folder), self.videos, self.what.rates_hz)
            with contextlib.closing(Seat(self.what, videos)) as seat:
                yield seat


@dataclass(frozen=True)
class Examined:
    """A finished episode.

    Attributes:
        trial: its result.
        film: its video, where it is not in the evaluation's folder yet.
    """

    trial: Trial
    film: Film | None = None


PolicyIn = Callable[[Seat, TrialKey, Embodiment], Policy]
"""(seat, episode, its world's embodiment) -> the policy there."""


@dataclass(frozen=True)
class Examine:
    """The task of an evaluation: runs one episode.

    Attributes:
        policy_in: gives the policy.
        sends_film: the video goes with the result.
    """

    policy_in: PolicyIn
    sends_film: bool

    def __call__(self, seat: Seat, key: TrialKey, should_stop: ShouldStop) -> Examined:
        """Run the episode.

        Raises:
            VlaError: an error that would occur in every episode.
        """
        world = seat.enter(key.world, key.policy)
        policy = self.policy_in(seat, key, world.embodiment)
        guard, words, videos = build_guard(world.embodiment.action), seat.what.words[key.world], seat.videos
        frames_every = videos.frames_every(key.world)
        examiner = Examiner(world, policy, guard, words, should_stop, videos.subscribers, frames_every)
        trial = videos.develop(examiner(key))
        if self.sends_film and videos.failure is not None:
            raise videos.failure
        return Examined(trial, videos.take(trial.key) if self.sends_film else None)


def embodiment_in(seat: Seat, asked: tuple[str, str], should_stop: ShouldStop) -> Embodiment:
    """Return the embodiment of a world for a policy: a task."""
    return seat.enter(*asked).embodiment


def built_policy(seat: Seat, key: TrialKey, embodiment: Embodiment) -> Policy:
    """Give each seat a policy of its own."""
    return seat.policy_in(key.policy, key.world, embodiment)


@dataclass(frozen=True)
class PolicyModel:
    """Makes the one policy with weights that all seats ask.

    Attributes:
        what: the evaluation.
        name: the policy's name.
        world: the first world.
        embodiment: that world's.
        max_batch: most rows of a batch.
    """

    what: Plan
    name: str
    world: str
    embodiment: Embodiment
    max_batch: int

    @contextlib.contextmanager
    def __call__(self) -> Iterator[SharedPolicy]:
        source, env = self.what.policies[self.name], self.what.worlds[self.world].recipe
        assert isinstance(source.recipe, WeightsRecipe)
        policy = build_policy(source, env, self.embodiment, rows=self.what.rows)
        with SharedPolicy(policy, self.max_batch) as shared:
            yield shared


@dataclass(frozen=True)
class SharedModel:
    """Gives every seat the policy whose weights are loaded once, in any world with the embodiment of the first.

    Attributes:
        model: the policy.
        first: the world for which it was loaded.
        embodiment: that world's.
        history_steps: number of earlier observations that it reads.
    """

    model: SharedObject[SharedPolicy]
    first: str
    embodiment: Embodiment
    history_steps: int

    def __call__(self, seat: Seat, key: TrialKey, embodiment: Embodiment) -> Policy:
        """Return the policy.

        Raises:
            RecipeError: the world has another arm, other cameras or another state.
        """
        if different := contract_differences(self.embodiment, embodiment):
            raise RecipeError(
                f"'{key.world}' has another embodiment than '{self.first}': evaluate them one after the other. "
                f"{'; '.join(different)}."
            )
        return WithoutTruth(PolicySeat(partial(self.model.call, _act), seat.client, self.history_steps))


def _act(shared: SharedPolicy, client: str, observations: Sequence[Observation]) -> list[ActionChunk]:
    return shared.act(client, observations)


def history_steps_of(shared: SharedPolicy) -> int:
    """Return how many earlier observations the model reads."""
    return shared.history_steps
