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
    with pytest.raises(CheckpointError, match=r"tensor 'projector\.fc1\.bias' in .* is not in F64, F32, F16, BF16"):
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
    with pytest.raises(ContractError, match="the language model has 128 positions; use a shorter instruction"):
        tiny.act([replace(SEEN, instruction="zebra quux " * 40)])


def test_no_observation_is_told(tiny: OpenVLAPolicy) -> None:
    with pytest.raises(ContractError, match="a batch needs at least one observation"):
        tiny.act([])


def test_one_bad_row_gives_no_action_to_any(tiny: OpenVLAPolicy) -> None:
    with pytest.raises(ContractError, match="not finite"):
        tiny.act([SEEN, replace(SEEN, state=np.array([0.0, np.inf]))])


def test_logits_that_are_not_finite_raise_whatever_made_them(tiny: OpenVLAPolicy) -> None:
    tiny.model.projector.fc2.weight[0, 0] = torch.inf
    with pytest.raises(PolicyError, match="logits are not finite"):
        tiny.act([SEEN])


@pytest.mark.parametrize(
    ("images", "prompts", "state", "reason"),
    [
        ([[FRAME] * 2] * 2, [PROMPT], STATE, "as many prompts as images, got 1 and 2"),
        ([[FRAME]], [PROMPT], STATE, r"reads 2 camera\(s\), but the batch has 1"),
        ([[FRAME] * 2], [np.array([], dtype=np.int64)], STATE, r"must be \(L,\) integer ids.* of shape \(0,\)"),
        ([[FRAME] * 2], [np.array([1.0, 2.0])], STATE, "must be .* integer ids, BOS first, got float64"),
        ([[FRAME] * 2], [np.array([1, 640])], STATE, r"prompt ids must lie in \[0, 640\), got \[1, 640,"),
        ([[FRAME] * 2], [PROMPT], None, r"reads a state of shape \(1, 2\), but the batch has None"),
        ([[FRAME] * 2], [PROMPT], np.zeros((1, 3)), r"a state of shape \(1, 2\), but the batch has \(1, 3\)"),
        ([[FRAME] * 2], [PROMPT], np.full((1, 2), np.nan), "state holds numbers that are not finite"),
        ([[FRAME.astype(np.float32)] * 2], [PROMPT], STATE, "must be a uint8 array"),
    ],
)
def test_the_bare_model_refuses_what_does_not_fit(tiny: OpenVLAPolicy, images, prompts, state, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        tiny.generate_tokens(images, prompts, state)
