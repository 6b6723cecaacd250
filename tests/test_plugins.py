"""Packages that add kinds: examples/plugin/ installed beside vla_robot, and packages that are made wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Vla = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the example; on the path of a process, it is part of its environment."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(Path(__file__).parents[1] / "examples" / "plugin", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True)
    return folder / "site"


@pytest.fixture
def vla(tmp_path: Path, repository: Path) -> Vla:
    """Run one command in an empty working folder, with more folders on the path."""

    def run(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{repository}", "COLUMNS": "300"}
        command = [sys.executable, "-m", "vla_robot.cli.main", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_its_kinds_and_recipes_are_listed(example: Path, vla: Vla) -> None:
    done = vla("list", site=example)
    assert done.returncode == 0, done.stderr
    for line in (
        "envs/point",
        "policies/wave",
        "launch/wave",
        "policies: wave",
        "worlds: point",
        "teleoperators: metronome",
        "vla-robot-example 1.0",
    ):
        assert line in done.stdout


def test_its_recipes_are_valid_and_explained(example: Path, vla: Vla) -> None:
    done = vla("check", "envs/point", "policies/wave", "launch/wave", "metronome", site=example)
    assert (done.returncode, done.stderr) == (0, "")
    assert "All 4 recipes are valid." in done.stdout
    shown = vla("show", "policies/wave", site=example).stdout
    assert '# Moves the tool to and fro along one axis.\nkind = "wave"' in shown
    assert "# control steps of one way to and fro.\nperiod_steps = 20" in shown


def test_its_policy_drives_its_world(example: Path, vla: Vla, tmp_path: Path) -> None:
    done = vla("run", "launch/wave.toml", "--out", str(tmp_path / "out"), site=example)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 succeeded" in done.stdout


SCRIPT = """
import numpy as np
from vla_robot.recipe import read
from vla_robot.recipe.teleoperator import TeleoperatorRecipe
from vla_robot.recipe.env import EnvRecipe
from vla_robot.policy.kinds import load_policy
from vla_robot.recipe.policy import PolicyRecipe
from vla_robot.teleop.kinds import open_teleoperator
from vla_robot.testing import check_policy, check_world
from vla_robot.world.kinds import build_world, is_robot

recipe = read(EnvRecipe, "point")
assert not is_robot(recipe)
check_world(lambda: build_world(recipe))
arm = build_world(recipe).embodiment
check_policy(lambda: load_policy(read(PolicyRecipe, "wave"), arm), arm)
world = build_world(recipe)
device = open_teleoperator(read(TeleoperatorRecipe, "metronome"), world.embodiment)
device.see(world.reset(0))
device.wake()
moves = [device.move().action for _ in range(20)]
print(sorted({float(np.sign(action[2])) for action in moves}))
"""


def test_its_parts_keep_the_contracts_of_the_ports(example: Path, repository: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{example}{os.pathsep}{repository}"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[-1.0, 1.0]\n", done.stderr


def package(site: Path, name: str, entry: str, code: str) -> None:
    """A distribution in a folder, as pip would have left it."""
    metadata = site / f"{name}-2.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text(entry)
    (site / f"{name}.py").write_text(code)


OURS = """
from dataclasses import dataclass
from typing import Literal
from vla_robot.recipe import Plugin
from vla_robot.recipe.policy import PolicyRecipe

@dataclass(frozen=True, kw_only=True)
class MineRecipe(PolicyRecipe):
    kind: Literal["mine"] = "mine"

PLUGIN = Plugin(MineRecipe, "mine", lambda recipe, embodiment: None)
"""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import a_package_that_is_not_there",
            "of broken 2.0 cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("def (", "of broken 2.0 cannot be imported: SyntaxError"),
        ("", "of broken 2.0 cannot be imported: AttributeError"),
        ("PLUGIN = 3", "of broken 2.0 cannot be used: broken:PLUGIN is a int, not a vla_robot.recipe.Plugin"),
        (
            OURS.replace("(PolicyRecipe)", ""),
            "of broken 2.0 cannot be used: its recipe MineRecipe is no dataclass that derives from PolicyRecipe",
        ),
        (OURS.replace('"mine"]', '"other"]'), 'must have the field `kind: Literal["mine"] = "mine"`'),
    ],
)
def test_a_package_that_is_made_wrong_is_named_in_one_sentence(tmp_path: Path, vla: Vla, code: str, says: str) -> None:
    package(tmp_path / "site", "broken", "[vla_robot.policies]\nmine = broken:PLUGIN\n", code)
    done = vla("check", "policies/hold", site=tmp_path / "site")
    assert done.returncode == 0, "a recipe of another kind does not import it"
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.toml").write_text('kind = "mine"\n')
    done = vla("check", "policies/mine.toml", site=tmp_path / "site")
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert says in vla("list", "policies", site=tmp_path / "site").stdout


def test_a_built_in_kind_is_not_replaced(tmp_path: Path, vla: Vla) -> None:
    package(tmp_path / "site", "thief", "[vla_robot.policies]\nhold = thief:PLUGIN\n", OURS.replace("mine", "hold"))
    assert "Keeps the arm where it is." in vla("show", "policies/hold", site=tmp_path / "site").stdout
    doctor = vla("list", site=tmp_path / "site").stdout
    assert "the plugin 'hold' of thief 2.0 cannot be used: the policy kind 'hold' is built in" in doctor


def test_two_packages_with_one_kind_are_both_named(tmp_path: Path, vla: Vla) -> None:
    for name in ("one", "two"):
        package(tmp_path / "site", name, f"[vla_robot.policies]\nmine = {name}:PLUGIN\n", OURS)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.toml").write_text('kind = "mine"\n')
    done = vla("check", "policies/mine.toml", site=tmp_path / "site")
    assert done.returncode == 2
    assert "is added by one 2.0 and two 2.0" in done.stderr or "is added by two 2.0 and one 2.0" in done.stderr


def test_the_doctor_names_plugins(example: Path, repository: Path, tmp_path: Path) -> None:
    script = "from vla_robot.cli.doctor.doctor import check_plugins as check\n"
    script += "for finding in check(): print(finding.name, finding.seen, finding.verdict)"
    environment = os.environ | {"PYTHONPATH": f"{example}{os.pathsep}{repository}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "plugin policies: wave vla-robot-example 1.0: moves the tool to and fro along one axis ok" in done.stdout
