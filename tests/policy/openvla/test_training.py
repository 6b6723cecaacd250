"""Training: the reference's labels, padding, token accuracy and L1, written out over full logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.model import IGNORE


@pytest.fixture
def batch(tiny: OpenVLAPolicy) -> Mapping[str, Any]:
    """Two texts of different lengths as the reference's collator pads them: 7 action tokens and EOS have labels."""
    rng = np.random.default_rng(3)
    config = tiny.model.config
    end = config.action_vocab_end
    texts = ["lift the red cube", "open the door"]
    rows = [[*tiny.tokenizer(text), *rng.integers(end - 256, end, 7), tiny.tokenizer.eos] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[config.pad_token_id] * (longest - len(row))] for row in rows])
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(rows):
        labels[index, len(row) - 8 : len(row)] = ids[index, len(row) - 8 : len(row)]
    frames = [[rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2)] for _ in rows]
    state = torch.from_numpy(rng.uniform(-1, 1, (2, 2)).astype(np.float32))
    pixels = torch.from_numpy(tiny.preprocessor(frames))
    return {"pixels": pixels, "input_ids": ids, "labels": labels, "state": state}


def full_logits(model: OpenVLA, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Every position's logits, (B, S, V), under the reference's padding mask, and the labels spread likewise."""
    embeds = model.embed(batch["pixels"], batch["input_ids"], batch["state"])
    inserted = embeds.shape[1] - batch["input_ids"].shape[1]
    ids, labels = batch["input_ids"], batch["labels"]
    mask = torch.cat([torch.ones(2, 1 + inserted), (ids != model.config.pad_token_id).float()[:, 1:]], dim=1)
    logits = model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    return logits, torch.cat([labels[:, :1], torch.full((2, inserted), IGNORE), labels[:, 1:]], dim=1)


@torch.no_grad()
def test_loss_is_the_mean_over_labelled_positions_shifted_by_one(tiny: OpenVLAPolicy, batch: Mapping[str, Any]) -> None:
    logits, labels = full_logits(tiny.model, batch)
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    assert float(tiny.model(**batch).loss) == pytest.approx(float(expected), abs=1e-5)


@torch.no_grad()
def test_token_accuracy_and_l1_are_the_references(tiny: OpenVLAPolicy, batch: Mapping[str, Any]) -> None:
    end = tiny.model.config.action_vocab_end
    model = tiny.model
    model.language_model.lm_head.weight[end - 256 : end] *= 3  # so that action tokens win in places
    logits, labels = full_logits(model, batch)
    predicted, wanted = logits[:, :-1].argmax(dim=2), labels[:, 1:].clone()
    hit = (wanted > end - 257).nonzero()[:5]
    wanted[hit[:, 0], hit[:, 1]] = predicted[hit[:, 0], hit[:, 1]]  # some right answers, whatever the weights are
    changed = torch.where(batch["labels"] == IGNORE, IGNORE, wanted[:, -(batch["labels"].shape[1]) :])
    is_action = wanted > end - 257  # 31743 in openvla-7b
    accuracy = ((predicted == wanted) & is_action).sum() / is_action.sum()
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    values = [centres[np.clip(end - ids[is_action].numpy() - 1, 0, 254)] for ids in (predicted, wanted)]
    output = model(**{**batch, "labels": changed})
    assert float(output.token_accuracy) == pytest.approx(float(accuracy))
    assert float(output.l1) == pytest.approx(float(np.abs(values[0] - values[1]).mean()), abs=1e-6)


@torch.no_grad()
def test_more_padding_changes_nothing(tiny: OpenVLAPolicy, batch: Mapping[str, Any]) -> None:
    more = torch.full((2, 5), tiny.model.config.pad_token_id)
    padded = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], more], dim=1),
        "labels": torch.cat([batch["labels"], torch.full((2, 5), IGNORE)], dim=1),
    }
    short, long = tiny.model(**batch), tiny.model(**padded)
    assert float(long.loss) == pytest.approx(float(short.loss), abs=1e-6)
    assert float(long.l1) == pytest.approx(float(short.l1), abs=1e-6)
