"""Fixtures: datasets in the schemas of BridgeData, RT-1 and LIBERO, written and read by TensorFlow Datasets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SAMPLES = Path(os.environ.get("VLA_RLDS_SAMPLES") or Path(__file__).parents[3] / "golden" / "rlds_samples")
"""The environment variable names a folder of the same layout; the golden samples are parts of one."""

NAMES = tuple(sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put indexes into a folder of the test, since beside the samples the next test would find them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=NAMES)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return copy_of(request.param, tmp_path)


@pytest.fixture
def copy_sample(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a sample by name, so that a test may damage it."""
    return lambda name: copy_of(name, tmp_path)


def copy_of(name: str, folder: Path) -> Path:
    copy = folder / name
    shutil.copytree(SAMPLES / name, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy
