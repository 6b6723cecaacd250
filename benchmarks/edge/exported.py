"""`vla bench policy` of an exported policy, and on request of the weights that it was made of, without our engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.edge.worker import plain_way, scenes_of
from benchmarks.models.turns import Contender, window
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Observation
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.record import WEIGHTS, Record, TokenAnswer
from vla_robot.policy.onnx.runtime import sha256_of
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.recipe.policy import CheckpointRecipe, OnnxRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.load import device_of

if TYPE_CHECKING:
    from benchmarks.policy import PolicyArgs, Report

GRAPHS = "graphs"


def measure_exported(args: PolicyArgs, source: PolicySource, console: Terminal) -> Report:
    """Measure an exported policy, in turns with the baseline that was asked for.

    Raises:
        RecipeError: an option that changes weights, which are exported as they are; or another policy's baseline.
        VlaError: the folder or the baseline cannot be loaded.
    """
    from benchmarks.policy import Case, Report, timed_turns

    recipe = source.recipe
    assert isinstance(recipe, OnnxRecipe)
    _require_as_exported(args)
    policy = OnnxPolicy(recipe.checkpoint, recipe.provider, recipe.threads, recipe.statistics_key)
    scenes = scenes_of(str(recipe.checkpoint))
    cases, compare = dict[Case, Contender](), True
    if args.baseline is not None:
        require("torch", "policy", "a baseline")
        _require_origin(args.baseline, policy.record)
        plain = plain_way(args.baseline, str(recipe.checkpoint))
        compare = plain.sees_all
        cases[Case(policy.record.precision, 1, plain=True)] = _timed_as_one(plain.answer, scenes)
    cases |= {Case(policy.record.precision, n, how=GRAPHS): _graphs(policy, scenes, n) for n in args.batch}
    sizes = {Case(policy.record.precision, 1, how=GRAPHS).variant: (recipe.checkpoint / WEIGHTS).stat().st_size}
    timed = timed_turns(cases, args, console)
    return Report(timed, {}, {}, None, sizes, device_of(source) or "", compare)


def _graphs(policy: OnnxPolicy, scenes: Sequence[Observation], size: int) -> Contender:
    """Return the exported inference of a batch, from frames to normalised actions."""

    def infer(number: int) -> tuple[NDArray[Any], StageTimer]:
        stages = StageTimer()
        inputs = policy.inputs(window(scenes, number, size))
        stages.lap("preprocess")
        answers, _ = policy.generate(inputs, stages)
        policy.normalised(answers)
        stages.lap("detokenise")
        return answers, stages

    return infer


def _timed_as_one(answer: Any, scenes: Sequence[Observation]) -> Contender:
    def infer(number: int) -> tuple[NDArray[Any], StageTimer]:
        return np.array(answer([scenes[number % len(scenes)]])), StageTimer()

    return infer


def _require_as_exported(args: PolicyArgs) -> None:
    asked = {
        "--dtype": args.dtype != ("float32",),
        "--compiled": args.compiled,
        "--quantise": bool(args.quantise),
    }
    for option in (name for name, is_asked in asked.items() if is_asked):
        raise RecipeError(
            f"{option} is for policies in torch; an exported policy is measured as it is: export it again, with or "
            "without --int8, and measure that folder."
        )


def _require_origin(name: str, record: Record) -> None:
    """Raise RecipeError unless a policy has the weights of which graphs were made, and says tokens."""
    if not isinstance(record.answer, TokenAnswer):
        raise RecipeError("--baseline is for policies that say tokens, which transformers' `generate` can say too.")
    recipe = find_policy(name).recipe
    if not isinstance(recipe, CheckpointRecipe):
        raise RecipeError(f"--baseline '{name}' is of kind '{recipe.kind}', which has no weights for transformers.")
    here: Path = recipe.checkpoint
    for file, digest in record.source.items():
        if not (here / file).is_file() or sha256_of(here / file) != digest:
            raise RecipeError(
                f"--baseline '{name}' has other weights than those of which the graphs were made ('{record.policy}'): "
                f"{here / file} differs."
            )
