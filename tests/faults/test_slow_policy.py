"""A policy whose first answer takes longer than the watchdog allows drives all the same: it is warmed up before."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli.bridge import BridgeArgs
from vla_robot.cli.main import main
from vla_robot.cli.run import run_robot
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Observation
from vla_robot.testing import FunctionPolicy

COMPILES_S = 4.0
"""The bridge stops an arm that got no action for 3.5 s."""


class Compiling(FunctionPolicy):
    """Answers at once, but for its first answer, or for all."""

    def __init__(self, always: bool = False) -> None:
        super().__init__(self._think)
        self.always = always

    def _think(self, observation: Observation) -> list[float]:
        if self.always or len(self.saw) == 1:
            time.sleep(COMPILES_S)
        return [0.0, 0.0, 0.0, 1.0]


def run(bridges: Any, policy: Compiling, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(run_robot, "build_robot_policy", lambda *_: policy)
    options = ["--policy", "hold", "--episodes", "2", "--out", str(folder / "run"), "--json", str(folder / "run.json")]
    return main(["run", "--robot", bridges.address, *options])


def seconds(pattern: str, told: str) -> float:
    """The number that a pattern finds; a busy computer adds to it."""
    found = re.search(pattern, told)
    assert found, told
    return float(found[1])


def test_a_first_answer_that_takes_long_costs_no_episode(
    bridges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bridges, Compiling(), tmp_path, monkeypatch) == 0
    episodes = json.loads((tmp_path / "run.json").read_text())["episodes"]
    assert [episode["outcome"] for episode in episodes] == ["timeout", "timeout"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "warming up the policy; nothing moves" in printed
    assert seconds(r"its first answer took (\S+) s", printed) >= COMPILES_S


def test_a_policy_that_is_always_too_slow_is_refused_before_anything_moves(
    bridges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bridges, Compiling(always=True), tmp_path, monkeypatch) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert seconds(r"takes (\S+) s for an answer", told) >= COMPILES_S
    assert "no action came for 3.5 s" in told and "Nothing was moved" in told
    assert not (tmp_path / "run.json").exists()


def test_time_limits_that_contradict_each_other_are_refused_with_both_numbers() -> None:
    with pytest.raises(RecipeError, match=r"--max-age-s 5 .*without one for 3\.5 s is stopped"):
        BridgeArgs("lift", max_age_s=5.0)
    BridgeArgs("lift", max_age_s=5.0, stop_after_s=4.5)
