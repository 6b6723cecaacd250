from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli.export import ExportArgs, main
from vla_robot.policy.onnx.export.write import Choices, export
from vla_robot.recipe.policy_source import find_policy

from . import exported


@dataclass(frozen=True)
class Exported:
    """A folder that the command wrote, what it printed, and its JSON."""

    folder: Path
    said: str
    json: dict[str, Any]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small OpenVLA."""
    return exported.create(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def by_command(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What `vla export onnx` writes and says for `source`."""
    folder, told = tmp_path_factory.mktemp("exported"), io.StringIO()
    out, json_file, small = folder / "edge", folder / "told.json", exported.SMALL
    with contextlib.redirect_stdout(told):
        assert main(ExportArgs("onnx", str(source), out, rows=small.rows, text=small.text, json=json_file)) == 0
    return Exported(out, told.getvalue(), json.loads(json_file.read_text()))


@pytest.fixture(scope="session")
def made(by_command: Exported) -> Path:
    """The exported folder of `source`, which no test changes."""
    return by_command.folder


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's policy, exported for one observation."""
    folder = tmp_path_factory.mktemp("nano") / "openvla_nano"
    folder.mkdir()
    export(folder, "openvla_nano", find_policy("openvla_nano").recipe, Choices((1,), (32,)), lambda line: None)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Callable[[], Path]:
    """Returns a new copy of the exported folder."""
    return lambda: Path(shutil.copytree(made, tmp_path / f"copy{len(list(tmp_path.iterdir()))}"))
