"""A policy that repeats a recorded demonstration of the task without looking: what a score of 0 % cannot hide.

On a benchmark whose objects hardly move it succeeds often, and such a score does not show that a policy sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, DataError, PolicyError, unknown
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.data.formats.lerobot.demo_dataset import Demos, open_demos
from vla_robot.policy.scripted.build import require_deltas
from vla_robot.recipe.policy import ReplayRecipe


class ReplayPolicy:
    """Policy that sends the k-th action of a demonstration of the instruction at an episode's k-th step.

    After the last one it keeps sending it with all motion zeroed, so that the gripper keeps its state.
    """

    def __init__(self, actions: dict[str, np.ndarray], source: Path) -> None:
        """
        Args:
            actions: instruction -> (T, D) actions as they were sent to the arm, in physical units.
            source: the dataset, for messages.
        """
        self._actions = actions
        self._source = source
        self._begun_at: int | None = None

    def reset(self, seed: int) -> None:
        self._begun_at = None

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one action for each observation.

        Raises:
            PolicyError: there is no demonstration of an instruction.
        """
        return [ActionChunk(self._at(o)[None], o.stamp_ns, o.step) for o in observations]

    def _at(self, observation: Observation) -> Vector:
        if observation.instruction not in self._actions:
            name = unknown("instruction", observation.instruction, self._actions)
            raise PolicyError(f"{self._source} has no successful demonstration of it: {name}")
        if self._begun_at is None:
            self._begun_at = observation.step
        actions, step = self._actions[observation.instruction], observation.step - self._begun_at
        if step < len(actions):
            return actions[step]
        return np.append(np.zeros(actions.shape[1] - 1), actions[-1, -1])


def build_replay(recipe: ReplayRecipe, embodiment: Embodiment) -> ReplayPolicy:
    """Build the policy for an arm.

    Raises:
        ContractError: the demonstrations are of another arm, or of one whose actions are positions.
        DataError: the dataset is damaged, has no such episode, or no successful one.
    """
    demos = open_demos(recipe.data)
    if embodiment.action != demos.embodiment.action or embodiment.rate_hz != demos.embodiment.rate_hz:
        raise ContractError(
            f"{recipe.data} was recorded with '{demos.embodiment.name}', whose actions or rate are not those of "
            f"'{embodiment.name}'. A replay needs the same."
        )
    require_deltas(recipe, embodiment)
    return ReplayPolicy(_demonstrations(demos, recipe), recipe.data)


def _demonstrations(demos: Demos, recipe: ReplayRecipe) -> dict[str, np.ndarray]:
    """Return the first successful demonstration of each instruction, or that of the recipe's episode alone."""
    sent = demos.actions if demos.executed is None else demos.executed
    found: dict[str, np.ndarray] = {}
    for episode in demos.episodes:
        chosen = episode.success is not False if recipe.episode is None else episode.index == recipe.episode
        if chosen and not episode.goes_on:
            found.setdefault(episode.instruction, sent[episode.start : episode.stop])
    if not found:
        what = "no successful episode" if recipe.episode is None else f"no whole episode {recipe.episode}"
        raise DataError(f"{recipe.data} has {what} of its {len(demos.episodes)}.")
    return found
