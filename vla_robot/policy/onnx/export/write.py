"""`vla export onnx`: writes a policy's folder of graphs, and compares it with torch before it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.host.durable import write_whole
from vla_robot.core.host.optional import installed
from vla_robot.core.messages import Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.onnx.export.graphs import SharedWeights, exported
from vla_robot.policy.onnx.export.int8 import quantised
from vla_robot.policy.onnx.export.observations import observations
from vla_robot.policy.onnx.export.steps import Begin, Pass, See, Sizes, Step
from vla_robot.policy.onnx.frames import as_data
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.record import (
    Answer,
    Bucket,
    Parity,
    Record,
    file_names,
    see_name,
    step_name,
    steps_of,
)
from vla_robot.policy.onnx.runtime import sha256_of
from vla_robot.policy.vla.codecs.folder import is_in_config
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.reason.cpu_threads import WORTH_SHARING_FLOPS
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vla.small_files import EMBODIMENT, STATISTICS
from vla_robot.recipe.policy import CheckpointRecipe, OnnxRecipe, OpenVLARecipe, PolicyRecipe, VLARecipe
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
            other tokens than torch.
        CheckpointError: the policy's folder is incomplete or damaged.
        ContractError: a bucket is shorter than the policy's prompts, or longer than its positions.
    """
    tell("loading the policy in torch")
    checkpoint = _checkpoint(recipe)
    policy = _load(checkpoint)
    record = _described(policy, name, checkpoint, choices)
    _write_small_files(folder, policy, checkpoint)
    with SharedWeights(folder) as weights, torch.no_grad():
        for file, step in _steps(policy, record):
            tell(f"{file}: exporting")
            graph = exported(step, f"'{name}' of the family {record.family} ({file})")
            weights.write(file, quantised(graph) if choices.int8 else graph)
    record = replace(record, files={name: sha256_of(folder / name) for name in file_names(record)})
    record.write(folder)
    tell(f"comparing {COMPARED} observations with torch")
    record = replace(record, parity=compared(policy, OnnxPolicy(folder), observations(policy, COMPARED, choices.frame)))
    require_parity(record)
    record.write(folder)
    _write_recipe(folder, record, checkpoint.mirror)
    return record


def compared(policy: AnyVLAPolicy, mine: OnnxPolicy, seen: Sequence[Observation]) -> Parity:
    """Compare an exported policy with torch's, one observation at a time and in a batch.

    Args:
        policy: the policy in torch.
        mine: the exported one.
        seen: observations; those whose instruction is longer than every graph reads are left out.
    """
    answer, longest = mine.record.answer, max(bucket.text for bucket in mine.record.buckets)
    seen = [each for each in seen if len(policy.tokenizer(each.instruction)) <= longest]
    if not seen:
        raise ContractError(
            f"no instruction is as short as the longest graph reads, {longest} tokens: give a larger --text."
        )
    count = answer.chunk * answer.action_dim
    theirs = np.concatenate([policy.generate(policy.read([each]), count) for each in seen])
    alone = np.concatenate([mine.tokens([each]) for each in seen])
    together = mine.tokens(seen)
    both = np.concatenate([alone, together])
    wanted = np.concatenate([theirs, theirs])
    return Parity(
        observations=len(seen),
        tokens=both.size,
        differ=float(np.mean(both != wanted)),
        logits=max(_logits_apart(policy, mine, each) for each in seen[:8]),
        actions=float(np.mean(np.abs(mine.normalised(both) - mine.normalised(wanted)))),
    )


def require_parity(record: Record) -> None:
    """Raise PolicyError if the exported graphs are not what was asked for: fp32 gives torch's tokens, all of them."""
    parity = record.parity
    assert parity is not None
    if record.precision == "float32" and parity.differ > 0:
        raise PolicyError(
            f"the exported graphs give other tokens than torch: {parity.differ:.2%} of {parity.tokens} differ, logits "
            f"by at most {parity.logits:.2g}. No folder was written; please report it with the policy's family "
            f"({record.family}) and the versions {dict(record.versions)}."
        )
    if parity.actions > MOST_INT8_ACTIONS:
        raise PolicyError(
            f"in int8 the actions differ by {parity.actions:.3f} on average, of a range of 2; at most "
            f"{MOST_INT8_ACTIONS:g} is accepted. No folder was written; export it without --int8."
        )


@torch.no_grad()
def _logits_apart(policy: AnyVLAPolicy, mine: OnnxPolicy, seen: Observation) -> float:
    theirs = policy.generator.first_logits(policy.model.prompt(policy.read([seen]))).numpy()
    return float(np.abs(mine.generate.first_logits(mine.inputs([seen])) - theirs).max())


