"""`make setup` on a computer without the right Python says what to do, and touches nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

OLD_PYTHON = '#!/bin/bash\n[[ $1 == --version ]] && echo "Python 3.9.2" && exit 0\nexit 1\n'


@pytest.fixture
def bare(tmp_path: Path, repository: Path) -> Path:
    """A project folder, and a PATH on which only an old Python lies."""
    shutil.copy(repository / ".python-version", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "rm"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "python3").write_text(OLD_PYTHON)
    (tools / "python3").chmod(0o755)
    return tmp_path


def make_venv(folder: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [repository / ".ci" / "make_venv", ".venv"],
        cwd=folder,
        env={"PATH": str(folder / "tools"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_fitting_python_names_the_ways_to_get_one(bare: Path, repository: Path) -> None:
    done = make_venv(bare, repository)
    assert done.returncode == 2
    assert "No Python 3.12 was found" in done.stderr
    assert "uv python install 3.12" in done.stderr
    assert not (bare / ".venv").exists()


def test_an_environment_of_another_python_is_named_and_left_alone(bare: Path, repository: Path) -> None:
    python = bare / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(bare / "tools" / "python3", python)
    done = make_venv(bare, repository)
    assert done.returncode == 2
    assert ".venv holds Python 3.9.2, but this project needs Python 3.12" in done.stderr
    assert python.is_file()


def test_a_fitting_environment_is_kept(repository: Path) -> None:
    done = subprocess.run(
        [repository / ".ci" / "make_venv", repository / ".venv"], cwd=repository, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
