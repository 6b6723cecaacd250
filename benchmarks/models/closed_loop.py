"""Policies that lift cubes, side by side in closed loop: success, wrong cube, size, time and passes of an inference.

    python -m benchmarks.models.closed_loop --out runs/nanos

`vla eval` scores both worlds on seeds that no training used, the same for every policy; after an interruption the same
command goes on. Then the policies infer in turns, one observation of Lift at a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from benchmarks.models.inference_times import ours
from benchmarks.models.turns import Timing, take_turns
from vla_robot.cli.build import open_world
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import Observation
from vla_robot.core.stats import wilson_interval
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.wrappers import wrap_policy
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy import CheckpointRecipe
from vla_robot.recipe.policy_source import find_policy

VLA = Path(sys.executable).with_name("vla")
NANOS = ("openvla_nano", "paligemma_nano", "qwen_vl_nano", "gemma4_nano")
WORLDS = {"lift": (50, 10000), "lift_colour": (60, 20000)}
"""World -> number of episodes, and the first one's seed."""


@dataclass(frozen=True)
class ClosedLoopArgs:
    """Score policies on Lift and on three colours, and time their inferences."""

    out: Annotated[Path, option("FOLDER")]
    """folder of the evaluations; the same command continues there"""
    policies: Annotated[tuple[str, ...], option("POLICY ...")] = NANOS
    """policies with weights, by name or path"""
    rounds: Annotated[int, option("N")] = 60
    """timed inferences of each policy"""
    workers: Annotated[int, option("N")] = 2
    """number of worlds in parallel"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


@dataclass(frozen=True)
class Score:
    """Outcomes of a policy in a world: episodes, successes, and those that raised another cube."""

    count: int
    successes: int
    wrong: int

    def __str__(self) -> str:
        low, high = wilson_interval(self.successes, self.count)
        return f"{self.successes} of {self.count} ({low:.0%} to {high:.0%})"


def main(args: ClosedLoopArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: a policy or a world cannot be used.
    """
    scores = {world: _scored(args, world) for world in WORLDS}
    policies = {name: _loaded(name) for name in args.policies}
    first = args.policies[0]
    scenes = _scenes(first, policies[first], args.rounds)
    contenders = {name: ours(policy, scenes, 1, _action_dim(policy)) for name, policy in policies.items()}
    timings = take_turns(contenders, args.rounds, lambda: None)
    sizes = {name: sum(p.numel() for p in policy.model.parameters()) for name, policy in policies.items()}
    Terminal().print(_table(scores, timings, sizes))
    if args.json:
        write_json(args.json, "closed_loop", rows(scores, timings, sizes))
    return 0


def _scored(args: ClosedLoopArgs, world: str) -> dict[str, Score]:
    """Let `vla eval` score all policies in a world, and return the scores by policy."""
    episodes, seed = WORLDS[world]
    result = args.out / f"{world}.json"
    options = {"--episodes": episodes, "--seed": seed, "--workers": args.workers, "--videos": "none"}
    where = ("--out", str(args.out / world), "--json", str(result))
    said = (str(part) for pair in options.items() for part in pair)
    command = [str(VLA), "eval", "--env", world, "--policy", *args.policies, *said, *where]
    if (status := subprocess.run(command, check=False).returncode) != 0:
        raise RecipeError(f"`vla eval` of {world} ended with status {status}; see above. The same command continues.")
    trials = json.loads(result.read_text(encoding="utf-8"))["episodes"]
    return {name: _score([t for t in trials if t["policy"] == Path(name).name]) for name in args.policies}


def _score(trials: Sequence[Mapping[str, Any]]) -> Score:
    outcomes = [trial["outcome"] for trial in trials]
    return Score(len(trials), sum(trial["success"] for trial in trials), outcomes.count("failure"))


def _loaded(name: str) -> AnyVLAPolicy:
    recipe = find_policy(name).recipe
    if not isinstance(recipe, CheckpointRecipe):
        raise RecipeError(f"'{name}' is of kind '{recipe.kind}', which has no weights to time; name one that has.")
    return family_of(recipe.checkpoint).load(recipe.checkpoint, "float32", "cpu", recipe.statistics_key)


def _scenes(name: str, policy: AnyVLAPolicy, count: int) -> list[Observation]:
    """Return observations of Lift while a policy drives, from the evaluation's first seed on."""
    scenes, seed = list[Observation](), WORLDS["lift"][1]
    with open_world(find_env("lift").recipe) as world:
        driver = wrap_policy(policy, find_policy(name).recipe, world.embodiment)
        while len(scenes) < count:
            seen, is_over, seed = world.reset(seed), False, seed + 1
            while not is_over and len(scenes) < count:
                scenes.append(seen)
                result = world.step(driver.act([seen])[0].actions[0])
                seen, is_over = result.observation, result.success or result.terminated or result.truncated
    return scenes


def _action_dim(policy: AnyVLAPolicy) -> int:
    return len(policy.action_stats(next(iter(policy.statistics))))


def rows(
    scores: Mapping[str, Mapping[str, Score]], timings: Mapping[str, Timing], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return the rows for JSON."""
    result = list[dict[str, Any]]()
    for name, timing in timings.items():
        for world, of in scores.items():
            result.append(row(f"{name}/{world}/successes", of[name].successes, "1", of[name].count))
            result.append(row(f"{name}/{world}/wrong_object", of[name].wrong, "1", of[name].count))
        result.append(row(f"{name}/parameters", sizes[name], "1"))
        result.append(row(f"{name}/inference_p50", timing.percentile_ms(50), "ms"))
        result.append(row(f"{name}/passes", timing.passes, "1"))
    return result


def _table(scores: Mapping[str, Mapping[str, Score]], timings: Mapping[str, Timing], sizes: Mapping[str, int]) -> Table:
    columns = ("policy", *WORLDS, "wrong cube", "parameters", "ms, median", "passes")
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for name, timing in timings.items():
        cells = [str(of[name]) for of in scores.values()]
        measured = (f"{sizes[name] / 1e6:.2f} M", f"{timing.percentile_ms(50):.1f}", f"{timing.passes:.2f}")
        table.add_row(name, *cells, str(scores["lift_colour"][name].wrong), *measured)
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ClosedLoopArgs)))
