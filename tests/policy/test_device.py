"""A device is named in one way everywhere, and one that is not there is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vla_robot.core.errors import ContractError, PolicyError, RecipeError
from vla_robot.policy.device import device_in_words, torch_device
from vla_robot.policy.families import FAMILIES
from vla_robot.policy.kinds import load_policy
from vla_robot.policy.vla.engine.compiled import require_compiler
from vla_robot.policy.vla.engine.quantise import require_quantiser
from vla_robot.policy.vla.reason.cpu_threads import threads_for
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.recipe.policy import (
    HoldRecipe,
    LeRobotRecipe,
    OFTRecipe,
    OpenVLAOFTRecipe,
    OpenVLARecipe,
    RemoteRecipe,
    VLARecipe,
    WeightsRecipe,
)
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.train.parallel.ddp import Ranks

ABSENT = "cuda:99"
OFT = OFTRecipe(chunk=8, action_dim=7, normalisation="bounds_q99", cameras=("front",))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA T{device.index}")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_a_gpu_and_says_which() -> None:
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda", 0)
    assert device_in_words(torch_device("auto")) == "cuda:0 (NVIDIA T0)"
    assert torch_device("cuda:1") == torch_device(torch.device("cuda:1")) == torch.device("cuda", 1)
    assert device_in_words(torch_device("cpu")) == "cpu"
    with pytest.raises(ContractError, match=r"'cuda:2', but torch sees 2 GPUs: cuda:0, cuda:1\. Or choose 'cpu'"):
        torch_device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_each_rank_has_its_own_gpu() -> None:
    second = Ranks(rank=1, count=2, local=1)
    assert second.device("auto") == second.device("cuda") == torch.device("cuda", 1)
    assert second.device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match="2 processes need a GPU each: write 'cuda'"):
        second.device("cuda:1")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_and_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ContractError, match="was built without CUDA"):
        torch_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ContractError, match="torch sees no GPU; `nvidia-smi`"):
        torch_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ContractError, match="no GPU of Apple's"):
        torch_device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:1000", "cuda: 1", "CPU", "", "meta", "auto\n", 3.5])
def test_what_is_no_name_is_refused_in_recipes_too(name: str) -> None:
    with pytest.raises(ContractError, match="it must be auto, cpu, cuda, cuda:N or mps"):
        torch_device(name)
    with pytest.raises(RecipeError, match="it must be auto"):
        OpenVLARecipe(checkpoint=Path("x"), device=name)
    with pytest.raises(RecipeError, match="it must be auto"):
        DemosFinetuneRecipe(device=name)


def recipes(folder: Path) -> list[WeightsRecipe]:
    """A recipe of every kind and family, of folders that hold no more than the family's name."""
    found: list[WeightsRecipe] = [LeRobotRecipe(checkpoint=folder, device=ABSENT)]
    for family in FAMILIES:
        (folder / family).mkdir()
        (folder / family / "config.json").write_text(json.dumps({"model_type": family}))
        found.append(VLARecipe(checkpoint=folder / family, device=ABSENT))
    of_openvla = folder / "openvla"
    found.append(OpenVLARecipe(checkpoint=of_openvla, device=ABSENT))
    return [*found, OpenVLAOFTRecipe(checkpoint=of_openvla, oft=OFT, device=ABSENT)]


def test_every_kind_and_family_takes_a_device_and_checks_it_before_it_reads(tmp_path: Path) -> None:
    for recipe in recipes(tmp_path):
        with pytest.raises(ContractError, match="device is 'cuda:99', but"):
            load_policy(recipe, None)


def test_a_command_may_name_another_device_for_weights_here_and_for_nothing_else(tmp_path: Path) -> None:
    source = PolicySource(OpenVLARecipe(checkpoint=tmp_path), tmp_path)
    moved = source.on_device("cuda:1")
    assert isinstance(moved.recipe, OpenVLARecipe)
    assert moved.recipe.device == "cuda:1" and source.on_device(None) == source
    assert moved.fingerprint() == source.fingerprint()
    with pytest.raises(RecipeError, match="it must be auto"):
        source.on_device("gpu")
    for recipe in (HoldRecipe(), RemoteRecipe(address="tcp://127.0.0.1:5580")):
        with pytest.raises(RecipeError, match="has no weights in this process"):
            PolicySource(recipe, tmp_path).on_device("cpu")


def test_kernels_that_a_device_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mps, cuda = torch.device("mps"), torch.device("cuda", 0)
    for how in ("int8", "int4"):
        with pytest.raises(PolicyError, match="multiplies on a CPU or with CUDA, not on 'mps'"):
            require_quantiser(how, mps)
    with pytest.raises(PolicyError, match="not for 'mps'; or set compiled = false"):
        require_compiler(mps)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PolicyError, match="needs triton on a GPU"):
        require_compiler(cuda)


def test_an_inference_on_a_gpu_leaves_the_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with threads_for(1.0, torch.device("cuda", 0)):
        assert asked == []
    with threads_for(1.0, torch.device("cpu")):
        assert asked == [1]
