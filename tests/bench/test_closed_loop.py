"""The table of policies in closed loop, with one episode of each world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.models import closed_loop
from benchmarks.models.closed_loop import ClosedLoopArgs, Score
from vla_robot.core.errors import RecipeError


@pytest.mark.slow
def test_the_table_has_what_vla_eval_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "WORLDS", {"lift": (2, 10000), "lift_colour": (1, 20000)})
    table = tmp_path / "table.json"
    args = ClosedLoopArgs(tmp_path / "out", policies=("openvla_nano",), rounds=4, workers=1, json=table)
    assert closed_loop.main(args) == 0
    values = {row["name"]: row["value"] for row in json.loads(table.read_text())["rows"]}
    episodes = json.loads((tmp_path / "out" / "lift.json").read_text())["episodes"]
    assert values["openvla_nano/lift/successes"] == sum(e["success"] for e in episodes) == 2
    assert values["openvla_nano/parameters"] == 2_362_784
    assert values["openvla_nano/passes"] >= 1
    assert values["openvla_nano/inference_p50"] > 0


def test_a_score_has_wilsons_interval() -> None:
    assert str(Score(50, 47, 0)) == "47 of 50 (84% to 98%)"


def test_a_policy_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "WORLDS", {})
    with pytest.raises(RecipeError, match="has no weights to time"):
        closed_loop.main(ClosedLoopArgs(tmp_path, policies=("hold",)))
