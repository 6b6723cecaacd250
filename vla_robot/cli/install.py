"""`vla install`: makes a Python environment of its own for worlds whose packages do not fit this one, with uv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.world.environments.install import disk_mb, make, remove
from vla_robot.world.environments.location import Environment, find_environment, others_of


@dataclass(frozen=True)
class InstallArgs:
    """Make the environment in which worlds of one kind run, in your cache, once; a second call does nothing."""

    name: Annotated[str, tyro.conf.Positional, option("NAME")]
    """an environment's name or path; `vla list environments` shows them"""
    remove: bool = False
    """remove it instead, with those that earlier versions of its list gave"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write name, folder and seconds to this file as JSON"""


def main(args: InstallArgs) -> int:
    """Make or remove an environment.

    Raises:
        RecipeError: there is no such environment.
        MissingDependencyError: uv is absent, or could not make it.
        DataError: another process makes it at this moment, or the disk refuses.
    """
    environment = find_environment(args.name)
    took_s = _remove(environment) if args.remove else _make(environment)
    if args.json:
        row = {"name": environment.name, "folder": str(environment.folder), "made": environment.is_made}
        write_json(args.json, "install", [row | {"seconds": round(took_s, 1)}])
    return 0


def _make(environment: Environment) -> float:
    if environment.is_made:
        say(f"'{environment.name}' is installed already: {environment.folder}")
        return 0.0
    recipe = environment.recipe
    say(
        f"vla install {environment.name}: {recipe.num_packages()} packages for Python {recipe.python}, "
        f"{environment.size}\n  {environment.folder}\n  half a minute on a fast line; Ctrl-C leaves nothing behind",
        flush=True,
    )
    took_s = make(environment)
    say(f"\nInstalled in {took_s:.0f} s; {disk_mb(environment) / 1000:.2g} GB on the disk.")
    for folder in others_of(environment):
        say(f"An earlier list's environment is still there: {folder}. `{environment.command} --remove` removes both.")
    say("Next: `vla list envs` shows the worlds that run in it, `vla doctor` what is installed.")
    return took_s


def _remove(environment: Environment) -> float:
    removed = remove(environment)
    say("\n".join(f"Removed {folder}" for folder in removed) or f"'{environment.name}' is not installed.")
    return 0.0
