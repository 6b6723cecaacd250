"""`vla bench policy` of a family of transformers: its own `generate` is the baseline, and says the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_robot.core.errors import RecipeError

torch = pytest.importorskip("torch")

from benchmarks.policy import PolicyArgs, measure, rows  # noqa: E402
from vla_robot.cli.common.terminal import Terminal  # noqa: E402

from ..policy.vlm.tiny_vlms import create  # noqa: E402


@pytest.mark.parametrize("name", ["paligemma", "qwen2_5_vl", "gemma4", "gemma4_unified", "smolvlm"])
def test_no_token_differs_from_transformers_own(tmp_path: Path, name: str) -> None:
    folder = create(tmp_path / name, name, use_state=True)
    measured = measure(PolicyArgs(policy=str(folder), batch=(1, 2), rounds=3), Terminal())
    table = {each["name"]: each["value"] for each in rows(measured)}
    assert table["float32/batch1/tokens_that_differ"] == table["float32/batch2/tokens_that_differ"] == 0
    assert table["float32/batch2/passes"] >= 1
    assert "float32/batch1/prefill_flops" not in table


def test_what_only_openvla_has_is_refused(tmp_path: Path) -> None:
    folder = create(tmp_path / "policy", "paligemma", use_state=False)
    with pytest.raises(RecipeError, match="only kind 'openvla' can be compiled or quantised"):
        measure(PolicyArgs(policy=str(folder), compiled=True), Terminal())
    with pytest.raises(RecipeError, match="is of kind 'hold'"):
        measure(PolicyArgs(policy="hold"), Terminal())
