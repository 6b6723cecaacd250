"""Muon beside torch's own, its share of a model, and a run with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.checkpoint import learning
from vla_robot.train.finetune import finetune, open_run
from vla_robot.train.optimizers import MOMENTS, Muon, orthogonal
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.trainer import Progress

SHAPES = ((24, 8), (8, 24), (8, 24), (16, 16))


def parameters() -> list[nn.Parameter]:
    numbers = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=numbers)) for shape in SHAPES]


def stepped(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int) -> list[torch.Tensor]:
    numbers = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in weights:
            p.grad = torch.randn(p.shape, generator=numbers)
        optimizer.step()
    return [p.detach() for p in weights]


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_its_steps_are_those_of_torchs_muon_in_float32(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_robot.train.optimizers.AT_ONCE", at_once)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch's own rounds to bfloat16
    ours, theirs = parameters(), parameters()
    mine = Muon([{"params": ours, "weight_decay": 0.1}], {"lr": 0.02})
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for a, b in zip(stepped(mine, ours, 5), stepped(torchs, theirs, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_of_a_gradient_weigh_alike(shape: tuple[int, int]) -> None:
    one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(one)[0])
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_it_takes_the_matrices_of_hidden_layers_and_adamw_all_else(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    run, _ = open_run(replace(recipe, optimizer="muon"), tmp_path, Ranks())
    run.advance()
    of = {name: tuple(run.optimizers.moments(p)) for name, p in learning(run.model).items()}
    assert set(of.values()) == set(MOMENTS.values())
    by_muon = {name for name, moments in of.items() if moments == MOMENTS[Muon]}
    assert all(name.endswith(".weight") and run.model.get_parameter(name).ndim == 2 for name in by_muon)
    assert {"language_model.model.layers.0.self_attn.q_proj.weight", "projector.fc1.weight"} <= by_muon
    assert not {name for name in by_muon if "embed" in name or "lm_head" in name}


def test_a_run_with_it_goes_on_bit_for_bit(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, optimizer="muon")

    def weights(out: Path, *stops: Callable[[], bool]) -> dict[str, torch.Tensor]:
        for stop in (*stops, lambda: False):
            finetune(recipe, out, quiet, stop)
        return load_file(out / "final" / "model.safetensors")

    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped", iter([False, False, True]).__next__)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    policy = finetune(replace(recipe, optimizer="adamw"), tmp_path / "adamw", quiet).policy
    by_adamw = load_file(policy / "model.safetensors")
    assert not torch.equal(whole["projector.fc1.weight"], by_adamw["projector.fc1.weight"])


def quiet(_: Progress) -> None:
    pass


@pytest.mark.parametrize("other", [{"lora_rank": 4}, {"shard": True}])
def test_it_needs_whole_matrices(recipe: DemosFinetuneRecipe, other: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match='optimizer is "muon", which needs whole matrices; take "adamw"'):
        replace(recipe, optimizer="muon", **other)
