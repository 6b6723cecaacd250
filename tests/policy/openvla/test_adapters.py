"""LoRA adapters beside base weights, against peft's own files and its own merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.openvla.family import OPENVLA
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading

TARGETS = r".*\.(q_proj|o_proj|gate_proj|qkv|fc1|fc2)"


@pytest.fixture
def adapted(tiny_folder: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """Options of LoraConfig -> a folder with base weights and peft's own adapter files, and peft's merged weights."""

    def make(**options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path / "adapted"
        shutil.copytree(tiny_folder, folder)
        torch.manual_seed(3)
        given = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS, "init_lora_weights": False, **options}
        tuned: Any = get_peft_model(load(tiny_folder, Loading(trainable=True)).model, LoraConfig(**given))  # type: ignore[arg-type]
        tuned.save_pretrained(folder)
        reread = PeftModel.from_pretrained(load(tiny_folder, Loading(trainable=True)).model, str(folder))  # type: ignore[arg-type]
        return folder, dict(reread.merge_and_unload().named_parameters())

    return make


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"r": 1, "lora_alpha": 0.5}])
def test_adapters_are_merged_as_peft_merges_them(adapted, tiny_folder: Path, options: dict[str, Any]) -> None:
    folder, wanted = adapted(**options)
    base = dict(load(tiny_folder).model.named_parameters())
    loaded = dict(load(folder).model.named_parameters())
    changed = [name for name in loaded if not torch.equal(loaded[name], base[name])]
    assert len(changed) == 16  # of 2 decoder layers 6, of 2 towers 6, of the projectors of patches and state 4
    for name, weight in loaded.items():
        np.testing.assert_allclose(weight, wanted[name].detach(), atol=1e-6, err_msg=name)


def test_rows_that_are_read_alone_are_merged_too(adapted) -> None:
    folder, wanted = adapted()
    rows = OPENVLA.rows(folder)
    for name, weight in load(folder).model.named_parameters():
        half = len(weight) // 2
        read = torch.cat([rows[name](0, half), rows[name](half, len(weight))])
        np.testing.assert_allclose(read, wanted[name].detach(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "adapters with use_dora, which are not merged here. Merge them first: peft's"),
        ({"bias": "all"}, "adapters with bias"),
        ({"modules_to_save": ["lm_head"]}, "adapters with modules_to_save"),
        ({"peft_type": "IA3"}, "adapters of peft_type 'IA3'"),
        ({"r": 3}, r"with r = 3 do not fit '"),
        ({"r": 0}, r"r is 0 and lora_alpha is 12"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf; a finite number"),
    ],
)
def test_adapters_of_another_kind_are_refused_by_name(adapted, change: dict[str, Any], reason: str) -> None:
    folder, _ = adapted()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


def test_pickled_adapters_are_never_read(adapted) -> None:
    folder, _ = adapted()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin could run code when it is read"):
        load(folder)


@pytest.mark.parametrize("place", [".", "lora_adapter"])
def test_adapters_without_base_weights_say_what_to_do(adapted, place: str) -> None:
    folder, _ = adapted()
    (folder / "model.safetensors").unlink()
    (folder / place).mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / place / name)
    with pytest.raises(CheckpointError, match=r"Only LoRA adapters are there, in .*merge_and_unload"):
        load(folder)
