"""What is wrong with a checkpoint or a question is told; it never becomes an action."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load

FRAME = np.zeros((32, 32, 3), dtype=np.uint8)
SEEN = Observation({"front": FRAME, "wrist": FRAME}, np.zeros(2), "lift the red cube", stamp_ns=0, step=0)
PROMPT = np.array([1, 5, 9])
STATE = np.zeros((1, 2))


def test_a_configuration_that_asks_for_more_than_the_weights_hold_is_told(
    tiny_folder: Path, broken: Callable[..., Path]
) -> None:
    text = json.loads((tiny_folder / "config.json").read_text())["text_config"]
    with pytest.raises(CheckpointError, match=r"9 missing: language_model\.model \(9, e\.g\..*layers\.2\."):
        load(broken(text_config={**text, "num_hidden_layers": 3}))


def test_weights_that_are_no_numbers_of_the_right_kind_are_told(broken: Callable[..., Path]) -> None:
    folder = broken()
    tensors = load_file(folder / "model.safetensors")
    tensors["projector.fc1.bias"] = tensors["projector.fc1.bias"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'projector\.fc1\.bias' is torch\.int32, expected floating"):
        load(folder)


def test_an_archive_with_the_name_of_safetensors_is_told(broken: Callable[..., Path]) -> None:
    folder = broken()
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged or not safetensors"):
        load(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_tokenizer_that_is_none_is_told(broken: Callable[..., Path], data: bytes) -> None:
    folder = broken()
    (folder / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        load(folder)


def test_an_instruction_longer_than_the_model_knows_is_told(tiny: OpenVLAPolicy) -> None:
    with pytest.raises(ContractError, match="the language model knows 128 positions; use a shorter instruction"):
        tiny.act([replace(SEEN, instruction="zebra quux " * 40)])


def test_one_bad_row_gives_no_action_to_any(tiny: OpenVLAPolicy) -> None:
    with pytest.raises(ContractError, match="not finite"):
        tiny.act([SEEN, replace(SEEN, state=np.array([0.0, np.inf]))])


def test_logits_that_are_not_finite_raise_whatever_made_them(tiny: OpenVLAPolicy) -> None:
    tiny.model.projector.fc2.weight[0, 0] = torch.inf
    with pytest.raises(PolicyError, match="logits are not finite"):
        tiny.act([SEEN])
