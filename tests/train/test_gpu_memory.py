"""What a training holds on its device, checked without a GPU: fake tensors of CUDA stand for a GPU's."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vla_robot.policy.families import family_of
from vla_robot.policy.openvla.network import reason
from vla_robot.policy.openvla.policy import load
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train import checkpoint
from vla_robot.train import finetune as runs
from vla_robot.train.finetune import _closed_loop, finetune, open_run
from vla_robot.train.parallel import ddp
from vla_robot.train.parallel.ddp import Ranks

GPU = torch.device("cuda", 0)


class MadeOn(TorchDispatchMode):
    """Device types of the tensors that operations made, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            self.types.append(made.device.type)
        return made


def test_a_checkpoint_makes_no_copy_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, path: saved.update(tensors) or path.touch())
    with FakeTensorMode():
        fused = torch.zeros(6, 4, device=GPU)
        state = {"model.q": fused[:2], "model.k": fused[2:], "average.t": torch.zeros(3, 5, device=GPU).t()}
        with MadeOn() as made:
            checkpoint.save(tmp_path, state, 1, "f")
        assert made.types and set(made.types) == {"cpu"}
        assert {t.device.type for t in saved.values()} == {"cpu"} and all(t.is_contiguous() for t in saved.values())
        with MadeOn() as made:  # as it was before: a copy of each tensor where it lay
            assert {t.contiguous().clone().device.type for t in state.values()} == {"cuda"}
        assert "cuda" in made.types


def test_nothing_but_the_model_keeps_weights_once_it_is_trained(
    recipe: DemosFinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[weakref.ref[reason.Decoder]] = []
    build = reason.Decoder.__init__

    def counted(self: reason.Decoder, llama: Any) -> None:
        build(self, llama)
        decoders.append(weakref.ref(self))

    monkeypatch.setattr(reason.Decoder, "__init__", counted)
    trainer, _ = open_run(recipe, tmp_path, Ranks())
    gc.collect()
    assert decoders and not any(decoder() for decoder in decoders)
    trainer.close()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_policy_of_a_training_in_bf16_has_fp32_weights_and_the_frozen_ones_of_the_start(
    recipe: DemosFinetuneRecipe, tmp_path: Path, lora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: True)  # whatever the CPU
    recipe = replace(recipe, lora_rank=lora_rank, bf16=True, train=("decoder",), steps=2, ema=0.0, learning_rate=1e-2)
    family = family_of(finetune(replace(recipe, steps=1), tmp_path / "first", lambda _: None).policy)
    whole: list[str] = []
    monkeypatch.setattr(type(family), "load_model", lambda *a: whole.append("loaded"))
    monkeypatch.setattr(type(family), "save_model", lambda *a: whole.append("saved"))
    trained = finetune(recipe, tmp_path / "run", lambda _: None)
    assert whole == [], "the start's weights are read, merged and written one by one"
    monkeypatch.undo()
    start, end = (dict(load(tmp_path / "run" / name).model.named_parameters()) for name in ("start", "final"))
    assert trained.steps == 2
    changed = {name for name, p in start.items() if not torch.equal(p, end[name])}
    assert any(name.startswith("language_model.") for name in changed)
    assert not any(name.startswith("vision_backbone.") for name in changed), "frozen weights were rounded"


def test_a_rank_joins_with_its_own_gpu_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    entered: list[torch.device] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            entered.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(ddp.dist, "init_process_group", lambda *a, **k: told.append((*a, k["device_id"])))
    monkeypatch.setattr(ddp.dist, "barrier", lambda: None)
    monkeypatch.setattr(ddp.dist, "destroy_process_group", lambda: None)
    second = torch.device("cuda", 1)
    with Ranks(1, 2, 1).joined(second), Ranks(0, 2, 0).joined(torch.device("cpu")):
        pass
    assert told == [("nccl", second), ("gloo", None)] and entered == [second]
    with Ranks().joined(second):
        assert entered == [second, second]


def test_rollouts_keep_the_random_state_of_the_trainings_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []

    class Forked:
        def __init__(self, devices: Any) -> None:
            forked.append(list(devices))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.random, "fork_rng", Forked)
    monkeypatch.setattr("vla_robot.train.finetune.save_policy", lambda *_: None)
    trainer: Any = SimpleNamespace()
    prepared: Any = SimpleNamespace(key="k")
    with FakeTensorMode():
        for device in (torch.device("cpu"), GPU):
            trainer.model = torch.nn.Linear(1, 1, device=device)
            measure = _closed_loop(lambda folder, key: 0.5, prepared, Path("x"), Ranks())
            assert measure(trainer) == 0.5
    assert forked == [[], [GPU]]