def _checkpoint(recipe: PolicyRecipe) -> CheckpointRecipe:
    if not isinstance(recipe, OpenVLARecipe | VLARecipe):
        raise PolicyError(
            f"a policy of kind '{recipe.kind}' is not exported: graphs are made of the kinds 'openvla' and 'vla', "
            "whose answer is tokens. Kinds with a regression head, lerobot's and scripted ones run where they are."
        )
    return recipe


def _load(recipe: CheckpointRecipe) -> AnyVLAPolicy:
    """Load a policy with its matrices as torch has them, in fp32 on the CPU, whatever its recipe says."""
    family, key = family_of(recipe.checkpoint), recipe.statistics_key
    policy = family.load(recipe.checkpoint, "float32", "cpu", key, recipe.image_preprocessing, trainable=True)
    if policy.model.action_head is not None:
        raise PolicyError(f"{recipe.checkpoint} has an action head; graphs are made of policies of tokens alone.")
    if not is_in_config(policy.codec):
        raise PolicyError(
            f"{recipe.checkpoint} says its actions as '{policy.codec.kind}' over rows of its own; graphs are made of "
            "OpenVLA's bins over consecutive ids alone. Run it where it is."
        )
    return policy


@torch.no_grad()
def _described(policy: AnyVLAPolicy, name: str, recipe: CheckpointRecipe, choices: Choices) -> Record:
    config, model = policy.model.config, policy.model
    (seen,) = observations(policy, 1, choices.frame)
    batch = policy.read([seen])
    inserted = int(model.prompt(batch).embeds.shape[1]) - len(batch.prompts[0])
    rows = tuple(sorted(set(choices.rows)))
    buckets = tuple(Bucket(n, text) for n in rows for text in sorted(set(choices.text)))
    answer = Answer(
        action_dim=max(len(policy.action_stats(key)) for key in policy.statistics),
        chunk=config.chunk,
        layers=_layers(policy),
        inserted=inserted,
        action_vocab_end=int(policy.codec.ids[-1]) + 1,
        n_action_bins=len(policy.codec.ids),
        pad_token_id=config.pad_token_id,
    )
    shape = tuple(batch.pixels.shape[1:])
    return Record(
        policy=name,
        family=_family(recipe.checkpoint),
        precision="int8" if choices.int8 else "float32",
        inputs=config.inputs,
        frames=(shape[0], shape[1], shape[2], shape[3]),
        buckets=buckets,
        answer=answer,
        prompt=policy.tokenizer.form,
        preprocessing=as_data(policy.preprocessor),
        statistics_key=recipe.statistics_key,
        threads=1 if policy.flops(batch) < WORTH_SHARING_FLOPS else 0,
        versions={package: found for package in PACKAGES if (found := installed(package))},
        source={path.name: sha256_of(path) for path in sorted(recipe.checkpoint.glob("*.safetensors"))},
        files={},
        parity=None,
    )


def _layers(policy: AnyVLAPolicy) -> int:
    """Return how many layers have keys and values: those that a reading of a short row leaves."""
    embeds = policy.generator.look_up(torch.zeros(1, 2, dtype=torch.int64))
    _, memory = policy.reasoner.read_rows(RaggedSequence(embeds, torch.tensor([2])), torch.tensor([[1]]))
    return len(memory.tensors) // 2


def _family(folder: Path) -> str:
    return str(read_json(folder / "config.json").get("model_type"))


def _steps(policy: AnyVLAPolicy, record: Record) -> Iterator[tuple[str, Step]]:
    """Yield each graph's file and its step."""
    for rows in sorted({bucket.rows for bucket in record.buckets}):
        see = See(policy, Sizes(Bucket(rows, 1), record.frames, record.answer))
        yield see_name(rows), see
        (features,) = see(*see.inputs.values())
        for bucket in (bucket for bucket in record.buckets if bucket.rows == rows):
            sizes = Sizes(bucket, record.frames, record.answer)
            begin = Begin(policy, sizes, features)
            yield step_name("begin", bucket), begin
            _, *memory = begin(*begin.inputs.values())
            for name in steps_of(record.answer)[1:]:
                tokens = record.answer.action_dim - (name == "correct")
                yield step_name(name, bucket), Pass(policy, sizes, memory, tokens)


def _write_small_files(folder: Path, policy: AnyVLAPolicy, recipe: CheckpointRecipe) -> None:
    shutil.copyfile(recipe.checkpoint / "tokenizer.json", folder / "tokenizer.json")
    write_json(folder / STATISTICS, policy.statistics)
    if policy.embodiment is not None:
        write_json(folder / EMBODIMENT, policy.embodiment.to_dict())


def _write_recipe(folder: Path, record: Record, mirror: bool) -> None:
    recipe = OnnxRecipe(
        description=f"{record.policy} without torch, in {record.precision}: graphs of `vla export onnx`",
        checkpoint=Path("."),
        threads=record.threads,
        mirror=mirror,
    )
    write_whole(folder / "recipe.toml", dump(recipe).encode())
