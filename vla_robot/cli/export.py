"""`vla export`: writes a policy as a folder that another project's tools load."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vla_robot.cli.common.cli_common import option, short_path, shown
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.core.host.durable import make_folder, rename, sync_tree, writing
from vla_robot.core.host.optional import attribute, installed
from vla_robot.recipe.policy_source import find_policy

PLUGIN = "lerobot_policy_vla_robot"
"""The distribution that lerobot imports; it also knows the folder's layout."""


@dataclass(frozen=True)
class ExportArgs:
    """Write a policy as a folder that another project's tools load."""

    project: Annotated[Literal["lerobot"], tyro.conf.Positional]
    """lerobot: lerobot-eval and lerobot-rollout take the folder as --policy.path"""
    policy: Annotated[str, tyro.conf.Positional, option("POLICY")]
    """the policy, by name or path"""
    out: Annotated[Path, tyro.conf.Positional, option("FOLDER")]
    """a new folder"""
    env: Annotated[str | None, option("ENV")] = None
    """world whose arm a policy drives that does not say its own, such as a published checkpoint"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write what was exported to this file as JSON"""


def main(args: ExportArgs) -> int:
    """Export.

    Raises:
        MissingDependencyError: the distribution that lerobot imports is not installed.
        DataError: the folder holds something, or cannot be written.
        VlaError: the policy cannot be loaded, or has no weights of its own.
    """
    source = find_policy(args.policy)
    if installed(PLUGIN) is None:
        raise MissingDependencyError(
            f"lerobot's tools find our policies through the package '{PLUGIN}', which is not installed. Install it "
            f"from a clone of the repository: `pip install --no-deps plugins/{PLUGIN}`."
        )
    with _new(args.out) as folder:
        embodiment = attribute(f"{PLUGIN}.saved_folder:write_folder")(folder, source, args.env)
    say(
        f"vla export: {shown(source)} → {short_path(args.out)}, a policy of lerobot's for '{embodiment.name}'\n"
        f"Next: lerobot-eval --policy.path={args.out} --env.type=vla_robot --env.task=lift --eval.batch_size=1 "
        "--eval.n_episodes=5"
    )
    if args.json:
        write_json(args.json, "export", [], policy=source.name, folder=str(args.out), embodiment=embodiment.to_dict())
    return 0


@contextlib.contextmanager
def _new(out: Path) -> Generator[Path]:
    """Yield a folder that gets the name `out` when the block ends, complete. A crash leaves it under another name."""
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise DataError(f"{out} exists already. Choose a new folder.")
    partial = out.with_name(out.name + ".tmp")
    with writing(out):
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        try:
            yield partial
            sync_tree(partial)
            rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
