"""Small policies with weights that make their tokens vary, and their exported folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla_robot.core.ports import ActionCodec
from vla_robot.policy.families import family_of
from vla_robot.policy.onnx.export.write import Choices, export
from vla_robot.policy.onnx.record import Record
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.recipe.policy_source import find_policy

from ..openvla import tiny_policies
from ..vlm import tiny_vlms

SMALL = Choices(rows=(2,), text=(32, 64))


def create(folder: Path, family: str = "openvla", chunk: int = 1, codec: ActionCodec | None = None) -> Path:
    """A new policy in `folder`/START, and in `folder`/NAME the same with larger weights.

    `codec`: says an OpenVLA's actions, with ids of its vocabulary.
    """
    start, made = folder / "start", folder / family
    if family == "openvla":
        tiny_policies.create_policy(start)
        config = json.loads((start / "config.json").read_text())
        config["vla_robot"]["chunk"] = chunk
        (start / "config.json").write_text(json.dumps(config))
    else:
        tiny_vlms.create(start, family, use_state=True)
    code = family_of(start)
    model: Any = code.load_model(start, torch.float32, torch.device("cpu"))
    if codec is not None:
        model.config = replace(model.config, named_codec=codec)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.mkdir()
    for name in ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json", "embodiment.json"):
        (made / name).write_bytes((start / name).read_bytes())
    code.save_model(model, made, start)
    if codec is not None:
        config = json.loads((made / "config.json").read_text())
        config["vla_robot"]["codec"] = codec.kind
        (made / "config.json").write_text(json.dumps(config))
    return made


def load(folder: Path) -> AnyVLAPolicy:
    return family_of(folder).load(folder)


def write(policy: Path, out: Path, choices: Choices = SMALL, told: Sequence[str] = ()) -> Record:
    out.mkdir()
    return export(out, policy.name, find_policy(policy).recipe, choices, list(told).append)
