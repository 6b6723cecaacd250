"""A fresh environment with [edge] alone serves the demo's policy to `vla run` of this one, and is bridge and policy."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from vla_robot.record.episode import read_episode

ROOT = Path(__file__).resolve().parents[3]
MOST_MB = 400
"""Goal for a robot's own computer."""
ARM = Path(__file__).parent / "arm"
PATIENT = ("--max-age-s", "10", "--hold-after-s", "60", "--stop-after-s", "120")
"""Limits that only a broken program exceeds, however busy the computer is."""
HEAVY = ("torch", "transformers", "timm", "onnx", "mujoco")

pytestmark = [pytest.mark.slow, pytest.mark.sim]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the package and its extra [edge], at the versions that are pinned."""
    folder = tmp_path_factory.mktemp("fresh") / "environment"
    uv, made = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", made, "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, f"{ROOT}[edge]"], check=True)
    return made


@contextlib.contextmanager
def listening(command: Sequence[object], folder: Path) -> Iterator[str]:
    """The address of a process of that environment, which is asked to end with the block."""
    process = subprocess.Popen(
        [str(word) for word in command], cwd=folder, env=own(folder), stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            yield next(
                word.rstrip(",") for line in process.stdout for word in line.split() if word.startswith("tcp://")
            )
        finally:
            process.terminate()


def own(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder), "PYTHONPATH": str(ARM), "PYTHONUNBUFFERED": "1"}


def test_the_environment_is_small_and_has_no_torch(python: Path) -> None:
    size = sum(p.stat().st_size for p in python.parents[1].rglob("*") if p.is_file() and not p.is_symlink())
    assert size < MOST_MB * 1e6
    for package in HEAVY:
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 1


@contextlib.contextmanager
def bridge(python: Path, folder: Path, instruction: str) -> Iterator[str]:
    """The address of a bridge of that environment with an arm without motors, which logs episodes to folder/bridge."""
    recipe = folder / "panda.toml"
    recipe.write_text(
        f'kind = "emulated_panda"\ninstruction = "{instruction}"\nrate_hz = 10\nhorizon = 12\n'
        f'embodiment = "{ROOT / "policies" / "openvla_nano" / "embodiment.json"}"\n'
    )
    command = [python.with_name("vla"), "bridge", recipe, "--bind", "tcp://127.0.0.1:0", *PATIENT]
    with listening([*command, "--record", folder / "bridge"], folder) as address:
        yield address


def drive(python: Path, address: str, policy: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an episode from that environment; its report is in folder/run, and folder/run.json."""
    command = [python.with_name("vla"), "run", "--robot", address, "--policy", policy, "--episodes", "1"]
    command += ["--videos", "none", "--out", folder / "run", "--json", folder / "run.json"]
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=own(folder), capture_output=True, text=True, check=False)


def test_it_is_bridge_and_policy_at_once(python: Path, nano: Path, tmp_path: Path) -> None:
    """Both processes are of that environment, which has neither torch nor a simulator."""
    with bridge(python, tmp_path, "lift the red cube") as address:
        done = drive(python, address, nano, tmp_path)
    assert done.returncode == 0, done.stderr
    (episode,) = json.loads((tmp_path / "run.json").read_text())["episodes"]
    assert episode["steps"] == 12 and not episode.get("error"), episode
    (log,) = (tmp_path / "bridge").glob("*.vlalog")
    assert any(np.abs(step.executed[:3]).max() > 0 for step in read_episode(log).steps if step.executed is not None)


def test_what_does_not_fit_is_told_before_the_arm_moves(python: Path, nano: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(nano, tmp_path / "damaged"))
    (damaged / "weights.bin").write_bytes((nano / "weights.bin").read_bytes()[:-1])
    with bridge(python, tmp_path, "lift the red cube " + "and put it down again " * 9) as address:
        short, cut = (drive(python, address, policy, tmp_path) for policy in (nano, damaged))
    assert short.returncode == 2 and "longest graph of this folder reads 32" in " ".join(short.stderr.split())
    assert cut.returncode == 2 and "weights.bin is damaged" in " ".join(cut.stderr.split())
    assert not list((tmp_path / "bridge").glob("*.vlalog*")), "an episode was begun"


def test_it_serves_the_demos_policy_to_this_one(python: Path, nano: Path, tmp_path: Path) -> None:
    """The episodes end as with torch in this environment, step by step."""
    with listening([python.with_name("vla"), "serve", nano, "--bind", "tcp://127.0.0.1:0"], tmp_path) as address:
        assert outcomes(address, tmp_path / "served") == outcomes("openvla_nano", tmp_path / "here")


def outcomes(policy: str, out: Path) -> list[tuple[object, ...]]:
    """What each of a few episodes came to."""
    command = [sys.executable, "-m", "vla_robot.cli.main", "run", "--env", "lift", "--policy", policy]
    command += ["--episodes", "2", "--seed", "1000", "--out", str(out), "--json", f"{out}.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(e["seed"], e["outcome"], e["steps"]) for e in json.loads(Path(f"{out}.json").read_text())["episodes"]]
