"""`vla data` on emulated nodes: the bits of one process, whatever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from vla_robot.cli.main import main
from vla_robot.cluster.local import LocalRunner
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.rlds.convert_shards import to_rlds_shards
from vla_robot.data.formats.rlds.reader import open_rlds
from vla_robot.testing import ToySource

RECIPE = """
kind = "source"
action = ["action", "observation/state", "action"]
state = ["observation/state"]
[cameras]
primary = "observation/front"
"""

pytestmark = pytest.mark.slow


def test_statistics_of_a_thousand_shards_by_eight_tasks_are_those_of_one_process(
    nodes: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes(1, cores=8)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(RECIPE)
    source = ToySource([2 + k % 4 for k in range(1000)])
    to_rlds_shards(source, str(tmp_path / "toy"), Options(), LocalRunner(), shard_bytes=1)
    found: list[bytes] = []
    for name, more in (("one", ()), ("eight", ("--cluster", "auto"))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        words = [
            "data",
            "stats",
            str(tmp_path / "toy"),
            "--recipe",
            str(recipe),
            "--out",
            str(tmp_path / f"{name}.json"),
        ]
        assert main([*words, *more]) == 0
        found.append((tmp_path / f"{name}.json").read_bytes())
    assert found[0] == found[1] and json.loads(found[0])["toy"]["num_trajectories"] == 1000
    assert "The largest worker took " in capsys.readouterr().out


def test_a_conversion_whose_driver_is_killed_goes_on(nodes: Callable[..., Any], tmp_path: Path) -> None:
    nodes(2, cores=1)
    source = ToySource([40] * 60)
    to_rlds_shards(source, str(tmp_path / "toy"), Options(), LocalRunner(), shard_bytes=20_000)
    words = ["data", "convert", str(tmp_path / "toy"), f"local://{tmp_path}/copy", "--to", "rlds", "--cluster", "auto"]
    command = [sys.executable, "-m", "vla_robot.cli.main", *words]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    shards = tmp_path / "copy" / "1.0.0"
    eventually(lambda: any(shards.glob("*.tfrecord-*")) or driver.poll() is not None)
    driver.kill()
    driver.wait()
    assert subprocess.run(command, check=False).returncode == 0
    there, here = open_rlds(tmp_path / "toy"), open_rlds(shards)
    assert [here.episode(k).numbers("action").tobytes() for k in range(60)] == [
        there.episode(k).numbers("action").tobytes() for k in range(60)
    ]
