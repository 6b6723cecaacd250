"""`vla bench policy` of a family of transformers: its own `generate` is the baseline, and says the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_robot.core.errors import RecipeError

torch = pytest.importorskip("torch")

from benchmarks.models.plain_vlm import PlainVLM, without_state  # noqa: E402
from benchmarks.policy import PolicyArgs, measure, rows  # noqa: E402
from vla_robot.cli.common.terminal import Terminal  # noqa: E402
from vla_robot.policy.families import family_of  # noqa: E402

from ..policy.vlm.tiny_vlms import create  # noqa: E402


@pytest.mark.parametrize(
    "name",
    [
        "paligemma",
        "qwen2_5_vl",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma4", "gemma4_unified", "smolvlm")),
    ],
)
def test_no_token_differs_from_transformers_own(tmp_path: Path, name: str) -> None:
    folder = create(tmp_path / name, name, use_state=True)
    measured = measure(PolicyArgs(policy=str(folder), batch=(1, 2), rounds=3), Terminal())
    table = {each["name"]: each["value"] for each in rows(measured)}
    assert table["float32/batch1/tokens_that_differ"] == table["float32/batch2/tokens_that_differ"] == 0
    assert table["float32/batch2/passes"] >= 1
    assert "float32/batch1/prefill_flops" not in table


def test_fewer_bits_are_measured_beside_the_plain_weights(tmp_path: Path) -> None:
    folder = create(tmp_path / "policy", "qwen2_vl", use_state=True)
    measured = measure(PolicyArgs(policy=str(folder), batch=(1,), rounds=1, quantise=("fp8",)), Terminal())
    table = {each["name"]: each["value"] for each in rows(measured)}
    assert table["float32+fp8/weights"] < table["float32/weights"]
    assert 0 <= table["float32+fp8/batch1/tokens_that_differ"] <= 1


def test_the_baseline_has_the_librarys_own_tower_and_layout(tmp_path: Path) -> None:
    folder = create(tmp_path / "policy", "qwen2_vl", use_state=False)
    policy = without_state(family_of(folder).load(folder))
    theirs = PlainVLM(policy)._vlm
    assert type(theirs.model.visual.patch_embed).__module__.startswith("transformers.")
    assert theirs.config.vision_config._attn_implementation == "sdpa"
    assert all(parameter.is_contiguous() for parameter in theirs.parameters())
    mine = policy.model.vlm.state_dict()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in theirs.state_dict().items())


def test_the_processors_time_is_counted_without_stages(tmp_path: Path) -> None:
    folder = create(tmp_path / "policy", "paligemma", use_state=False)
    measured = measure(PolicyArgs(policy=str(folder), batch=(1,), rounds=2, cpu_time=True), Terminal())
    table = {each["name"]: each["value"] for each in rows(measured)}
    assert table["float32/batch1/passes"] >= 1 and table["float32/batch1/p50"] > 0
    assert not any("prefill" in name for name in table)


def test_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="is of kind 'hold'"):
        measure(PolicyArgs(policy="hold"), Terminal())
