"""bfloat16 where the device multiplies it, and float32 where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from vla_robot.policy.device import multiplies_bfloat16
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train import finetune as runs
from vla_robot.train.finetune import NO_BFLOAT16, finetune
from vla_robot.train.mixed_precision import mixed_precision


def test_a_gpu_multiplies_bfloat16_and_a_cpu_if_torch_has_a_kernel_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert multiplies_bfloat16(torch.device("cuda", 0)) and multiplies_bfloat16(torch.device("cpu")) is has


def test_torchs_answer_agrees_with_the_flags_that_linux_tells_of_this_cpu() -> None:
    told = Path("/proc/cpuinfo")
    flags = set(told.read_text().split()) if told.is_file() else set[str]()
    if "avx2" not in flags:
        pytest.skip("no CPU of x86 that Linux describes")
    if flags & {"avx512_bf16", "amx_bf16"}:
        assert multiplies_bfloat16(torch.device("cpu"))
    elif "avx512f" not in flags:
        assert not multiplies_bfloat16(torch.device("cpu"))


def test_a_run_computes_in_float32_where_bfloat16_is_slow_and_says_so_and_goes_on_at_another_computer(
    recipe: DemosFinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def observed(device: torch.device, is_on: bool) -> Any:
        with mixed_precision(device, is_on):
            seen.append(linear(torch.ones(2, 2), torch.ones(2, 2)).dtype)
        return mixed_precision(device, is_on)

    monkeypatch.setattr("vla_robot.train.trainer.mixed_precision", observed)
    recipe = replace(recipe, bf16=True, checkpoint_every=1)
    said: list[Any] = []
    for has, stops in ((True, [False, True]), (False, [False] * recipe.steps)):
        monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device, has=has: has)
        seen.clear()
        said.clear()
        trained = finetune(recipe, tmp_path / "run", lambda _: None, iter(stops).__next__, said.append)
        assert trained.steps == (2 if has else recipe.steps)
        assert set(seen) == {torch.bfloat16 if has else torch.float32}
        assert (NO_BFLOAT16 in said) is not has
