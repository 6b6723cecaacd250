"""A training step on a fake device: forward on CUDA, and back on "meta", since torch runs a GPU's in its own thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.fake_cuda import FakeCuda
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.vla.model import IGNORE


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_step_stays_on_the_device(nano_folder: Path, device: str) -> None:
    config = OpenVLAConfig.read(nano_folder)
    rows, length = 4, 20
    with FakeCuda(device=device) as gpu:
        with torch.device("meta"):
            model = OpenVLA(config)
        model = gpu.move(model)
        pixels = torch.empty(rows, *model.pixel_shape(), device=device)
        labels = torch.full((rows, length), IGNORE, device=device)
        state = torch.empty(rows, config.proprio_dim or 0, device=device)
        gpu.lap("before")
        output = model(pixels, labels.clamp(min=0), labels, state, 1.0)
        gpu.lap("forward")
        if device == "meta":
            output.loss.backward()
            weights = dict(model.named_parameters())
            assert {name for name, p in weights.items() if p.grad is None} == set()
    assert gpu.stages["forward"].reads == {"policy/vla/model.py _predict": 1, "policy/vla/model.py _score": 2}
    assert not gpu.stages["forward"].copies
