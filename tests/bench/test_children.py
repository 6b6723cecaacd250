"""A process beside a benchmark finds the benchmarks that started it, wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import children


def test_a_child_runs_a_module_beside_the_one_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "clone" / "benchmarks"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "echo.py").write_text("import os, sys\nprint(os.environ['PYTHONPATH'], *sys.argv[1:])")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(children, "ROOT", tmp_path / "clone")
    for own, expected in ((None, f"{tmp_path / 'clone'}"), ("/own", f"{tmp_path / 'clone'}:/own")):
        monkeypatch.delenv("PYTHONPATH", raising=False) if own is None else monkeypatch.setenv("PYTHONPATH", own)
        with children.start_child("echo", "a", "b") as child:
            assert child.communicate()[0] == f"{expected} a b\n"
