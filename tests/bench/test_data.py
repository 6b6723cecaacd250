"""`vla bench data` measures every case and reports it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.data import ORDERS, DataArgs, main
from vla_robot.core.errors import DataError


def test_every_case_is_measured(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bridge = shutil.copytree(repository / "tests/golden/rlds_samples/bridge_orig", tmp_path / "bridge_orig")
    out = tmp_path / "out.json"
    assert main(DataArgs(str(bridge), workers=(1,), seconds=0.01, json=out)) == 0
    assert "2 episodes" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    cases = [f"{order}/1 workers/{files}" for order in ORDERS for files in ("cold", "warm")]
    assert [row["name"] for row in rows] == [f"{case}/{what}" for case in cases for what in ("rate", "memory")]
    assert all(row["value"] > 0 for row in rows if row["unit"] == "frames/s")


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match=r"--seconds must be above 0"):
        DataArgs("x", seconds=0)
    with pytest.raises(DataError, match=r"--workers numbers of at least 1"):
        DataArgs("x", workers=(0,))
