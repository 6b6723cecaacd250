"""`vla data doctor`: finds what makes a dataset unfit for training, and says how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from vla_robot.cli.build import open_world
from vla_robot.cli.common.cli_common import EXIT_FAILED, option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.data.on_cluster import Cluster, data_runner
from vla_robot.cli.data.stats import MembersArgs, find_members
from vla_robot.core.errors import DataError, unknown
from vla_robot.core.ports import TaskRunner, World
from vla_robot.data.doctor import Finding, Patient, examine
from vla_robot.data.formats.lerobot.demo_dataset import DemoEpisode, Demos, open_demos
from vla_robot.data.pipeline.mixture import Member, notes_of, open_table_of
from vla_robot.recipe import find
from vla_robot.recipe.env_source import find_env

SIGNS = {"problem": "[red]✗[/red]", "note": "[yellow]![/yellow]", "fine": "[green]✓[/green]"}
REPLAYS_TO_SUCCEED = 0.9
"""Smallest share of replayed successes that succeed again. A simulator of another version changes some of them."""


@dataclass(frozen=True)
class DataDoctorArgs(MembersArgs):
    """Examine a dataset: no-ops, rate, outliers, gripper, frames, instructions; exit status 1 with a problem."""

    policy: Annotated[str | None, option("POLICY")] = None
    """also compare the statistics with those of this checkpoint"""
    statistics_key: Annotated[str | None, option("NAME")] = None
    """which of the checkpoint's datasets; by default the one of the same name, or its only one"""
    env: Annotated[str | None, option("ENV")] = None
    """also replay recorded actions in this world, in which the dataset was recorded"""
    replays: Annotated[int, option("N")] = 10
    """number of episodes to replay"""
    skip_corrupt: bool = False
    """skip damaged records instead of stopping at the first"""
    cluster: Cluster = None
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def data_doctor(args: DataDoctorArgs) -> int:
    """Examine; status 1 if a problem was found.

    Raises:
        VlaError: an unknown recipe, or a dataset, policy or world that cannot be opened.
    """
    console = Terminal()
    rows: list[dict[str, Any]] = []
    members = find_members(args, may_assume=True)
    with data_runner(args.cluster, console) as runner:
        for member in members:
            findings = [
                *_recipe_known(member),
                *_examine(member, args, console, runner),
                *(_replay(member, args, console) if args.env else ()),
            ]
            _print(member, findings, console)
            rows += [{"name": f"{member.name}: {f.check}", "value": f.verdict, **asdict(f)} for f in findings]
    problems = sum(row["verdict"] == "problem" for row in rows)
    told = f"{problems} problem{'s' if problems != 1 else ''} found." if problems else "No problem found."
    say(f"\n{told}\nNext: {'fix them and run this again' if problems else 'vla data stats ' + args.what}")
    if args.json:
        write_json(args.json, "data doctor", rows, problems=problems)
    return EXIT_FAILED if problems else 0


def _recipe_known(member: Member) -> list[Finding]:
    """Yield a finding if a dataset has no recipe: the other checks then assume one, and it must not be trained on."""
    if not member.assumed:
        return []
    fix = "name the right recipe with --recipe, or write one; the checks below use this assumption"
    return [Finding("recipe", "problem", member.assumed, fix)]


def _examine(member: Member, args: DataDoctorArgs, console: Terminal, runner: TaskRunner) -> list[Finding]:
    with Bar(f"episodes of {member.name}", console) as bar:
        parts, table = open_table_of(member, args.skip_corrupt, None, lambda _, *counts: bar.update(*counts), runner)
    reference = None if args.policy is None else _reference(args.policy, args.statistics_key, member.name)
    notes = [Finding("files", "note", note) for note in notes_of(parts.values())]
    return [*notes, *examine(Patient(member.recipe, tuple(parts.values()), table), reference)]


def _reference(policy: str, key: str | None, name: str) -> dict[str, Any]:
    """Return a checkpoint's statistics of one dataset."""
    from vla_robot.policy.families import family_of

    folder = _checkpoint_folder(policy)
    statistics = dict(family_of(folder).read(folder).config.norm_stats)
    wanted = key or (name if name in statistics else next(iter(statistics)) if len(statistics) == 1 else name)
    if wanted not in statistics:
        raise DataError(unknown("statistics key", wanted, statistics, "Name one with --statistics-key."))
    return dict(statistics[wanted])


def _checkpoint_folder(policy: str) -> Path:
    """Return the checkpoint folder of a policy: the folder itself, or the one that a recipe names."""
    from vla_robot.recipe import read
    from vla_robot.recipe.policy import CheckpointRecipe, PolicyRecipe

    path = find("policies", policy)
    if path.is_dir():
        return path
    recipe = read(PolicyRecipe, path)
    if not isinstance(recipe, CheckpointRecipe):
        raise DataError(f"{path} has no checkpoint, so there are no statistics to compare with.")
    return recipe.checkpoint


def _replay(member: Member, args: DataDoctorArgs, console: Terminal) -> Iterator[Finding]:
    """Yield whether recorded actions succeed in the simulator: units, frame, gripper sign and rate are then right."""
    demos = open_demos(member.location)
    episodes = [episode for episode in demos.episodes if episode.seed is not None and episode.success][: args.replays]
    if not episodes:
        text = "no episode says its seed and that it succeeded, so none can be replayed"
        yield Finding("replay", "note", text, "record with `vla record`, which stores both")
        return
    assert args.env is not None
    done = 0
    with open_world(find_env(args.env).recipe) as world, Bar("episodes replayed", console) as bar:
        for number, episode in enumerate(episodes, start=1):
            done += succeeds_again(world, demos, episode)
            bar.update(number, len(episodes))
    text = f"{done} of {len(episodes)} episodes that succeeded succeed again from their seeds in '{args.env}'"
    if done >= REPLAYS_TO_SUCCEED * len(episodes):
        yield Finding("replay", "fine", text)
    else:
        fix = "compare units, frame, gripper sign and rate with the world's, and the simulator's version"
        yield Finding("replay", "problem", text, fix)


def succeeds_again(world: World, demos: Demos, episode: DemoEpisode) -> bool:
    """Replay an episode's actions in the world; return whether the task succeeded at the end."""
    actions = demos.actions if demos.executed is None else demos.executed
    assert episode.seed is not None
    world.reset(episode.seed)
    for action in actions[episode.start : episode.stop]:
        result = world.step(action)
        if result.terminated or result.truncated:
            return bool(result.success)
    return False


def _print(member: Member, findings: list[Finding], console: Terminal) -> None:
    console.print(f"{member.name}: {member.location}", soft_wrap=True)
    for finding in findings:
        console.print(f"  {SIGNS[finding.verdict]} ", end="", markup=True)
        console.print(f"{finding.check}: {finding.text}", soft_wrap=True)
        if finding.fix:
            console.print(f"      fix: {finding.fix}", soft_wrap=True)
