"""`vla export onnx`: writes a policy's folder of graphs, and compares it with torch before it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.host.durable import write_whole
from vla_robot.core.host.optional import installed
from vla_robot.core.messages import Observation
from vla_robot.policy.onnx.export.chunk_source import ChunkSource
from vla_robot.policy.onnx.export.graphs import SharedWeights, exported
from vla_robot.policy.onnx.export.int8 import quantised
from vla_robot.policy.onnx.export.observations import observations
from vla_robot.policy.onnx.export.source import Source
from vla_robot.policy.onnx.export.token_source import TokenSource
from vla_robot.policy.onnx.frames import as_data
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.record import NUMBERS_APART, Bucket, Parity, Record, file_names
from vla_robot.policy.onnx.runtime import sha256_of
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.policy.vla.reason.cpu_threads import WORTH_SHARING_FLOPS
from vla_robot.policy.vla.small_files import EMBODIMENT, STATISTICS
from vla_robot.recipe.policy import (
    CheckpointRecipe,
    OnnxRecipe,
    OpenVLAOFTRecipe,
    OpenVLARecipe,
    PolicyRecipe,
    VLARecipe,
)
from vla_robot.recipe.reading.dump import dump

PACKAGES = ("vla_robot", "torch", "transformers", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers")
"""Packages whose versions the record names."""
COMPARED = 32
"""Observations of the self-test."""
MOST_INT8_ACTIONS = 0.05
"""Largest mean difference of normalised actions, whose range is 2, that matrices in int8 may cause."""


@dataclass(frozen=True)
class Choices:
    """What is exported.

    Attributes:
        rows: numbers of observations for which graphs are made.
        text: numbers of tokens of a prompt's text for which graphs are made.
        frame: height and width of frames of cameras whose size the policy does not say [px].
        int8: quantise the matrices.
    """

    rows: tuple[int, ...] = (1, 4)
    text: tuple[int, ...] = (32, 64)
    frame: tuple[int, int] = (224, 224)
    int8: bool = False


def export(folder: Path, name: str, recipe: PolicyRecipe, choices: Choices, tell: Callable[[str], None]) -> Record:
    """Write the folder of a policy.

    Args:
        folder: an empty folder.
        name: name of the policy.
        recipe: recipe of the policy.
        choices: what is exported.
        tell: receives what is being done.

    Returns:
        The record of the folder.

    Raises:
        PolicyError: the policy is of a kind or family that is not exported, with the reason, or the written graphs give
            other answers than torch.
        CheckpointError: the policy's folder is incomplete or damaged.
        ContractError: a bucket is shorter than the policy's prompts, or longer than its positions.
    """
    tell("loading the policy in torch")
    checkpoint, source = _loaded(recipe)
    record = _described(source, name, checkpoint, choices)
    _write_small_files(folder, source, checkpoint)
    with SharedWeights(folder) as weights, torch.no_grad():
        for file, step in source.steps(record):
            tell(f"{file}: exporting")
            graph = exported(step, f"'{name}' of the family {record.family} ({file})")
            weights.write(file, quantised(graph) if choices.int8 else graph)
    record = replace(record, files={name: sha256_of(folder / name) for name in file_names(record)})
    record.write(folder)
    tell(f"comparing {COMPARED} observations with torch")
    record = replace(record, parity=compared(source, OnnxPolicy(folder), observations(source, COMPARED, choices.frame)))
    require_parity(record)
    record.write(folder)
    _write_recipe(folder, record, checkpoint.mirror)
    return record


def compared(source: Source, mine: OnnxPolicy, seen: Sequence[Observation]) -> Parity:
    """Compare an exported policy with torch's, one observation at a time and in a batch.

    Args:
        source: the policy in torch.
        mine: the exported one.
        seen: observations; those whose instruction is longer than every graph reads are left out.
    """
    longest = max(bucket.text for bucket in mine.record.buckets)
    seen = [each for each in seen if len(source.prompts(each.instruction)) <= longest]
    if not seen:
        raise ContractError(
            f"no instruction is as short as the longest graph reads, {longest} tokens: give a larger --text."
        )
    theirs = source.answers(seen, mine.record.answer)
    both = np.concatenate([*(mine.answers([each]) for each in seen), mine.answers(seen)])  # alone, and together
    wanted, some = np.concatenate([theirs, theirs]), seen[:8]
    first = np.concatenate([mine.generate.first(mine.inputs([each])) for each in some])
    return Parity(
        observations=len(seen),
        compared=both.size,
        differ=float(np.mean(apart(both, wanted))),
        outputs=float(np.abs(first - source.first(some)).max()),
        actions=float(np.mean(np.abs(mine.normalised(both) - mine.normalised(wanted)))),
    )


def apart(mine: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which tokens differ; which numbers are further apart than other kernels' rounding brings them."""
    return np.abs(mine - theirs) > (NUMBERS_APART if mine.dtype.kind == "f" else 0)


