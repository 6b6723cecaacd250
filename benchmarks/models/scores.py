"""Successes of policies on Lift and on three colours, which `vla eval` counts, and what their trainings noted.

OUT/<world>/<policy>[-rows-N]/          the evaluation; the same command continues there
OUT/<world>/<policy>[-rows-N].json      its episodes
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.normalise import normalise
from vla_robot.core.stats import wilson_interval
from vla_robot.evaluate import evaluation
from vla_robot.policy.kinds import load_policy
from vla_robot.policy.vla.policy import AnyVLAPolicy, VLAPolicy
from vla_robot.policy.wrappers import wrap_policy
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy import CheckpointRecipe, WeightsRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.spent import trainings_of

VLA = Path(sys.executable).with_name("vla")
WORLDS = {"lift": (50, 10000), "lift_colour": (60, 20000)}
"""World -> number of episodes, and the first one's seed. No training used these seeds."""


@dataclass(frozen=True)
class Score:
    """Outcomes of a policy in a world: episodes, successes, those that raised another cube, and failures at rest."""

    count: int
    successes: int
    wrong: int
    stalled: int

    def __str__(self) -> str:
        low, high = wilson_interval(self.successes, self.count)
        return f"{self.successes} of {self.count} ({low:.0%} to {high:.0%})"


def labels(policies: Sequence[str]) -> dict[str, str]:
    """Return label -> policy: its name, or the run's for a training's folder `final`.

    Raises:
        RecipeError: two policies have the same label.
    """
    named = [(path.parent.name if (path := Path(name)).name == "final" else path.name, name) for name in policies]
    if repeated := [label for label, count in Counter(label for label, _ in named).items() if count > 1]:
        raise RecipeError(f"--policies: several are called {', '.join(repeated)}; their rows could not be told apart.")
    return dict(named)


def scored(
    policy: str,
    label: str,
    world: str,
    out: Path,
    workers: int,
    horizon: int | None = None,
    episodes: int | None = None,
) -> Score:
    """Let `vla eval` score a policy in a world.

    Args:
        policy: its name or path.
        label: its name in the table and in `out`.
        world: one of WORLDS.
        out: folder of all evaluations.
        workers: worlds in parallel.
        horizon: actions of an answer that are executed before the next; None for the recipe's.
        episodes: number of episodes; None for the world's in WORLDS.

    Raises:
        RecipeError: the evaluation failed.
    """
    number, seed = WORLDS[world]
    name = label if horizon is None else f"{label}-rows-{horizon}"
    result = out / world / f"{name}.json"
    options = {"--episodes": episodes or number, "--seed": seed, "--workers": workers, "--videos": "none"}
    options |= {} if horizon is None else {"--rows": horizon}
    where = ("--out", str(out / world / name), "--json", str(result))
    said = (str(part) for pair in options.items() for part in pair)
    command = [str(VLA), "eval", "--env", world, "--policy", policy, *said, *where]
    if (status := subprocess.run(command, check=False).returncode) != 0:
        raise RecipeError(f"`vla eval` of {world} ended with status {status}; see above. The same command continues.")
    return score_of(json.loads(result.read_text(encoding="utf-8"))["episodes"])


def score_of(trials: Sequence[Mapping[str, Any]]) -> Score:
    """Return the score of the episodes of a `vla eval --json`."""
    told = evaluation.Score("", "plain", tuple(map(evaluation.Trial.from_dict, trials)), ())
    return Score(told.count, told.successes, told.wrong, told.stalled)


def loaded(name: str) -> AnyVLAPolicy:
    """Return a policy with its weights on the CPU.

    Raises:
        RecipeError: it is no policy of kind `openvla` or `vla`.
    """
    recipe = find_policy(name).recipe
    if isinstance(recipe, WeightsRecipe):
        policy = load_policy(replace(recipe, device="cpu"), None)
        if isinstance(policy, VLAPolicy):
            return policy
    raise RecipeError(
        f"'{name}' is of kind '{recipe.kind}', whose inference this does not time; name an 'openvla' or 'vla'."
    )


def trained_s(name: str) -> float | None:
    """Return the processor seconds of all trainings in a policy's training.json; None without the file.

    The file has those of the first process; the others compute as much.
    """
    recipe = find_policy(name).recipe
    trainings = trainings_of(recipe.checkpoint) if isinstance(recipe, CheckpointRecipe) else []
    return sum(t["cpu_seconds"] * t.get("processes", 1) for t in trainings) if trainings else None


def driven(name: str, policy: AnyVLAPolicy, count: int) -> tuple[list[Observation], NDArray[np.float64]]:
    """Return observations of Lift while a policy drives, and the expert's (count, D) actions there, in units.

    The first episode has the evaluation's first seed.
    """
    scenes, labels, seed = list[Observation](), list[Vector](), WORLDS["lift"][1]
    recipe = find_env("lift").recipe
    with open_world(recipe, privileged=True) as world:
        driver = wrap_policy(policy, find_policy(name).recipe, world.embodiment)
        expert = build_policy(find_policy("expert"), recipe, world.embodiment)
        guard = build_guard(world.embodiment.action)
        while len(scenes) < count:
            seen, is_over, seed = world.reset(seed), False, seed + 1
            while not is_over and len(scenes) < count:
                labels.append(expert.act([seen])[0].actions[0])
                scenes.append(replace(seen, privileged={}))
                action, _ = guard.check(driver.act(scenes[-1:])[0].actions[0])
                result = world.step(action)
                seen, is_over = result.observation, result.success or result.terminated or result.truncated
    return scenes, np.stack(labels)


def error_to(policy: AnyVLAPolicy, scenes: Sequence[Observation], wanted: NDArray[np.float64]) -> float:
    """Return the mean absolute difference of a policy's first action and the wanted one, in normalised units.

    Args:
        policy: answers each scene alone.
        scenes: N observations.
        wanted: (N, D) actions in units.
    """
    return float(np.abs(first_actions(policy, scenes) - normalise(wanted, policy.action_stats())).mean())


def first_actions(policy: AnyVLAPolicy, scenes: Sequence[Observation]) -> NDArray[np.float64]:
    """Return a policy's first action for each of N scenes, asked alone: (N, D), normalised."""
    given = np.stack([policy.act([scene])[0].actions[0] for scene in scenes])
    return normalise(given, policy.action_stats())
