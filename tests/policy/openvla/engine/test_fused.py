"""The work between matrix products, compiled: the plain results, one kernel for each function, clear refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.policy.openvla.network.pointwise import Pointwise, fused_pointwise, scaled_add_norm
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.engine import compiler
from vla_robot.policy.vla.engine.compiler import fused, is_fused
from vla_robot.policy.vla.engine.fp8 import in_rows
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.policy import OpenVLARecipe

from ...inductor import kernels_of, tell_of_an_h100

NANO = Path(__file__).resolve().parents[4] / "policies" / "openvla_nano"
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def cases() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    """Function -> its plain form, its compiled form, and arguments."""
    plain, compiled, eps = Pointwise(), fused_pointwise(), torch.tensor(1e-5)
    x, y, w = numbers(2, 5, 64), numbers(2, 5, 64), numbers(64)
    heads, table = numbers(2, 7, 6, 16).transpose(1, 2), numbers(7, 16)
    layer = (x, y, numbers(64), w, numbers(64), 1e-6)
    return {
        "norm": (plain.norm, compiled.norm, (x, w, eps)),
        "add_norm": (plain.add_norm, compiled.add_norm, (x, y, w, eps)),
        "rotate": (plain.rotate, compiled.rotate, (heads, table, table + 1)),
        "gate": (plain.gate, compiled.gate, (x,)),
        "scaled_add_norm": (scaled_add_norm, fused(scaled_add_norm), layer),
        "unscaled_add_norm": (scaled_add_norm, fused(scaled_add_norm), (x, y, None, *layer[3:])),
        "in_rows": (in_rows, fused(in_rows), (x.flatten(0, 1),)),
    }


@pytest.mark.parametrize("name", cases())
def test_a_function_becomes_one_kernel_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own compiler, told of an H100, joins it into one kernel; no GPU and no triton is needed for that."""
    tell_of_an_h100(monkeypatch)
    plain, _, arguments = cases()[name]
    assert len(kernels_of(plain, arguments)) == 1
    parts = kernels_of(lambda x, y: (x @ y).relu().sum(dim=0), (numbers(64, 64), numbers(64, 65)))
    assert len(parts) > 1, "what cannot be joined is counted as more"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", cases())
def test_a_compiled_function_gives_the_same_results(name: str) -> None:
    plain, compiled, arguments = cases()[name]
    for one, other in zip(_all(compiled(*arguments)), _all(plain(*arguments)), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_compiler
def test_a_fused_policy_says_the_same_tokens() -> None:
    """In float32; batches of one and of three ragged rows, with blocks and without."""
    plain, joined = load(NANO), load(NANO, Loading(fuse=True))
    rng, model = np.random.default_rng(0), plain.model.config
    for rows in (1, 3):
        coarse = rng.integers(0, 256, (rows, model.num_images, 7, 7, 3), dtype=np.uint8)
        frames = [[image.repeat(16, axis=0).repeat(16, axis=1) for image in row] for row in coarse]
        ids = [np.r_[1, rng.integers(3, 400, 12 + row % 3)] for row in range(rows)]
        seen = frames, ids, rng.uniform(-1.0, 1.0, (rows, model.proprio_dim or 0))
        for in_blocks in (False, True):
            plain.in_blocks = joined.in_blocks = in_blocks
            assert (joined.generate_tokens(*seen) == plain.generate_tokens(*seen)).all()


def test_fusing_is_asked_for_or_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: "there")
    assert is_fused(None, cuda) and not is_fused(None, CPU) and not is_fused(False, cuda)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert not is_fused(None, cuda)
    with pytest.raises(PolicyError, match="fuse = true needs triton on a GPU"):
        is_fused(True, cuda)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(PolicyError, match="needs a C\\+\\+ compiler"):
        is_fused(True, CPU)
    with pytest.raises(RecipeError, match="leave fuse out"):
        OpenVLARecipe(checkpoint=Path("somewhere"), compiled=True, fuse=True)


def _all(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
