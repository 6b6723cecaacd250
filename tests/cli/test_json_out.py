"""One form of machine-readable output for every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_robot.cli.json_out import write_json
from vla_robot.core.errors import VlaError


def test_it_holds_command_versions_machine_and_rows(tmp_path: Path) -> None:
    rows = [{"name": "latency", "value": 3.5, "unit": "ms", "baseline": None, "ratio": None}]
    write_json(tmp_path / "deep" / "out.json", "bench", rows, episodes=[])
    data = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert (data["command"], data["rows"], data["episodes"]) == ("bench", rows, [])
    assert set(data["versions"]) == {
        "python", "vla_robot", "numpy", "mujoco", "robosuite", "torch", "transformers", "timm"
    }  # fmt: skip
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["memory_gb"] > 0
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out.json"]


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VlaError, match=r"Choose another file with --json"):
        write_json(tmp_path / "file" / "out.json", "run", [])


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "out.json", "run", [], score=float("nan"))
