"""`vla export`: what it refuses before anything is written. tests/test_lerobot_plugin.py exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli import export
from vla_robot.cli.export import ExportArgs, main
from vla_robot.core.errors import DataError, MissingDependencyError, RecipeError
from vla_robot.testing import toy_embodiment


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """(policy, world) of each folder that was written by the distribution, which is a stand-in."""
    calls: list[tuple[str, str | None]] = []

    def write_folder(folder: Path, source: Any, env: str | None) -> Any:
        (folder / "config.json").write_text("{}")
        calls.append((source.name, env))
        if source.name == "random":
            raise RecipeError("it cannot be loaded")
        return toy_embodiment()

    def attribute(path: str) -> Callable[..., Any]:
        assert path == "lerobot_policy_vla_robot.saved_folder:write_folder"
        return write_folder

    monkeypatch.setattr(export, "installed", lambda name: "0.1.0")
    monkeypatch.setattr(export, "attribute", attribute)
    return calls


def test_a_folder_is_written_and_the_next_command_named(
    written: list[tuple[str, str | None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(ExportArgs("lerobot", "hold", out, env="lift")) == 0
    assert written == [("hold", "lift")]
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "config.json").is_file()
    assert f"Next: lerobot-eval --policy.path={out} --env.type=vla_robot" in capsys.readouterr().out


def test_a_folder_that_holds_something_is_not_touched(written: list[tuple[str, str | None]], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DataError, match="exists already"):
            main(ExportArgs("lerobot", "hold", out))
    assert (written, (tmp_path / "mine").read_text()) == ([], "mine")


def test_nothing_is_left_of_an_export_that_fails(written: list[tuple[str, str | None]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it cannot be loaded"):
        main(ExportArgs("lerobot", "random", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_missing_distribution_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "installed", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps plugins/lerobot_policy_vla_robot"):
        main(ExportArgs("lerobot", "hold", tmp_path / "out"))
