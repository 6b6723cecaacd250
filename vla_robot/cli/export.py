"""`vla export`: writes a policy as a folder that another project's tools load, or that needs no torch."""

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
from vla_robot.core.host.optional import attribute, installed, require
from vla_robot.recipe.policy_source import PolicySource, find_policy

PLUGIN = "lerobot_policy_vla_robot"
"""The distribution that lerobot imports; it also knows the folder's layout."""


@dataclass(frozen=True)
class ExportArgs:
    """Write a policy as a folder that another project's tools load, or that needs no torch (docs/edge.md)."""

    project: Annotated[Literal["lerobot", "onnx"], tyro.conf.Positional]
    """lerobot: lerobot-eval and lerobot-rollout take the folder as --policy.path;
    onnx: static graphs that `vla run`, `serve` and `eval` take without torch, checked against torch's answers"""
    policy: Annotated[str, tyro.conf.Positional, option("POLICY")]
    """the policy, by name or path"""
    out: Annotated[Path, tyro.conf.Positional, option("FOLDER")]
    """a new folder"""
    env: Annotated[str | None, option("ENV")] = None
    """lerobot: world whose arm a policy drives that does not say its own, such as a published checkpoint"""
    rows: Annotated[tuple[int, ...], option("N ...")] = (1, 4)
    """onnx: numbers of observations that one graph answers; a server's batch is answered by several"""
    text: Annotated[tuple[int, ...], option("TOKENS ...")] = (32, 64)
    """onnx: tokens of the prompt that a graph reads; a longer instruction is refused"""
    frame: Annotated[tuple[int, int], option("HEIGHT WIDTH")] = (224, 224)
    """onnx: frames [px] of a policy that does not say its own cameras; they matter where frames keep their shape"""
    int8: bool = False
    """onnx: matrices in int8 by onnxruntime's quantiser; some tokens differ, how far is measured and written down"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write what was exported to this file as JSON"""


def main(args: ExportArgs) -> int:
    """Export.

    Raises:
        MissingDependencyError: the distribution that lerobot imports, or the exporter, is not installed.
        DataError: the folder holds something, or cannot be written.
        PolicyError: the policy is of a kind that has no graphs, or the graphs give other tokens than torch.
        VlaError: the policy cannot be loaded, or has no weights of its own.
    """
    source = find_policy(args.policy)
    return _to_onnx(args, source) if args.project == "onnx" else _to_lerobot(args, source)


def _to_onnx(args: ExportArgs, source: PolicySource) -> int:
    require("torch", "policy", "exporting a policy")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export", "exporting a policy")
    from vla_robot.policy.onnx.export.write import Choices, export
    from vla_robot.policy.onnx.record import TokenAnswer

    choices = Choices(args.rows, args.text, args.frame, args.int8)
    with _new(args.out) as folder:
        record = export(folder, source.name, source.recipe, choices, lambda line: say(f"  {line}"))
        size = sum(file.stat().st_size for file in folder.iterdir())
    parity = record.parity
    assert parity is not None
    say(
        f"vla export: {shown(source)} → {short_path(args.out)}, {len(record.files) - 1} graphs, {size / 1e6:.1f} MB\n"
        f"Beside torch on {parity.observations} observations: {parity.differ:.2%} of {parity.compared} "
        f"{'tokens' if isinstance(record.answer, TokenAnswer) else 'numbers'} differ, "
        f"the graphs' output by at most {parity.outputs:.1e}\n"
        f"Next: vla run --env lift --policy {args.out}"
    )
    if args.json:
        write_json(args.json, "export", [], policy=source.name, folder=str(args.out), record=record.as_data())
    return 0


def _to_lerobot(args: ExportArgs, source: PolicySource) -> int:
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