def require_parity(record: Record) -> None:
    """Raise PolicyError if the exported graphs are not what was asked for: fp32 gives torch's answers, all of them."""
    parity = record.parity
    assert parity is not None
    if record.precision == "float32" and parity.differ > 0:
        raise PolicyError(
            f"the exported graphs give other answers than torch: {parity.differ:.2%} of {parity.compared} tokens or "
            f"numbers differ, the graphs' output by at most {parity.outputs:.2g}. No folder was written; please report "
            f"it with the policy's family ({record.family}) and the versions {dict(record.versions)}."
        )
    if parity.actions > MOST_INT8_ACTIONS:
        raise PolicyError(
            f"in int8 the actions differ by {parity.actions:.3f} on average, of a range of 2; at most "
            f"{MOST_INT8_ACTIONS:g} is accepted. No folder was written; export it without --int8."
        )


def _loaded(recipe: PolicyRecipe) -> tuple[CheckpointRecipe, Source]:
    match recipe:
        case OpenVLARecipe() | VLARecipe():
            return recipe, TokenSource(recipe)
        case OpenVLAOFTRecipe():
            return recipe, ChunkSource(recipe)
        case _:
            raise PolicyError(
                f"a policy of kind '{recipe.kind}' is not exported: graphs are made of the kinds 'openvla', "
                "'openvla_oft' and 'vla'. lerobot's policies sample with code of lerobot's, and scripted ones have no "
                "weights; both run where they are."
            )


@torch.no_grad()
def _described(source: Source, name: str, recipe: CheckpointRecipe, choices: Choices) -> Record:
    (seen,) = observations(source, 1, choices.frame)
    batch = source.read([seen])
    rows = tuple(sorted(set(choices.rows)))
    buckets = tuple(Bucket(n, text) for n in rows for text in sorted(set(choices.text)))
    shape, folder = tuple(batch.pixels.shape[1:]), recipe.checkpoint
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt")])
    return Record(
        policy=name,
        family=str(read_json(folder / "config.json").get("model_type")),
        precision="int8" if choices.int8 else "float32",
        inputs=source.model.config.inputs,
        frames=(shape[0], shape[1], shape[2], shape[3]),
        buckets=buckets,
        answer=source.answer(batch),
        prompt=source.prompts.form,
        preprocessing=as_data(source.preprocessor),
        cameras=tuple(source.cameras),
        statistics_key=recipe.statistics_key,
        threads=1 if source.flops(batch) < WORTH_SHARING_FLOPS else 0,
        versions={package: found for package in PACKAGES if (found := installed(package))},
        source={path.name: sha256_of(path) for path in weights},
        files={},
        parity=None,
    )


def _write_small_files(folder: Path, source: Source, recipe: CheckpointRecipe) -> None:
    shutil.copyfile(recipe.checkpoint / "tokenizer.json", folder / "tokenizer.json")
    write_json(folder / STATISTICS, source.statistics)
    if source.embodiment is not None:
        write_json(folder / EMBODIMENT, source.embodiment.to_dict())


def _write_recipe(folder: Path, record: Record, mirror: bool) -> None:
    recipe = OnnxRecipe(
        description=f"{record.policy} without torch, in {record.precision}: graphs of `vla export onnx`",
        checkpoint=Path("."),
        threads=record.threads,
        mirror=mirror,
    )
    write_whole(folder / "recipe.toml", dump(recipe).encode())
