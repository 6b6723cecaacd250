"""What a run needs is said before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vla_robot.cli.main import main
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.openvla.create import create
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import load
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.lora import adapt
from vla_robot.train.parallel.activation_checkpointing import checkpoint_activations
from vla_robot.train.parallel.memory_plan import plan_memory
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
    whole, halves = (plan_memory(model, replace(recipe, micro_batch=n)).parts["activations"] for n in (0, 4))
    assert whole == 2 * halves > 0


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
