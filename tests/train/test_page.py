"""docs/finetune.md from top to bottom: every command on a line of its own, in order, with smaller numbers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_robot.cli.main import main

pytestmark = pytest.mark.sim

SMALLER = {
    "record": ["--episodes", "2", "--workers", "1"],
    "data": [],
    "finetune": ["--steps", "1"],
    "eval": ["--episodes", "1", "--seed", "10000", "--workers", "1", "--videos", "none", "--out", "runs/eval"],
    "run": ["--episodes", "1", "--seed", "10000", "--out", "runs/run"],
}
"""What is said behind a command's own options, and beats them."""

FILE, TABLES = "# launch/mine.toml", "[questions]"
"""How the page's two blocks of TOML begin: a file, and what may follow in it."""


def blocks(page: str) -> list[str]:
    """What stands indented, block by block."""
    lines = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in lines]


def smaller(recipe: str) -> str:
    """The page's recipe at a scale at which one step takes seconds."""
    for name, value in {"batch_size": 4, "micro_batch": 2, "episodes": 1}.items():
        recipe, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", recipe, flags=re.MULTILINE)
        assert count == 1, f"the page's recipe says {name} once"
    return recipe


def shorten_episodes(repository: Path, folder: Path) -> None:
    """Worlds of this folder, under the page's names, that end an episode after twelve steps."""
    (folder / "envs").mkdir()
    for name in ("lift.toml", "lift_colour.toml"):
        recipe, count = re.subn(r"^horizon = \d+", "horizon = 12", (repository / "envs" / name).read_text(), flags=re.M)
        assert count == 1
        (folder / "envs" / name).write_text(recipe)


@pytest.fixture
def walk(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Does what a command of the page says, in a folder in which nothing was done before."""
    monkeypatch.chdir(tmp_path)
    for folder in ("policies", "datasets"):
        (tmp_path / folder).symlink_to(repository / folder)
    (tmp_path / "launch").mkdir()

    def step(command: str) -> None:
        words = shlex.split(command)
        if words[0] == "vla":
            assert main([*words[1:], *SMALLER[words[1]]]) == 0, command
            return
        # torchrun: one process, since what several do is tested in test_ranks.py
        bin_folder = Path(sys.executable).parent
        words = [word.replace(".venv/bin", str(bin_folder)) for word in words]
        words[words.index("--nproc-per-node") + 1] = "1"
        done = subprocess.run(
            [*words, *SMALLER["finetune"]], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    return step


@pytest.mark.slow
@pytest.mark.timeout(3600)  # it records, trains and evaluates: five minutes where nothing else is at work
def test_every_command_of_the_page_does_what_it_says(
    repository: Path, tmp_path: Path, walk: Callable[[str], None]
) -> None:
    page = blocks((repository / "docs" / "finetune.md").read_text(encoding="utf-8"))
    recipe = "".join(block for block in page if block.startswith((FILE, TABLES)))
    (tmp_path / "launch" / "mine.toml").write_text(smaller(recipe))
    commands = [line for block in page if not block.startswith((FILE, TABLES)) for line in block.splitlines()]
    assert [shlex.split(command)[1] for command in commands if command.startswith("vla")] == [
        "record", "data", "finetune", "eval", "run", "finetune",
    ]  # fmt: skip
    for command in commands:
        walk(command)
        if command.startswith("vla record"):  # the expert has lifted the cube, which takes longer
            shorten_episodes(repository, tmp_path)
    assert (tmp_path / "data" / "run" / "final" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "data" / "mine_run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "question_accuracy", "rollout_success"} <= lines[-1].keys()
    assert (tmp_path / "runs" / "eval" / "report.html").is_file()
