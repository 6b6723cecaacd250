"""Other forms of a family's inference: compiled, of fewer bits, prepared for acting; and rows that settle apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.core.host import optional
from vla_robot.core.messages import Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.layout import matrices
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import parse
from vla_robot.recipe.policy import PolicyRecipe, VLARecipe

from .conftest import TOKENS, Sample
from .tiny_vlms import observation

EVEN = [observation(0), observation(2)]
"""Observations of one instruction."""
NANO = Path(__file__).resolve().parents[3] / "policies" / "paligemma_nano"


def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch trace whole graphs, and not compile them, which takes a minute each."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda work, **others: compiler(work, dynamic=False, fullgraph=True, backend="eager")
    )


@pytest.mark.parametrize(
    "name",
    [
        "paligemma",
        "qwen2_vl",
        "gemma4",
        *(pytest.param(more, marks=pytest.mark.slow) for more in ("qwen2_5_vl", "gemma4_unified", "smolvlm")),
    ],
)
def test_whole_graphs_give_the_same_tokens(
    samples: Callable[[str], Sample], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced(monkeypatch)
    folder = samples(name).folder
    eager, compiled = family_of(folder).load(folder), family_of(folder).load(folder, Loading(compiled=True))
    expected = eager.generate(eager.read(EVEN), TOKENS)
    np.testing.assert_array_equal(compiled.generate(compiled.read(EVEN), TOKENS), expected)
    assert "inference" in compiled.act(EVEN)[0].stages_ms


def test_a_language_model_that_reads_numbers_is_not_compiled(samples: Callable[[str], Sample]) -> None:
    folder = samples("qwen3_vl").folder
    with pytest.raises(PolicyError, match=r"Qwen3VL cannot be compiled: .* Leave compiled out"):
        family_of(folder).load(folder, Loading(compiled=True))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_graphs_give_the_same_tokens(samples: Callable[[str], Sample]) -> None:
    folder = samples("paligemma").folder
    eager, compiled = family_of(folder).load(folder), family_of(folder).load(folder, Loading(compiled=True))
    expected = eager.generate(eager.read(EVEN), TOKENS)
    np.testing.assert_array_equal(compiled.generate(compiled.read(EVEN), TOKENS), expected)


def test_fewer_bits_take_less_memory_and_logits_stay_near(sample: Sample) -> None:
    family = family_of(sample.folder)
    plain, small = (
        sample.policy(),
        family.load(sample.folder, Loading(quantise="fp8")),
    )  # of which a CPU knows the formula
    assert small.memory_bytes() < plain.memory_bytes()
    batch = plain.read(EVEN)
    with torch.inference_mode():
        mine, other = (policy._first_logits(batch) for policy in (small, plain))
    assert 0 < float((mine - other).norm() / other.norm()) < 0.5
    assert small.generate(batch, TOKENS).shape == (len(EVEN), TOKENS)


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.skipif(not (optional.installed("torchao") and optional.installed("bitsandbytes")), reason="[quantise]")
def test_fewer_bits_change_actions_little(how: str) -> None:
    rng = np.random.default_rng(0)
    plain, small = family_of(NANO).load(NANO), family_of(NANO).load(NANO, Loading(quantise=how))
    assert small.memory_bytes() < 0.6 * plain.memory_bytes()
    assert plain.embodiment is not None
    names = [camera.name for camera in plain.embodiment.cameras]
    rows: list[Observation] = []
    for coarse in rng.integers(0, 256, (24, len(names), 7, 7, 3), dtype=np.uint8):
        frames = coarse.repeat(16, axis=1).repeat(16, axis=2)
        images = dict(zip(names, frames, strict=True))
        rows.append(Observation(images, rng.normal(size=7), "lift the red cube", 0, 0))
    mine, other = (p.generate(p.read(rows), TOKENS) for p in (small, plain))
    l1 = np.abs(np.subtract(*(plain.codec.values[plain.codec.rows(said)] for said in (mine, other))))  # of a range of 2
    assert l1.mean() < {"int8": 0.03, "int4": 0.3}[how]


def test_a_policy_to_be_trained_is_left_as_it_is(sample: Sample) -> None:
    acting, trained = sample.policy().model, family_of(sample.folder).load(sample.folder, Loading(trainable=True)).model
    assert trained.constant == 0
    assert all(parameter.is_contiguous() for parameter in trained.parameters())
    by_columns = matrices(acting, acting.vlm.lm_head)
    assert by_columns and not any(
        acting.get_parameter(name).flatten(1).is_contiguous() for name in by_columns if "proj" in name
    )


def test_norms_of_one_call_are_the_librarys(sample: Sample) -> None:
    norms = {name: norm for name, norm in sample.library.named_modules() if type(norm).__name__.endswith("RMSNorm")}
    acting = sample.policy().model.vlm
    assert norms
    for name, theirs in norms.items():
        ours, width = acting.get_submodule(name), getattr(theirs, "weight", torch.empty(16)).shape[0]
        assert not type(ours).__module__.startswith("transformers."), name
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_rows_that_settle_apart_say_what_they_say_alone(sample: Sample) -> None:
    policy = sample.policy()
    seen = [observation(number) for number in range(0, 12, 2)]
    together = policy.generate(policy.read(seen), TOKENS)
    alone = [policy.generate(policy.read([each]), TOKENS)[0] for each in seen]
    np.testing.assert_array_equal(together, alone)


def test_a_recipe_of_a_family_may_be_compiled_or_take_fewer_bits(tmp_path: Path) -> None:
    table = {"kind": "vla", "checkpoint": ".", "compiled": True}
    recipe = parse(PolicyRecipe, table, tmp_path / "p.toml")
    assert isinstance(recipe, VLARecipe) and recipe.compiled
    with pytest.raises(RecipeError, match="exclude each other"):
        parse(PolicyRecipe, table | {"quantise": "int8"}, tmp_path / "p.toml")
