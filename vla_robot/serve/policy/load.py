"""Loads the policy that a server serves, as a function of observations, and says on which device it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.ports import PreparesAhead
from vla_robot.core.ports.tasks import Resources
from vla_robot.core.ports.wrapped_policy import history_steps
from vla_robot.recipe.policy import CheckpointRecipe, OnnxRecipe, WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.serve.policy.ahead import Prepare
from vla_robot.serve.policy.batcher import Act

MODEL_MB, MODEL_SHARE = 1000, 1.5
"""Main memory of a policy on a cluster [MB], besides this multiple of its files."""
WEIGHT_FILES = ("*.safetensors", "*.pt", "weights.bin")


@dataclass(frozen=True)
class ServedPolicy:
    """A policy in this process, for remote clients.

    Attributes:
        act: answers observations, prepared or not.
        embodiment: the arm that it was trained for; None if its checkpoint does not say.
        prepare: prepares an observation for `act` in another thread; None where that saves nothing.
    """

    act: Act
    embodiment: Embodiment | None
    prepare: Prepare | None = None


def build_served_policy(source: PolicySource) -> ServedPolicy:
    """Build a policy in this process for remote clients.

    Raises:
        ContractError: it needs the simulator's state, or the embodiment of one arm.
        RecipeError: another server has it already.
        CheckpointError: its folder is incomplete or corrupt.
    """
    from vla_robot.policy.kinds import load_policy

    recipe = weights_of(source)
    policy: Any = load_policy(recipe, None)  # kinds with a checkpoint have statistics keys and an embodiment
    if steps := history_steps(policy):
        raise ContractError(
            f"'{source.name}' reads {steps + 1} observations for an answer, and a served request has one. Run it in "
            f"the loop's own process: vla run --policy {source}."
        )
    act = _seeing_mirrored(policy.act) if recipe.mirror else policy.act
    act = act if recipe.rows is None else _with_rows(act, recipe.rows)
    return ServedPolicy(act, policy.embodiment, _prepare_of(policy, recipe.mirror))


def weights_of(source: PolicySource) -> WeightsRecipe:
    """Return the recipe of a policy that can be served. Raises RecipeError for one without weights."""
    if not isinstance(source.recipe, WeightsRecipe):
        raise RecipeError(
            f"'{source.name}' is a policy of kind '{source.recipe.kind}', and a server needs one with weights: "
            "`vla list policies` shows them."
        )
    return source.recipe


def device_of(source: PolicySource) -> str | None:
    """Return the device of a policy's weights, in words; None if it has none in this process.

    Raises:
        ContractError: there is no such device on this computer.
        MissingDependencyError: torch, or onnxruntime for kind 'onnx', is not installed.
    """
    if not isinstance(source.recipe, WeightsRecipe):
        return None
    if isinstance(source.recipe, OnnxRecipe):
        require("onnxruntime", "edge", f"policy '{source.name}'")
        return f"onnxruntime's {source.recipe.provider}"
    require("torch", "policy", f"policy '{source.name}'")
    from vla_robot.policy.device import device_in_words, torch_device

    return device_in_words(torch_device(source.recipe.device))


def model_needs(source: PolicySource, *, has_gpu: bool) -> Resources:
    """Return what a policy with weights takes of its computer: its files' size and more, and a GPU where one may be."""
    recipe = weights_of(source)
    known = isinstance(recipe, CheckpointRecipe | OnnxRecipe)
    folder = recipe.checkpoint if known else source.path
    files = [] if folder is None else [file for name in WEIGHT_FILES for file in folder.glob(name)]
    device = recipe.provider if isinstance(recipe, OnnxRecipe) else recipe.device.partition(":")[0]
    wants_gpu = has_gpu and device in ("auto", "cuda", "tensorrt")
    files_mb = sum(file.stat().st_size for file in files) / 1e6
    return Resources(1.0, round(MODEL_MB + MODEL_SHARE * files_mb), 1.0 if wants_gpu else 0.0)


def _prepare_of(policy: object, mirror: bool) -> Prepare | None:
    """Return what prepares a policy's observations, which it sees mirrored or not; None where that saves nothing."""
    if not isinstance(policy, PreparesAhead) or not policy.prepares_ahead:
        return None
    from vla_robot.policy.adapter import mirrored

    return (lambda observation: policy.prepare(mirrored(observation))) if mirror else policy.prepare


def _seeing_mirrored(act: Act) -> Act:
    from vla_robot.policy.adapter import mirrored

    # A prepared observation has no images any more, so that nothing of it is mirrored again.
    return lambda observations, keys: act([mirrored(observation) for observation in observations], keys)


def _with_rows(act: Act, rows: int) -> Act:
    """Return the same answers with an execution horizon, which a client's own overrides."""
    from vla_robot.policy.execution_horizon import with_rows

    return lambda observations, keys: [with_rows(chunk, rows) for chunk in act(observations, keys)]
