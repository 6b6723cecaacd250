"""`vla bench edge` and `vla bench policy`: every contender answers the same scenes with the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import policy as bench_policy
from benchmarks.edge.compare import EdgeArgs, main, ways
from benchmarks.policy import PolicyArgs
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


def test_a_policys_benchmark_takes_an_exported_one_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "out.json"
    assert bench_policy.main(PolicyArgs(str(made), batch=(1, 3), rounds=2, json=told)) == 0
    rows = {row["name"]: row for row in json.loads(told.read_text())["rows"]}
    assert rows["float32+graphs/batch3/p50"]["value"] > 0 and rows["float32+graphs/batch1/decode_p50"]["value"] > 0
    assert rows["float32+graphs/batch1/p50"]["ratio"] is None
    assert rows["float32+graphs/batch1/tokens_that_differ"]["value"] is None
    said = " ".join(capsys.readouterr().out.split())
    assert "onnxruntime's cpu" in said and "--baseline POLICY adds the policy that this one was made of" in said


@pytest.mark.slow
def test_its_baseline_is_the_policy_that_it_was_made_of(nano: Path, tmp_path: Path) -> None:
    told = tmp_path / "out.json"
    assert bench_policy.main(PolicyArgs(str(nano), "openvla_nano", batch=(1,), rounds=3, json=told)) == 0
    rows = {row["name"]: row for row in json.loads(told.read_text())["rows"]}
    assert rows["float32+graphs/batch1/tokens_that_differ"]["value"] == 0
    assert rows["float32+graphs/batch1/p50"]["ratio"] > 0 and rows["plain/p50"]["value"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"baseline": "openvla_nano"}, "'openvla_nano' has other weights than those of which the graphs were made"),
        ({"baseline": "hold"}, "'hold' is of kind 'hold', which has no weights"),
        ({"dtype": ("bfloat16",)}, "--dtype is for policies in torch"),
        ({"compiled": True}, "--compiled is for policies in torch"),
        ({"device": "cuda"}, "runs where its recipe's `provider` says"),
    ],
)
def test_what_does_not_fit_an_exported_policy_is_told(made: Path, args: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        bench_policy.main(PolicyArgs(str(made), **args))
    with pytest.raises(RecipeError, match=r"--baseline is for a folder of `vla export onnx`"):
        bench_policy.main(PolicyArgs("openvla_nano", baseline="openvla_nano"))


@pytest.mark.slow
@pytest.mark.sim
def test_one_command_exports_and_compares_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "out.json"
    assert main(EdgeArgs("openvla_nano", observations=10, rounds=0, json=told)) == 0
    rows = {row["name"]: row["value"] for row in json.loads(told.read_text())["rows"]}
    assert rows == {"compared/tokens": 70, "compared/tokens_that_differ": 0}
    assert "On 10 observations of 1 episodes of lift, 0 of 70 tokens differ" in capsys.readouterr().out


@pytest.mark.slow
def test_all_contenders_say_the_same(nano: Path, tmp_path: Path) -> None:
    told = tmp_path / "out.json"
    assert main(EdgeArgs("openvla_nano", nano, batch=(1, 2), rounds=2, json=told)) == 0
    rows = {row["name"]: row["value"] for row in json.loads(told.read_text())["rows"]}
    differ = [value for name, value in rows.items() if name.endswith("tokens_that_differ")]
    assert differ == [0.0] * 6
    assert rows["onnxruntime/memory"] < rows["torch/memory"]
