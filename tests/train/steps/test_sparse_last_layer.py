"""The last layer leaves out positions without a label, and loss and gradients stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.finetune import finetune
from vla_robot.train.lora import adapt
from vla_robot.train.sparse_last_layer import only_what_is_read


@pytest.fixture
def start(recipe: FinetuneRecipe, tmp_path: Path) -> Path:
    return finetune(replace(recipe, steps=1), tmp_path / "run", lambda progress: None).policy


def batch(labelled: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of noise; each has labels from one column of the text to another."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(3, 300, (len(labelled), 16)))
    labels = torch.full_like(ids, IGNORE)
    for row, (first, stop) in enumerate(labelled):
        labels[row, first:stop] = ids[row, first:stop]
    pixels = torch.from_numpy(rng.normal(size=(len(labelled), 1, 6, 28, 28)).astype(np.float32))
    return pixels, ids, labels, torch.from_numpy(rng.uniform(-1, 1, (len(labelled), 1)).astype(np.float32))


def learned(model: OpenVLA, rows: list[tuple[int, int]]) -> tuple[float, dict[str, torch.Tensor]]:
    output = model(*batch(rows), 2.0)
    output.loss.backward()
    return float(output.loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [[(13, 16), (13, 16)], [(6, 9), (11, 13), (3, 4)], [(1, 16)], [(15, 16), (1, 2)]])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_loss_and_gradients_stay(
    recipe: FinetuneRecipe, start: Path, rows: list[tuple[int, int]], lora_rank: int
) -> None:
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for changed in (False, True):
        model = adapt(load(start).model, replace(recipe, lora_rank=lora_rank))
        if changed:
            only_what_is_read(model)
        found.append(learned(model, rows))
    (loss, gradients), (same_loss, same_gradients) = found
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_without_labels_the_layer_is_whole(start: Path) -> None:
    pixels, ids, labels, state = batch([(13, 16)])
    hidden: list[torch.Tensor] = []
    for changed in (False, True):
        model = load(start).model
        if changed:
            only_what_is_read(model)
            model(pixels, ids, labels, state)
        embeds = model.embed(pixels, ids, state)
        hidden.append(model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    assert torch.equal(*hidden)
