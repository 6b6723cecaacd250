"""What a run needs is said before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.gpu.fake_cuda import FakeCuda
from vla_robot.cli.main import main
from vla_robot.core.errors import RecipeError
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.openvla.create import create
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.finetune import _on_device
from vla_robot.train.lora import adapt, freeze_in_bf16
from vla_robot.train.mixed_precision import mixed_precision
from vla_robot.train.parallel import memory_plan
from vla_robot.train.parallel.activation_checkpointing import checkpoint_activations
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.memory_plan import _Kept, _some_frames, parts_of, plan_memory, require_room
from vla_robot.train.parallel.plan_ahead import planned_parts
from vla_robot.train.sparse_last_layer import only_what_is_read


def created(recipe: DemosFinetuneRecipe, folder: Path) -> Path:
    demos = open_demos(recipe.data)
    statistics = dataset_statistics("light", demos.actions, demos.states, len(demos.episodes))
    create(folder, recipe.architecture, demos.embodiment, statistics, demos.texts, seed=0)
    return folder


@pytest.fixture
def start(recipe: DemosFinetuneRecipe, tmp_path: Path) -> Path:
    return created(recipe, tmp_path / "start")


@pytest.fixture
def model(start: Path) -> OpenVLA:
    model = load(start).model
    only_what_is_read(model)
    return model


def test_all_weights_need_sixteen_bytes_each_and_their_average_four_more(
    recipe: DemosFinetuneRecipe, model: OpenVLA
) -> None:
    count = sum(p.numel() for p in model.parameters())
    parts = plan_memory(adapt(model, recipe), recipe).parts
    assert parts["weights"] == parts["gradients"] == parts["average"] == 4 * count
    assert parts["moments"] == 8 * count


def test_lora_needs_gradients_and_moments_of_its_matrices_alone(recipe: DemosFinetuneRecipe, model: OpenVLA) -> None:
    recipe = replace(recipe, lora_rank=2)
    plan = plan_memory(adapt(model, recipe), recipe)
    assert 0 < plan.parts["gradients"] < 0.25 * plan.parts["weights"]


def test_activations_grow_with_the_frames_that_go_through_at_once(recipe: DemosFinetuneRecipe, model: OpenVLA) -> None:
    adapt(model, recipe)
    whole, halves = (plan_memory(model, replace(recipe, micro_batch=n)).parts for n in (0, 4))
    assert whole["activations"] == 2 * halves["activations"] > 0 and whole["casts"] == halves["casts"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_plan_is_what_autograd_keeps_of_the_whole_batch(
    recipe: DemosFinetuneRecipe, model: OpenVLA, lora_rank: int, bf16: bool
) -> None:
    recipe = replace(recipe, lora_rank=lora_rank, bf16=bf16)
    adapt(model, recipe)
    parts = plan_memory(model, recipe).parts
    kept = _Kept.of(recipe.batch_size, model, recipe, torch.device("cpu")).bytes(checkpointing=False)
    assert parts["activations"] + parts["casts"] == kept
    if bf16:  # matrices that autocast rounds are there once, however many frames: half of the weights' bytes
        linear = sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        assert 0.3 * linear < parts["casts"] < 0.6 * linear


def test_frozen_matrices_in_bf16_need_half_and_no_copies_and_give_the_same_loss_and_gradients(
    recipe: DemosFinetuneRecipe, start: Path
) -> None:
    recipe, model = replace(recipe, lora_rank=2, bf16=True), load(start, Loading(trainable=True)).model
    only_what_is_read(model)
    adapt(model, recipe)
    before, was = plan_memory(model, recipe).parts, _learned(model)
    freeze_in_bf16(model)
    after, now = plan_memory(model, recipe).parts, _learned(model)
    frozen = sum(2 * p.numel() for p in model.parameters() if p.dtype is torch.bfloat16)
    assert before["weights"] - after["weights"] == frozen > 0
    assert after["casts"] < 0.2 * before["casts"] and after["activations"] == before["activations"]
    assert was.keys() == now.keys() and len(was) > 10
    assert all(torch.equal(was[name], now[name]) for name in was)


def _learned(model: OpenVLA) -> dict[str, Tensor]:
    """The loss of some frames, and the gradients."""
    pixels, ids, labels, state = _some_frames(2, model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(pixels.shape, generator=generator), ids, labels, state).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found | {"loss": loss.detach()}


def test_what_cannot_fit_is_refused_before_the_model_moves(
    recipe: DemosFinetuneRecipe, model: OpenVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(model, recipe)
    needed = 20 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(memory_plan, "_available", lambda device: needed)
    require_room(model, torch.device("cpu"))
    monkeypatch.setattr(memory_plan, "_available", lambda device: needed - 1)
    monkeypatch.setattr(model, "to", lambda device: pytest.fail("the model moved"))
    with pytest.raises(RecipeError, match=r"needs about .* \(weights .*, and the activations come on top"):
        _on_device(model, recipe, Ranks(), torch.device("cpu"), lambda plan: None)


def test_blocks_that_are_recomputed_need_less(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    deep = replace(recipe, architecture=replace(recipe.architecture, tower_depth=8, llm_layers=8))
    model = load(created(deep, tmp_path / "deep")).model
    only_what_is_read(model)
    adapt(model, recipe)
    recipes = (recipe, replace(recipe, activation_checkpointing=True))
    kept, again = (plan_memory(model, one).parts["activations"] for one in recipes)
    assert 0 < again < 0.4 * kept


def test_the_plan_of_recomputed_blocks_is_what_they_keep(recipe: DemosFinetuneRecipe, model: OpenVLA) -> None:
    adapt(model, recipe)
    checkpointing = replace(recipe, activation_checkpointing=True)
    planned = plan_memory(model, checkpointing).parts["activations"] / recipe.batch_size
    checkpoint_activations(model)
    held = plan_memory(model, recipe).parts["activations"] / recipe.batch_size  # counted while blocks let go
    assert held < planned < 2 * held, "beside what is held, one block is computed again"


def test_ranks_that_share_a_model_need_their_part_and_one_block(recipe: DemosFinetuneRecipe, model: OpenVLA) -> None:
    adapt(model, recipe)
    whole, half = plan_memory(model, recipe).parts, plan_memory(model, recipe, count=2).parts
    for name in ("gradients", "moments", "average"):
        assert half[name] == whole[name] // 2
    assert whole["weights"] // 2 < half["weights"] < 1.5 * whole["weights"]
    assert half["activations"] == whole["activations"]


def test_the_command_says_it_and_trains(start: Path, demos_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["--policy", str(start), "--data", str(demos_folder), "--lora-rank", "32", "--steps", "1"]
    assert main(["finetune", *arguments, "--out", str(out), "--json", str(tmp_path / "out.json")]) == 0
    assert "needs about" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["value"] == 1
    assert (out / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("keys", [{}, {"bf16": True, "lora_rank": 8}, {"train": ("projector",)}], ids=str)
def test_a_plan_without_weights_is_that_of_the_model(
    recipe: DemosFinetuneRecipe, model: OpenVLA, keys: dict[str, Any]
) -> None:
    recipe = replace(recipe, **keys)
    with torch.device("meta"):
        bare = OpenVLA(model.config)
    adapt(model, recipe)
    if recipe.bf16:
        freeze_in_bf16(model)
    only_what_is_read(model)
    wanted, planned = plan_memory(model, recipe).parts, planned_parts(bare, recipe)
    assert planned.pop("activations") == pytest.approx(wanted.pop("activations"), rel=0.06)
    assert planned == wanted


def test_the_plan_is_what_a_gpu_keeps(recipe: DemosFinetuneRecipe, model: OpenVLA) -> None:
    """Counted with fake tensors of CUDA, in fp32, since torch casts on real devices only."""
    with torch.device("meta"):
        bare = OpenVLA(model.config)
    planned = planned_parts(bare, recipe)
    with FakeCuda() as gpu:
        there = adapt(gpu.move(model), recipe)
        only_what_is_read(there)
        kept = parts_of(there, recipe)
    for name, size in kept.items():
        assert size == pytest.approx(planned[name], rel=0.05, abs=5000), name


def test_on_a_cpu_attention_is_float32_and_matrix_products_are_bfloat16() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    with mixed_precision(torch.device("cpu"), True):
        seen = scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), value=v.bfloat16(), is_causal=True)
        assert linear(q, k[0, 0]).dtype == torch.bfloat16
    q, k, v = (x.bfloat16().float() for x in (q, k, v))
    exact = scaled_dot_product_attention(q, k, v, is_causal=True).bfloat16()
    assert torch.equal(seen, exact)
    with mixed_precision(torch.device("cpu"), False):
        assert linear(q, k[0, 0]).dtype == torch.float32
