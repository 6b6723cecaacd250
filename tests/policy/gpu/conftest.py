"""Policies on a fake GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.counts import Drive, nano
from benchmarks.gpu.fake_cuda import FakeCuda
from vla_robot.policy.families import family_of
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.policy import AnyVLAPolicy, VLAPolicy

from ..vlm.tiny_vlms import create


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    return Path(__file__).resolve().parents[3] / "policies" / "openvla_nano"


@pytest.fixture(scope="session")
def mode() -> FakeTensorMode:
    return FakeTensorMode()


@pytest.fixture(scope="session")
def shipped(nano_folder: Path, mode: FakeTensorMode) -> OpenVLAPolicy:
    """The shipped policy in bfloat16, loaded onto the fake device; its self-test reads logits once."""
    with warnings.catch_warnings(), FakeCuda(Drive().answers(), mode=mode) as gpu:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        policy = nano(nano_folder)
        assert policy.in_blocks
    assert gpu.total().reads == {
        "policy/vla/reason/generate.py require_finite": 1,
        "policy/vla/inputs/observations.py check_image_sensitivity": 1,
    }
    return policy


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lru_cache(lambda name: create(tmp_path_factory.mktemp(name), name, use_state=True))


@pytest.fixture
def loaded(family_folder: Callable[[str], Path]) -> Callable[[str], AnyVLAPolicy]:
    """A tiny policy of a family, in main memory."""

    def load(name: str) -> AnyVLAPolicy:
        folder = family_folder(name)
        return family_of(folder).load(folder)

    return load


def moved(gpu: FakeCuda, real: AnyVLAPolicy) -> AnyVLAPolicy:
    """Move a policy to a fake device; its towers give features of the right shape if they read the frames' sizes."""
    model: Any = gpu.move(real.model)
    if hasattr(
        model, "_cell"
    ):  # the library's code reads the frames' sizes from tensors, and fake ones have no numbers
        model.perceive = lambda pixels: features(model, pixels)
    return VLAPolicy(model, real.preprocessor, real.tokenizer, real.statistics, real.embodiment)


def features(model: Any, pixels: Tensor) -> Tensor:
    """Features of the right shape for towers that read the frames' sizes."""
    tokens = pixels.shape[1] * (pixels.shape[-2] // model._cell) * (pixels.shape[-1] // model._cell)
    width = model._text.config.hidden_size if model.config.published["model_type"] == "gemma4" else model.width
    return pixels.new_empty(len(pixels), tokens, width)
