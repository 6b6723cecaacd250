"""What every test shares."""

from __future__ import annotations

import os

# Before anything imports torch: two cores are shared by worlds, policies and pytest itself.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from pathlib import Path

import pytest


@pytest.fixture
def repository() -> Path:
    """The checkout that holds envs/, policies/, datasets/ and launch/."""
    return Path(__file__).resolve().parent.parent
