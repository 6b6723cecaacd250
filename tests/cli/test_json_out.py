"""One form of machine-readable output for every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli.common.json_out import write_figure, write_json
from vla_robot.core.errors import DataError, VlaError


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
    with pytest.raises(VlaError, match=r"choose another folder"):
        write_json(tmp_path / "file" / "out.json", "run", [])


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "out.json", "run", [], score=float("nan"))


def test_a_full_disk_is_a_users_error_and_leaves_what_was_there(
    tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_json(tmp_path / "out.json", "run", [])
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(DataError, match=r"cannot write .*out\.json: File too large\."), file_limit(100):
        write_json(tmp_path / "out.json", "run", [{"name": "x", "value": 1}])
    assert (tmp_path / "out.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_results_survive_a_power_cut(tmp_path: Path, power_cut: Any) -> None:
    write_json(tmp_path / "deep" / "out.json", "run", [])
    assert power_cut.survivors(tmp_path) == {"deep/out.json": (tmp_path / "deep" / "out.json").read_bytes()}


def test_a_drawing_appears_whole_in_a_format_that_exists(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    write_figure(tmp_path / "deep" / "a.png", Figure())
    assert (tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"cannot draw .*a\.foo: Format 'foo' is not supported"):
        write_figure(tmp_path / "a.foo", Figure())
    assert not (tmp_path / "a.foo").exists()
