"""How a checkpoint is read: shards, and what it costs in memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.openvla.weights import load_model
from vla_robot.policy.vla import layout
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.safetensors_files import INDEX, SINGLE


def test_two_shards_load_equal_to_the_single_file(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / SINGLE)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config, cpu = OpenVLAConfig.read(tiny_folder), torch.device("cpu")
    single = load_model(tiny_folder, config, torch.float32, cpu).state_dict()
    sharded = load_model(tmp_path, OpenVLAConfig.read(tmp_path), torch.float32, cpu).state_dict()
    assert list(sharded) == list(single)
    assert all(torch.equal(sharded[name], single[name]) for name in single)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_peaks_at_less_than_1_3_times_the_weights(
    large_folder: Path, tiny_folder: Path, loading_peak: Callable[..., tuple[int, int]], dtype: str
) -> None:
    peak, weights = loading_peak(tiny_folder, large_folder, dtype)
    assert weights > 90e6
    assert peak < 1.3 * weights


def test_matrices_lie_by_columns_for_acting_and_by_rows_for_training(tiny_folder: Path) -> None:
    acting, trainable = load(tiny_folder).model, load(tiny_folder, Loading(trainable=True)).model
    same = zip(acting.named_parameters(), trainable.named_parameters(), strict=True)
    for (name, fast), (_, plain) in same:
        assert torch.equal(fast, plain), name
        assert plain.is_contiguous(), name
    layers = [m for m in acting.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    matrices = [m.weight.flatten(1) for m in layers if m is not acting.language_model.lm_head]
    assert len(matrices) > 20
    assert all(matrix.stride(0) == 1 for matrix in matrices)
    rows = acting.language_model.lm_head.weight, acting.language_model.model.embed_tokens.weight
    assert all(matrix.is_contiguous() for matrix in rows)


def test_what_torch_has_can_be_had_back_and_leaves_the_policy_as_it_is(tiny_folder: Path) -> None:
    projector = load(tiny_folder).model.projector
    plain = layout.as_torch_has_it(projector)
    assert type(plain.fc1) is nn.Linear and plain.fc1.weight.is_contiguous()
    assert torch.equal(plain.fc1.weight, projector.fc1.weight)
    assert type(projector.fc1) is not nn.Linear and not projector.fc1.weight.is_contiguous()
    assert layout.as_torch_has_it(plain) is plain


def test_fused_matrices_are_the_models_own_memory_also_by_columns(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    layer: Any = policy.model.language_model.model.layers[0]
    before = policy.memory_bytes()
    layer.self_attn.k_proj.weight[:] = 7.0
    layer.mlp.up_proj.weight[:] = 7.0
    fused = [matrix for matrix in policy._decoder.matrices()[:4] if (matrix == 7.0).any()]
    assert len(fused) == 2
    assert before == sum(p.nbytes for p in policy.model.parameters()) + sum(b.nbytes for b in policy.model.buffers())
