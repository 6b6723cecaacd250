"""Norms and gates of the library's language models, compiled: the same tokens, and one kernel each on a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from vla_robot.core.errors import RecipeError
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.engine.norms import GATED, fuse_pointwise
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import parse
from vla_robot.recipe.policy import PolicyRecipe

from ..inductor import kernels_of, tell_of_an_h100
from .conftest import PROCESSORS, TOKENS, Sample
from .tiny_vlms import observation

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
FIRST = ("paligemma", "qwen2_vl", "gemma4")
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in PROCESSORS]


def norm_and_mlp(model: Any) -> tuple[Any, Any]:
    """A norm over the whole width of the first layer, and its gated product."""
    modules = list(model._text.layers[0].modules())
    mlp = next(m for m in modules if all(hasattr(m, name) for name in GATED))
    width = mlp.gate_proj.weight.shape[1]
    norms = (m for m in modules if type(m).__name__.endswith("RMSNorm") and hasattr(m, "weight"))
    return next(norm for norm in norms if norm.weight.numel() == width), mlp


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_fused_policy_says_the_same_tokens(
    samples: Callable[[str], Sample], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and ragged. torch traces the functions for all shapes, and does not compile them, which takes a minute."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **options: compiler(work, backend="eager", **options))
    folder = samples(name).folder
    eager, joined = family_of(folder).load(folder), family_of(folder).load(folder, Loading(fuse=True))
    for seen in ([observation(0)], [observation(0), observation(1)]):
        expected = eager.generate(eager.read(seen), TOKENS)
        np.testing.assert_array_equal(joined.generate(joined.read(seen), TOKENS), expected)


@pytest.mark.slow
@needs_compiler
def test_compiled_functions_say_the_same_tokens(samples: Callable[[str], Sample]) -> None:
    folder = samples("paligemma").folder
    eager, joined = family_of(folder).load(folder), family_of(folder).load(folder, Loading(fuse=True))
    seen = [observation(0), observation(1)]
    expected = eager.generate(eager.read(seen), TOKENS)
    np.testing.assert_array_equal(joined.generate(joined.read(seen), TOKENS), expected)


@pytest.mark.parametrize("name", NAMES)
def test_norms_and_gates_are_the_librarys_and_one_kernel_each(
    samples: Callable[[str], Sample], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, to the last bit; by torch's own compiler, told of an H100; no norm of the library is left out."""
    monkeypatch.setattr(torch, "compile", lambda work, **options: work)
    folder = samples(name).folder
    model: Any = family_of(folder).load(folder, Loading(dtype="bfloat16", trainable=True)).model
    norm, mlp = norm_and_mlp(model)
    x = torch.randn(2, 5, norm.weight.numel(), dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.copy_(x[0, 0])
        expected = norm(x), mlp(x)
        fuse_pointwise(model.vlm)
        assert torch.equal(norm(x), expected[0]) and torch.equal(mlp(x), expected[1])
    kinds = {type(m).__name__ for m in model._text.modules() if type(m).__name__.endswith("RMSNorm")}
    assert kinds and all(kind.startswith("Fused") for kind in kinds)
    tell_of_an_h100(monkeypatch)
    normed = lambda x, weight: functional_call(norm, {"weight": weight}, (x,))  # noqa: E731 - named for the reader
    assert len(kernels_of(normed, (x, norm.weight.detach()))) == 1
    assert len(kernels_of(lambda gate, up: mlp.act_fn(gate) * up, (x, x))) == 1


def test_fuse_and_compiled_exclude_each_other() -> None:
    recipe = {"kind": "vla", "checkpoint": ".", "compiled": True, "fuse": True}
    with pytest.raises(RecipeError, match="leave fuse out"):
        parse(PolicyRecipe, recipe, "a test")
