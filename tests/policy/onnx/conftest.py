from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_robot.policy.onnx.export.write import Choices, export
from vla_robot.recipe.policy_source import find_policy

from . import exported


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small OpenVLA."""
    return exported.create(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of `source`, which no test changes."""
    folder = tmp_path_factory.mktemp("exported") / "edge"
    exported.write(source, folder)
    return folder


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
