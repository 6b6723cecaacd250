"""Policies on a fake GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.counts import Drive, nano
from benchmarks.gpu.fake_cuda import FakeCuda
from vla_robot.policy.families import FAMILIES, family_of
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy

from ..vlm.tiny_vlms import create

QUICK = ("paligemma", "qwen3_vl", "gemma4", "smolvlm")
OTHERS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "openvla"
]
"""Families beside OpenVLA; what the quick ones do not show is in the slow tests of the others."""


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
    """A tiny policy of a family, in main memory, whose layers are the library's own."""

    def load(name: str) -> AnyVLAPolicy:
        folder = family_folder(name)
        return family_of(folder).load(folder, Loading(trainable=True))

    return load
