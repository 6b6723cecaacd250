"""`vla eval`: the score of one policy, or of several on the same seeds, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.cli.interrupt import stop_on_interrupt
from vla_robot.cli.json_out import write_json
from vla_robot.cli.live import LiveView
from vla_robot.cli.words import EXIT_FAILED, EXIT_INTERRUPTED, option, short_path, shown
from vla_robot.core.errors import RecipeError
from vla_robot.loop.results import Comparison, RunInfo, RunSummary, compare
from vla_robot.loop.runner import run_episodes
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy


@dataclass(frozen=True)
class EvaluateArgs:
    """Score policies in closed loop, all on the same seeds. No videos and no report: `vla run` makes those."""

    env: Annotated[str, option("ENV")]
    """the world, by name or path"""
    policy: Annotated[tuple[str, ...], option("POLICY ...")]
    """who drives, by name or path; several are compared on the same seeds, with the first as the baseline"""
    episodes: Annotated[int, option("N")] = 50
    """episodes of each policy"""
    seed: Annotated[int, option("SEED")] = 10_000
    """the first episode's seed; the k-th has SEED + k. Training data should use others"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file, for machines"""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.seed < 0:
            raise RecipeError(
                f"--episodes {self.episodes} --seed {self.seed}: at least 1 episode, from seed 0 or more."
            )
        if not self.policy:
            raise RecipeError("--policy names nobody. `vla list policies` shows who there is.")


def main(args: EvaluateArgs) -> int:
    """Score; status 0 when every episode was driven to an end, whatever the score.

    Raises:
        VlaError: something is wrong with a recipe, the world, a policy or their fit.
    """
    env_path = find("envs", args.env)
    env = read(EnvRecipe, env_path)
    policies = [find_policy(name) for name in args.policy]
    print(f"vla eval: {short_path(env_path)}, {args.episodes} episodes from seed {args.seed}", flush=True)
    summaries: list[RunSummary] = []
    for policy in policies:
        print(f"\n  {shown(policy)}", flush=True)
        summaries.append(_score(args, env_path, env, policy))
        if summaries[-1].interrupted:
            break
    if args.json:
        write_json(args.json, "eval", **_results(summaries))
    Console(highlight=False).print(_table(summaries))
    for comparison in _comparisons(summaries):
        print(_in_words(comparison))
    print(f"\nNext: `vla run --env {args.env} --policy {args.policy[0]} --episodes 5` shows it, with videos.")
    return _status(summaries)


def _score(args: EvaluateArgs, env_path: Path, env: EnvRecipe, source: PolicySource) -> RunSummary:
    with open_world(env_path, source.sees_the_truth) as world:
        policy = build_policy(source, env, world.embodiment)
        with LiveView(args.episodes) as view, stop_on_interrupt() as stop:
            return run_episodes(
                world,
                policy,
                range(args.seed, args.seed + args.episodes),
                info=RunInfo(env_path.stem, source.name, env.instruction),
                guard=build_guard(world.embodiment.action),
                subscribers=[view],
                should_stop=stop.is_set,
            )


def _results(summaries: list[RunSummary]) -> dict[str, Any]:
    """For JSON: a row a policy, every episode with its policy's name, and the first policy's score."""
    first = summaries[0]
    return {
        "rows": [_row(summary, first) for summary in summaries],
        "episodes": [{"policy": s.info.policy, **e.to_dict()} for s in summaries for e in s.episodes],
        "comparisons": [c.to_dict() for c in _comparisons(summaries)],
        "successes": first.successes,
        "success_rate": first.success_rate,
        "success_interval_95": list(first.success_interval),
    }


def _comparisons(summaries: list[RunSummary]) -> list[Comparison]:
    """Each policy with the first one, on the seeds that both drove."""
    first, *others = summaries
    return [compare(first, other) for other in others]


def _in_words(c: Comparison) -> str:
    return (
        f"\n{c.policy} against {c.baseline}, seeds of both {c.paired}: {c.only_policy} solved by {c.policy} alone, "
        f"{c.only_baseline} by {c.baseline} alone; McNemar's exact test p = {c.p:.2g}"
    )


def _row(summary: RunSummary, first: RunSummary) -> dict[str, Any]:
    value, baseline = summary.success_rate, first.success_rate
    ratio = value / baseline if value is not None and baseline else None
    return {
        "name": f"success_rate/{summary.info.policy}",
        "value": value,
        "unit": "1",
        "baseline": baseline,
        "ratio": ratio,
    }


def _table(summaries: list[RunSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("policy")
    for column in ("succeeded", "of", "rate", "95 % interval", "steps/s"):
        table.add_column(column, justify="right")
    for s in summaries:
        low, high = s.success_interval
        rate = "–" if s.success_rate is None else f"{s.success_rate:.0%}"
        table.add_row(
            s.info.policy, str(s.successes), str(len(s.episodes)), rate, f"{low:.0%} to {high:.0%}", f"{s.rate_hz:.1f}"
        )
    return table


def _status(summaries: list[RunSummary]) -> int:
    if any(s.interrupted for s in summaries):
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(e.outcome == "error" for s in summaries for e in s.episodes) else 0
