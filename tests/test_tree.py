"""The tree keeps its promises: data folders hold data, and no folder of ours hides an installed package."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vla_robot.recipe import KINDS, Kind, folder_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_folder_holds_no_python(repository: Path, kind: Kind) -> None:
    assert sorted((repository / folder_of(kind)).rglob("*.py")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_folder_explains_itself(repository: Path, kind: Kind) -> None:
    assert (repository / folder_of(kind) / "README.md").is_file()


def test_the_root_has_four_data_folders_and_the_wheel_each_of_them_once(repository: Path) -> None:
    folders = {folder_of(kind).partition("/")[0] for kind in KINDS}
    assert folders == {"envs", "policies", "datasets", "launch"}
    targets = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"] == {folder: f"vla_robot/_recipes/{folder}" for folder in folders}
    assert targets["wheel"]["packages"] == ["vla_robot"]
    assert {f"/{folder}" for folder in folders} | {"/vla_robot", "/benchmarks"} <= set(targets["sdist"]["include"])
    assert all((repository / path.lstrip("/")).exists() for path in targets["sdist"]["include"] if "*" not in path)


def test_tests_are_not_a_package(repository: Path) -> None:
    assert sorted((repository / "tests").rglob("__init__.py")) == []


def test_hugging_face_datasets_is_not_shadowed_by_our_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    spec = importlib.util.find_spec("datasets")
    # An empty namespace (our folder) has no origin.
    assert spec is not None
    assert spec.origin is not None


def test_no_module_is_named_like_the_standard_library(repository: Path) -> None:
    # Only the package's own top level could be confused; `vla_robot.core.x` never is.
    names = {p.stem for p in (repository / "vla_robot").glob("*")}
    assert names & sys.stdlib_module_names == set()


def test_the_constraints_hold_no_address(repository: Path) -> None:
    text = (repository / "constraints.txt").read_text()
    assert "://" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith("#"))


def test_the_package_is_marked_as_typed(repository: Path) -> None:
    assert (repository / "vla_robot" / "py.typed").is_file()


def test_processes_of_tests_keep_their_bytecode() -> None:
    ask = [sys.executable, "-c", "import sys; print(sys.dont_write_bytecode)"]
    assert not sys.dont_write_bytecode
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "False\n"


def test_cpu_seconds_are_printed_by_folder(repository: Path) -> None:
    one = ["tests/test_tree.py", "-k", "marked_as_typed", "--cpu-times", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *one], cwd=repository, capture_output=True, text=True)
    table = done.stdout.partition(" CPU seconds ")[2]
    assert re.search(r"^ +\d+\.\d  tests/test_tree.py$", table, re.MULTILINE), done.stdout
    assert re.search(r"^ +\d+\.\d  in all$", table, re.MULTILINE), done.stdout
