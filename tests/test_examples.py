"""The examples run, do what they say, and use public names alone."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from vla_robot.testing import check_world

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The module that a test's parameter names, imported as a script imports its neighbours."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module(request.param)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_uses_public_names_and_fits_a_screen(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names]
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [name for name in [*names, *".".join(modules).split(".")] if name.startswith("_") and name[1] != "_"] == []
    assert len(text.splitlines()) < 80
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()


@pytest.mark.sim
@pytest.mark.parametrize("example", ["run_episode"], indirect=True)
def test_an_expert_lifts_the_cube(example: ModuleType) -> None:
    assert example.main("tabletop", "expert", seed=0).success


@pytest.mark.parametrize("example", ["write_world"], indirect=True)
def test_the_examples_world_keeps_the_contract(example: ModuleType) -> None:
    check_world(example.RailWorld)


@pytest.mark.parametrize("example", ["write_policy"], indirect=True)
def test_the_examples_policy_reaches_the_mark(example: ModuleType) -> None:
    assert example.main().success


@pytest.mark.parametrize("example", ["finetune"], indirect=True)
def test_the_example_trains_a_policy(example: ModuleType, tmp_path: Path) -> None:
    trained = example.main(tmp_path, episodes=5, steps=3)
    assert trained.steps == 3 and (trained.policy / "model.safetensors").is_file()


@pytest.mark.sim
@pytest.mark.parametrize("example", ["drive_robot"], indirect=True)
def test_the_example_moves_a_robot_behind_a_bridge(example: ModuleType, repository: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vla_robot.cli.main",
        "bridge",
        "envs/tabletop.toml",
        "--bind",
        "tcp://127.0.0.1:0",
    ]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as bridge:
        assert bridge.stdout is not None
        line = next(line for line in bridge.stdout if "listening on" in line)
        ticks = example.main(line.split("listening on ")[1].split(",")[0], steps=3)
        bridge.send_signal(signal.SIGINT)
        bridge.communicate()
    assert [tick.mode for tick in ticks] == ["run"] * 3
    heights = [float(tick.result.observation.state[2]) for tick in ticks]
    assert heights == sorted(heights) and heights[0] < heights[-1]
