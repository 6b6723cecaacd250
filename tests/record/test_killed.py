"""Test that a recording which is killed with -9 fifty times, at random moments, loses no finished episode."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter

KILLS = 50
LONGEST_S = 0.1
LEROBOT_OPENS_EVERY = 10
KINDS = 7
"""Number of different episodes; the n-th of a dataset is episode n modulo this number."""


def record(root: Path, demos: list[Demonstration], diary: Path) -> None:
    """Write episodes until the process is killed; the diary gets one byte after each `write` that returned."""
    with LeRobotWriter(root) as writer, diary.open("ab", buffering=0) as told:
        while True:
            writer.write(demos[writer.num_episodes % KINDS])
            told.write(b".")


def fork(child: Callable[[], None]) -> int:
    """Fork a child, which saves the second that imports take. Return its process id."""
    with warnings.catch_warnings(action="ignore"):  # the child uses no lock that a thread here may hold
        number = os.fork()
    if number == 0:
        try:
            child()
        finally:
            os._exit(1)
    return number


@pytest.fixture
def opened_by_lerobot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Return a function that opens a folder with lerobot, offline and with a new cache in the test's folder."""
    datasets = pytest.importorskip("datasets")
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def opened(root: Path) -> Any:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"cache_{time.monotonic_ns()}")
        return module.LeRobotDataset("test/demos", root=root)

    return opened


@pytest.mark.slow
def test_no_finished_episode_is_lost(
    tmp_path: Path, make_demo: Callable[..., Demonstration], opened_by_lerobot: Callable[[Path], Any]
) -> None:
    root, diary = tmp_path / "demos", tmp_path / "diary"
    demos = [make_demo(seed=seed, steps=3 + seed) for seed in range(KINDS)]
    diary.touch()
    rng = random.Random()
    for kill in range(1, KILLS + 1):
        child = fork(lambda: record(root, demos, diary))
        while kill == 1 and diary.stat().st_size == 0:  # the first kill comes after the first episode
            time.sleep(0.01)
        moment_s = rng.uniform(0, LONGEST_S)
        while cpu_s(child) < moment_s:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with LeRobotWriter(root) as repaired:
            kept = repaired.num_episodes
        # An episode that was on the disk before its `write` returned is kept as well, at most one for each kill.
        finished = diary.stat().st_size
        assert finished <= kept <= finished + kill
        require_whole(root, demos, kept)
        if kill % LEROBOT_OPENS_EVERY == 0:
            dataset = opened_by_lerobot(root)
            assert dataset.num_episodes == kept
            last = dataset[dataset.num_frames - 1]
            np.testing.assert_array_equal(last["action"], demos[(kept - 1) % KINDS].actions[-1].astype(np.float32))
    assert diary.stat().st_size > 1


def cpu_s(pid: int) -> float:
    """Return a process's CPU time [s], which measures its progress however busy the computer is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def require_whole(root: Path, demos: list[Demonstration], kept: int) -> None:
    """Assert that every episode is there, in order, with the numbers that were recorded."""
    opened = open_demos(root)
    assert len(opened.episodes) == kept
    recorded = [demos[n % KINDS] for n in range(kept)]
    assert [e.seed for e in opened.episodes] == [d.seed for d in recorded]
    np.testing.assert_allclose(opened.actions, np.concatenate([d.actions for d in recorded]), rtol=1e-6)
