"""What every test shares."""

from __future__ import annotations

import os

# Before anything imports torch: the cores are shared by worlds, policies and, under xdist, pytest's own workers.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# How long an example takes says how busy the computer is.
settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")


@pytest.fixture
def repository() -> Path:
    """The checkout that holds envs/, policies/, datasets/ and launch/."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here; `apt-get install chromium` brings one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
