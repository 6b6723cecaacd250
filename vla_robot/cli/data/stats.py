"""`vla data stats`: computes the statistics that normalise a policy's actions, as dataset_statistics.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.data.on_cluster import Cluster, data_runner
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import write_whole, writing
from vla_robot.core.ports import TaskRunner
from vla_robot.data.pipeline.mixture import Member, member_at, members_of, notes_of, open_table_of
from vla_robot.recipe.reading.find import available

ROWS = ("q01", "q99", "mean", "std", "min", "max")


@dataclass(frozen=True)
class MembersArgs:
    """The datasets of a command."""

    what: Annotated[str, tyro.conf.Positional, option("PATH|RECIPE")]
    """a dataset's folder, file or URL, or a recipe of a dataset or mixture"""
    root: Annotated[Path | None, option("FOLDER")] = None
    """folder of the datasets that a recipe names"""
    recipe: Annotated[str | None, option("RECIPE")] = None
    """recipe of a dataset that is given by its PATH; by default the published one of the same name"""


@dataclass(frozen=True)
class StatsArgs(MembersArgs):
    """Compute statistics over all transitions of a dataset or a mixture, train and val, in OpenVLA's schema."""

    out: Annotated[Path | None, option("FILE")] = None
    """write them to this file, e.g. dataset_statistics.json"""
    skip_corrupt: bool = False
    """skip damaged records instead of stopping at the first"""
    cluster: Cluster = None
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def data_stats(args: StatsArgs) -> int:
    """Compute the statistics, or read those that were computed before.

    Raises:
        VlaError: an unknown recipe, or a dataset that is absent, damaged or does not fit its recipe.
    """
    console = Terminal()
    members = find_members(args)
    with data_runner(args.cluster, console) as runner:
        statistics = {member.name: _statistics(member, args, console, runner) for member in members}
    for name, block in statistics.items():
        _print(name, block, console)
    if args.out:
        with writing(args.out):
            write_whole(args.out, json.dumps(statistics, indent=2).encode())
    if args.json:
        write_json(args.json, "data stats", _rows(statistics), statistics=statistics)
    written = f"{short_path(args.out)} holds them." if args.out else "--out dataset_statistics.json writes them."
    say(f"\n{written}\nNext: vla data doctor {args.what}")
    return 0


def find_members(args: MembersArgs, *, may_assume: bool = False) -> tuple[Member, ...]:
    """Return the datasets that a command line names.

    Args:
        args: the command line.
        may_assume: see `member_at`.

    Raises:
        VlaError: there are none, or one has no known recipe.
    """
    names = available("datasets")
    is_recipe = args.what.endswith(".toml") or args.what in {
        n for full in names for n in (full, full.rpartition("/")[2])
    }
    if is_recipe and not (Path(args.what).is_dir() and args.root is None):
        if args.recipe is not None:
            raise DataError(f"'{args.what}' is a recipe itself; leave out --recipe.")
        return members_of(args.what, args.root)
    return (member_at(args.what, args.recipe, may_assume=may_assume),)


def _statistics(member: Member, args: StatsArgs, console: Terminal, runner: TaskRunner) -> dict[str, Any]:
    with Bar(f"episodes of {member.name}", console) as bar:
        parts, table = open_table_of(member, args.skip_corrupt, None, lambda _, *counts: bar.update(*counts), runner)
    for note in notes_of(parts.values()):
        console.print(note, soft_wrap=True)
    return table.statistics


def _print(name: str, block: dict[str, Any], console: Terminal) -> None:
    console.print(f"{name}: {block['num_transitions']} transitions of {block['num_trajectories']} episodes")
    for what in ("action", "proprio"):
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column(what)
        for row in ROWS:
            table.add_column(row, justify="right")
        for dim in range(len(block[what]["q01"])):
            mark = "" if block[what].get("mask", [True] * (dim + 1))[dim] else " (not normalised)"
            table.add_row(f"{dim}{mark}", *(f"{block[what][row][dim]:.4g}" for row in ROWS))
        console.print(table)


def _rows(statistics: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "value": block["num_transitions"], "unit": "transitions", "episodes": block["num_trajectories"]}
        for name, block in statistics.items()
    ]
