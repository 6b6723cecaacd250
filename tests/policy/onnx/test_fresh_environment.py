"""A fresh environment with [edge] alone serves the demo's policy to `vla run` of this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MOST_MB = 400
"""Goal for a robot's own computer."""

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


@pytest.fixture
def served(python: Path, nano: Path, tmp_path: Path) -> Iterator[str]:
    """The address at which that environment serves the policy."""
    command = [python.with_name("vla"), "serve", nano, "--bind", "tcp://127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={"HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield next(word for line in process.stdout for word in line.split() if word.startswith("tcp://"))
        finally:
            process.terminate()


def test_the_environment_is_small_and_has_no_torch(python: Path) -> None:
    size = sum(p.stat().st_size for p in python.parents[1].rglob("*") if p.is_file() and not p.is_symlink())
    assert size < MOST_MB * 1e6
    for package in ("torch", "transformers", "timm", "onnx"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 1


def test_it_serves_the_demos_policy_to_this_one(served: str, tmp_path: Path) -> None:
    """The episodes end as with torch in this environment, step by step."""
    assert outcomes(served, tmp_path / "served") == outcomes("openvla_nano", tmp_path / "here")


def outcomes(policy: str, out: Path) -> list[tuple[object, ...]]:
    """What each of a few episodes came to."""
    command = [sys.executable, "-m", "vla_robot.cli.main", "run", "--env", "lift", "--policy", policy]
    command += ["--episodes", "2", "--seed", "1000", "--out", str(out), "--json", f"{out}.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(e["seed"], e["outcome"], e["steps"]) for e in json.loads(Path(f"{out}.json").read_text())["episodes"]]
