"""`vla bench edge`: every contender answers the same scenes with the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.edge.compare import EdgeArgs, main, ways
from vla_robot.core.errors import PolicyError, RecipeError


def test_what_needs_more_is_measured_when_it_is_asked_for() -> None:
    assert ways(EdgeArgs()) == ["transformers", "torch", "onnxruntime"]
    assert ways(EdgeArgs(compiled=True, openvino=Path("python"))) == [
        *("transformers", "torch", "torch compiled", "onnxruntime", "openvino")
    ]
    with pytest.raises(RecipeError, match="take numbers from 1 on"):
        EdgeArgs(rounds=0)


def test_a_contender_that_cannot_start_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PolicyError, match="the contender 'transformers' ended with status 1; its error is above"):
        main(EdgeArgs(exported=tmp_path / "none"))
    assert "policy folder" in capfd.readouterr().err


@pytest.mark.slow
def test_all_contenders_say_the_same(nano: Path, tmp_path: Path) -> None:
    told = tmp_path / "out.json"
    assert main(EdgeArgs("openvla_nano", nano, batch=(1, 2), rounds=2, json=told)) == 0
    rows = {row["name"]: row["value"] for row in json.loads(told.read_text())["rows"]}
    differ = [value for name, value in rows.items() if name.endswith("tokens_that_differ")]
    assert differ == [0.0] * 6
    assert rows["onnxruntime/memory"] < rows["torch/memory"]
