from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vla_robot
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.openvla.weights import load_model, save_model, unused_names
from vla_robot.policy.vla.loading import Loading

from .tiny_policies import observation


def test_the_door_gives_actions_in_units(tiny_folder) -> None:
    policy = vla_robot.load_policy(tiny_folder)
    (chunk,) = policy.act([observation(step=4)])
    stats = policy.action_stats("toy")
    assert chunk.actions.shape == (1, 7)
    assert (chunk.step, chunk.stamp_ns) == (4, 15)
    assert ((chunk.actions[0, :6] >= stats.q01[:6]) & (chunk.actions[0, :6] <= stats.q99[:6])).all()
    assert set(chunk.stages_ms) == {"preprocess", "towers", "projector", "prefill", "decode", "detokenise"}


def test_a_batch_of_different_instructions_equals_one_by_one(tiny) -> None:
    texts = ["lift the red cube", "open the door", "put the very long named thing on the other thing", "go"]
    seen = [observation(text, seed) for seed, text in enumerate(texts)]
    together = tiny.act(seen)
    for one, chunk in zip(seen, together, strict=True):
        np.testing.assert_array_equal(tiny.act([one])[0].actions, chunk.actions)


def test_each_row_may_have_its_own_statistics(broken) -> None:
    folder = broken()
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    toy = statistics["toy"]
    wide = {name: dict(block) if isinstance(block, dict) else block for name, block in toy.items()}
    wide["action"]["q99"] = [2 * value for value in toy["action"]["q99"]]
    wide["proprio"]["q99"] = [3 * value for value in toy["proprio"]["q99"]]
    short = {**toy, "action": {name: values[:3] for name, values in toy["action"].items()}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"toy": toy, "wide": wide, "short": short}))
    policy = load(folder, Loading(statistics_key="toy"))
    seen = [observation(seed=seed) for seed in range(4)]
    keys = ["wide", None, "short", "toy"]
    together = policy.act(seen, keys)
    assert [chunk.actions.shape for chunk in together] == [(1, 7), (1, 7), (1, 3), (1, 7)]
    for one, key, chunk in zip(seen, keys, together, strict=True):
        np.testing.assert_array_equal(
            load(folder, Loading(statistics_key=key or "toy")).act([one])[0].actions, chunk.actions
        )
    with pytest.raises(ContractError, match="one statistics key per observation, got 1 for 4"):
        policy.act(seen, ["toy"])
    with pytest.raises(ContractError, match="unknown statistics key 'wid'; did you mean 'wide'"):
        policy.act(seen[:1], ["wid"])


def test_the_same_observation_gives_the_same_action_twice(tiny) -> None:
    first, second = (tiny.act([observation()])[0].actions for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": "  "}, "the instruction is empty"),
        ({"state": np.array([np.nan, 0.0])}, "state holds numbers that are not finite"),
        ({"state": np.zeros(3)}, "reads 2 state dimensions, but the observation has 3"),
        ({"images": {"front": np.zeros((8, 8, 3), np.uint8)}}, "unknown camera 'wrist'"),
        ({"images": dict.fromkeys(("front", "wrist"), np.zeros((8, 8, 3)))}, "must be a uint8 array"),
        ({"images": dict.fromkeys(("front", "wrist"), np.zeros((8, 8, 4), np.uint8))}, r"shape \(H, W, 3\)"),
    ],
)
def test_a_bad_observation_is_an_error_and_never_an_action(tiny, change, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        tiny.act([replace(observation(), **change)])


def test_save_load_save_keeps_every_bit(tiny, tmp_path) -> None:
    save_model(tiny.model, tmp_path / "a")
    config = OpenVLAConfig.read(tmp_path / "a")
    again = load_model(tmp_path / "a", config, torch.float32, torch.device("cpu"))
    save_model(again, tmp_path / "b", carry_from=tmp_path / "a")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_file_holds_what_the_reference_needs_and_memory_does_not(small_folder) -> None:
    config = OpenVLAConfig.read(small_folder)
    stored = load_file(small_folder / "model.safetensors")
    unused = unused_names(config)
    assert all(stored[name].shape == shape for name, shape in unused.items())
    assert any(name.endswith("ls1.scale_factor") for name in stored)
    model = load_model(small_folder, config, torch.float32, torch.device("cpu"))
    held = sum(p.numel() for p in model.parameters())
    assert held == sum(t.numel() for name, t in stored.items() if name not in unused)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_still_acts(tiny_folder, dtype: Literal["bfloat16", "float16"]) -> None:
    policy = vla_robot.load_policy(tiny_folder, dtype=dtype)
    assert next(policy.model.parameters()).dtype == getattr(torch, dtype)
    assert np.isfinite(policy.act([observation()])[0].actions).all()


def test_a_missing_folder_and_a_missing_file_are_told(tiny_folder, broken) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist\. Run `vla list policies`"):
        load(tiny_folder / "nowhere")
    folder = broken()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors; download or copy them again"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_truncated_weights_are_told(broken, keep: int) -> None:
    folder = broken()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="is damaged or not safetensors"):
        load(folder)


def test_tensors_that_do_not_fit_are_listed_by_group(broken) -> None:
    folder = broken()
    tensors = load_file(folder / "model.safetensors")
    del tensors["projector.fc1.weight"], tensors["projector.fc2.bias"]
    tensors["vision_backbone.extra"] = torch.zeros(1)
    tensors["language_model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "2 missing: projector.fc1 (1, e.g. projector.fc1.weight); projector.fc2 (1" in message
    assert "1 unexpected: vision_backbone.extra" in message
    assert "1 of another shape" in message and "[2, 2] (expected [640, 32])" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llava"}, "model_type is 'llava', expected 'openvla'"),
        ({"image_sizes": [28, 56]}, "differ; square inputs"),
        ({"image_resize_strategy": "resize-naiv"}, "did you mean 'resize-naive'"),
        ({"timm_model_ids": ["vit_no_such", "vit_small_patch14_reg4_dinov2.lvd142m"]}, "timm cannot build"),
    ],
)
def test_an_impossible_configuration_is_told(broken, change, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load(broken(**change))


def test_json_that_is_none_is_told(broken) -> None:
    folder = broken()
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load(folder)


def test_a_model_that_ignores_its_image_does_not_load(broken) -> None:
    folder = broken()
    tensors = load_file(folder / "model.safetensors")
    tensors["projector.fc3.weight"].zero_()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="a black image and one of noise give the same answer"):
        load(folder)


def test_weights_that_are_not_finite_do_not_load(broken) -> None:
    folder = broken()
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.lm_head.weight"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="self-test failed: the policy's logits are not finite"):
        load(folder)


def test_dataset_statistics_replace_those_of_the_configuration(broken) -> None:
    folder = broken(norm_stats={"other": {}})
    assert list(load(folder).statistics) == ["toy"]


def test_an_unknown_or_ambiguous_statistics_key_is_told(broken) -> None:
    folder = broken()
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics | {"toy_2": statistics["toy"]}))
    with pytest.raises(ContractError, match="did you mean 'toy_2'"):
        load(folder, Loading(statistics_key="toi_2")).act([observation()])
    with pytest.raises(ContractError, match="statistics of 2 datasets; name one with statistics_key: toy, toy_2"):
        load(folder).act([observation()])
