"""A training step on a fake device: forward on CUDA, and back on "meta", since torch runs a GPU's in its own thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.gpu.counts import features
from benchmarks.gpu.fake_cuda import FakeCuda
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.vla.codecs.scores import scores_of
from vla_robot.policy.vla.model import IGNORE
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.batches.frames import Batch
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.sparse_last_layer import only_what_is_read
from vla_robot.train.trainer import Trainer

from .conftest import OTHERS

ROWS, LENGTH = 4, 20


def batch(model: Any) -> Batch:
    """A batch in main memory."""
    labels = torch.full((ROWS, LENGTH), IGNORE)
    dim = model.config.inputs.proprio_dim
    state = None if dim is None else torch.empty(ROWS, dim)
    return Batch(torch.empty(ROWS, *model.pixel_shape()), labels.clamp(min=0), labels, state)


def nano_on(gpu: FakeCuda, folder: Path) -> OpenVLA:
    with torch.device("meta"):
        model = OpenVLA(OpenVLAConfig.read(folder))
    return gpu.move(model)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_step_stays_on_the_device_and_reads_nothing(nano_folder: Path, device: str) -> None:
    with FakeCuda(device=device) as gpu:
        model = nano_on(gpu, nano_folder)
        only_what_is_read(model)
        rows = batch(model).to(torch.device(device))
        scores_of(
            model.config.codec, model.config.inputs.vocabulary, model.weight.device, model.locations
        )  # tables that are made once
        gpu.lap("before")
        output = model(rows.pixels, rows.input_ids, rows.labels, rows.state, 1.0)
        gpu.lap("forward")
        if device == "meta":
            output.loss.backward()
            weights = dict(model.named_parameters())
            assert {name for name, p in weights.items() if p.grad is None} == set()
    assert not gpu.stages["forward"].reads
    assert gpu.stages["forward"].copies.total() == 1  # places and ids of the labels


def test_a_step_of_the_trainer_reads_its_numbers_once(nano_folder: Path, tmp_path: Path) -> None:
    recipe = DemosFinetuneRecipe(data=(Path("none"),), batch_size=ROWS, micro_batch=2, steps=10, ema=0.9)
    # AdamW's one fused kernel is for real devices only; the others read the number of the step in main memory.
    plain = mock.patch.object(torch.optim, "AdamW", lambda groups, lr, fused: torch.optim.SGD(groups, lr=lr))
    whole = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())  # nor does it cast on others
    with FakeCuda(device="meta") as gpu, plain, whole:
        model = nano_on(gpu, nano_folder)
        only_what_is_read(model)
        data: Any = mock.Mock(batch=lambda _step: batch(model))
        trainer = Trainer(recipe, tmp_path, model, data, Ranks())
        gpu.lap("before")
        trainer.advance()
        gpu.lap("step")
        trainer.close()
    # One `tolist` of loss, accuracy, L1 and norm, which fake tensors count number by number.
    assert gpu.stages["step"].reads == {"train/trainer.py _of_all_ranks": 4}


@pytest.mark.parametrize("name", OTHERS)
def test_every_familys_labels_are_read_in_main_memory(loaded: Callable[[str], AnyVLAPolicy], name: str) -> None:
    """Towers and language models of the library read what they read; our loss reads nothing."""
    real = loaded(name)
    with FakeCuda() as gpu:
        model: Any = gpu.move(real.model.train())
        rows = batch(model).to(torch.device("cuda"))
        if hasattr(model, "_cell"):
            model.perceive = lambda pixels: features(model, pixels)
        gpu.lap("before")
        model(rows.pixels, rows.input_ids, rows.labels, rows.state, 1.0)
        gpu.lap("forward")
    assert [place for place in gpu.stages["forward"].reads if not place.endswith("text_reasoner.py _run")] == []
