"""Packages that add kinds: examples/plugin/ installed beside vla_robot, and packages that are made wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from forked_vla import ForkedVla

from vla_robot.data.formats.kinds import FORMATS
from vla_robot.data.formats.open import open_source
from vla_robot.recipe.reading.formats import BUILT_IN

Vla = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the example; on the path of a process, it is part of its environment."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(Path(__file__).parents[1] / "examples" / "plugin", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def forked_vla(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedVla]:
    """Runs commands that find packages on a path of their own; nothing that was imported before looks for any."""
    modules = [f"vla_robot.cli.{name}" for name in ("main", "list_show_check", "data.data", "run.run")]
    with ForkedVla(modules, tmp_path_factory.mktemp("output")) as started:
        yield started


@pytest.fixture
def vla(forked_vla: ForkedVla, tmp_path: Path, repository: Path) -> Vla:
    """Run one command in an empty working folder, with more folders on the path."""

    def run(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
        return forked_vla(arguments, tmp_path, {"PYTHONPATH": f"{site}{os.pathsep}{repository}", "COLUMNS": "300"})

    return run


def test_its_kinds_and_recipes_are_listed(example: Path, vla: Vla) -> None:
    done = vla("list", site=example)
    assert done.returncode == 0, done.stderr
    for line in (
        "envs/point",
        "envs/phantom",
        "policies/wave",
        "datasets/tape",
        "launch/wave",
        "policies: wave",
        "worlds: point",
        "robots: phantom",
        "datasets: tape",
        "teleoperators: metronome",
        "vla-robot-example 1.0",
    ):
        assert line in done.stdout


RECIPES = ("envs/point", "envs/phantom", "policies/wave", "launch/wave", "metronome", "datasets/tape")


def test_its_recipes_are_valid_and_explained(example: Path, vla: Vla) -> None:
    done = vla("check", *RECIPES, site=example)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"All {len(RECIPES)} recipes are valid." in done.stdout
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
from vla_robot.data.formats.open import open_source
from vla_robot.recipe.policy import PolicyRecipe
from vla_robot.teleop.kinds import open_teleoperator
from vla_robot.testing import check_arm, check_episode_source, check_policy, check_world
from vla_robot.world.kinds import build_robot, build_world, is_robot

recipe = read(EnvRecipe, "point")
assert not is_robot(recipe)
check_world(lambda: build_world(recipe))
robot = read(EnvRecipe, "phantom")
assert is_robot(robot)
check_arm(lambda: build_robot(robot, lambda: False, None))
check_episode_source(lambda: open_source("tape"))
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
    write_tape(tmp_path / "tape")
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[-1.0, 1.0]\n", done.stderr


def write_tape(folder: Path) -> None:
    """A dataset of the example's format: two episodes, of 6 and 8 steps."""
    folder.mkdir()
    (folder / "tape.json").write_text('{"instruction": "move forward", "rate_hz": 10}')
    for number, steps in enumerate((6, 8)):
        lines = [f"{0.01 * step},0,0,{0.01 + 0.001 * step},0,0,0,0,0,{step % 2}" for step in range(steps)]
        text = "\n".join(["x,y,z,dx,dy,dz,droll,dpitch,dyaw,gripper", *lines])
        (folder / f"episode_{number:03d}.csv").write_text(text)


def test_a_dataset_of_its_format_is_inspected_and_becomes_one_of_lerobot(
    example: Path, vla: Vla, tmp_path: Path
) -> None:
    write_tape(tmp_path / "tape")
    done = vla("data", "inspect", "tape", site=example)
    assert done.returncode == 0, done.stderr
    assert "2 episodes of 6 to 8 steps" in done.stdout and "10 steps a second" in done.stdout
    done = vla("data", "convert", "tape", "made", "--to", "lerobot", site=example)
    assert done.returncode == 0, done.stderr
    assert "Nothing was lost." in done.stdout
    made, tape = open_source(tmp_path / "made"), (tmp_path / "tape" / "episode_001.csv").read_text()
    numbers = np.array([line.split(",") for line in tape.splitlines()[1:]], np.float64)
    assert (made.rate_hz, made.lengths.tolist()) == (10.0, [6, 8])
    np.testing.assert_array_equal(made.episode(1).numbers("action"), numbers[:, 3:])
    assert set(made.episode(1).instructions()) == {"move forward"}


def test_a_recipe_names_its_format_and_makes_its_steps_standard(example: Path, vla: Vla, tmp_path: Path) -> None:
    write_tape(tmp_path / "tape")
    done = vla("data", "stats", "tape", "--root", ".", "--out", "statistics.json", site=example)
    assert done.returncode == 0, done.stderr
    statistics = json.loads((tmp_path / "statistics.json").read_text())["tape"]
    assert statistics["num_transitions"] == 14
    assert statistics["action"]["max"][0] == pytest.approx(0.017)
    doctor = vla("data", "doctor", "tape", "--root", ".", site=example)
    assert "Traceback" not in doctor.stderr and "tape" in doctor.stdout


def test_training_on_its_format_says_how(example: Path, vla: Vla, tmp_path: Path) -> None:
    write_tape(tmp_path / "tape")
    done = vla("finetune", "--data", "tape", "--out", "run", site=example)
    assert done.returncode == 2
    assert "tape is of the format 'tape', and data takes LeRobot datasets: `vla data convert tape" in done.stderr


def test_without_the_package_its_dataset_is_none(vla: Vla, tmp_path: Path) -> None:
    write_tape(tmp_path / "tape")
    done = vla("data", "inspect", "tape", site=tmp_path)
    assert done.returncode == 2
    assert "is no dataset: neither RLDS" in done.stderr


@pytest.fixture
def bridge(example: Path, repository: Path, tmp_path: Path) -> Iterator[str]:
    """Address of a bridge that drives the example's robot."""
    environment = os.environ | {"PYTHONPATH": f"{example}{os.pathsep}{repository}", "PYTHONUNBUFFERED": "1"}
    patient = ("--max-age-s", "10", "--hold-after-s", "60", "--stop-after-s", "120")
    command = [sys.executable, "-m", "vla_robot.cli.main", "bridge", "phantom", "--bind", "tcp://127.0.0.1:0", *patient]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"listening on (tcp://\S+),", line):
                yield found.group(1)
                break
        process.terminate()
        process.communicate()
        assert any("listening" in line for line in lines), "".join(lines)


def test_its_policy_drives_its_robot_behind_a_bridge(example: Path, vla: Vla, tmp_path: Path, bridge: str) -> None:
    options = ("--episodes", "1", "--out", str(tmp_path / "out"))
    done = vla("run", "--robot", bridge, "--policy", "wave", *options, site=example)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 steps" in done.stdout, done.stdout


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
    assert "Holds the arm's pose." in vla("show", "policies/hold", site=tmp_path / "site").stdout
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
    assert "plugin robots: phantom vla-robot-example 1.0: an arm without motors, for vla bridge ok" in done.stdout
    assert "plugin datasets: tape vla-robot-example 1.0: a tape: numbers in CSV files beside" in done.stdout


def test_the_doctor_names_each_fault_in_each_group(faulty: Path, repository: Path) -> None:
    script = "from vla_robot.cli.doctor.doctor import check_plugins as check\n"
    script += "for finding in check(): print(finding.verdict, finding.seen, finding.fix)"
    environment = os.environ | {"PYTHONPATH": f"{faulty}{os.pathsep}{repository}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(TAKEN) * len(FAULTS) and all(line.startswith("fail") for line in lines)
    for group in TAKEN:
        for fault, (_, says) in FAULTS.items():
            name = f"{fault}_{group} 2.0"
            assert any(says in line and f"Update or uninstall {name}." in line for line in lines)


def test_the_formats_that_a_recipe_may_name_are_those_that_are_read() -> None:
    assert tuple(FORMATS) == BUILT_IN


TAKEN = {"policies": "hold", "worlds": "mujoco", "robots": "robot", "teleoperators": "leader", "datasets": "hdf5"}
"""Group of entry points -> a kind of ours."""
FAULTS = {
    "absent": ("import a_package_that_is_not_there", "cannot be imported: ModuleNotFoundError"),
    "wrong": ("PLUGIN = 3", "is a int, not a vla_robot.recipe."),
    "thief": (
        "from vla_robot.recipe import DatasetFormat, Plugin\nPLUGIN = {}".format(
            "DatasetFormat('', str, str) if 'datasets' in __name__ else Plugin(int, '', int)"
        ),
        "is built in",
    ),
}
"""What is wrong with a package -> its code, and what is said of it."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen packages: each of the faults in each of the groups."""
    site = tmp_path_factory.mktemp("faulty")
    for group, taken in TAKEN.items():
        for fault, (code, _) in FAULTS.items():
            name = f"{fault}_{group}"
            entry = f"[vla_robot.{group}]\n{taken if fault == 'thief' else name} = {name}:PLUGIN\n"
            package(site, name, entry, code)
    return site


def test_each_fault_in_each_group_is_listed_with_its_distribution(faulty: Path, vla: Vla) -> None:
    done = vla("list", "policies", site=faulty)
    assert done.returncode == 0, done.stderr
    for group in TAKEN:
        for fault, (_, says) in FAULTS.items():
            assert any(f"of {fault}_{group} 2.0 can" in line and says in line for line in done.stdout.splitlines())


def test_no_fault_breaks_what_does_not_use_it(faulty: Path, vla: Vla, tmp_path: Path) -> None:
    recipes = ("policies/hold", "envs/lift", "envs/desk_so101", "so101_leader", "datasets/oxe/bridge_orig")
    done = vla("check", *recipes, site=faulty)
    assert (done.returncode, done.stderr) == (0, "")
    golden = Path(__file__).parent / "golden" / "rlds_samples" / "bridge_orig"
    shutil.copytree(golden, tmp_path / "bridge_orig")
    done = vla("data", "inspect", "bridge_orig", "--episodes", "1", site=faulty)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", ["absent", "wrong"])
def test_each_group_names_the_distribution_where_its_kind_is_used(
    faulty: Path, vla: Vla, tmp_path: Path, fault: str
) -> None:
    folders = {"policies": "policies", "worlds": "envs", "robots": "envs", "teleoperators": "envs/teleoperators"}
    for group, folder in folders.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f"{group}.toml").write_text(f'kind = "{fault}_{group}"\n')
    (tmp_path / "datasets").mkdir()
    text = f'kind = "source"\nlocation = "."\nformat = "{fault}_datasets"\naction = ["action"]\n'
    (tmp_path / "datasets" / "mine.toml").write_text(text)
    checked = vla("check", *(f"{folder}/{group}.toml" for group, folder in folders.items()), site=faulty)
    opened = vla("data", "stats", "datasets/mine.toml", site=faulty)
    looked = vla("data", "inspect", ".", site=faulty)
    for done, groups in ((checked, [*folders]), (opened, ["datasets"]), (looked, ["datasets"])):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        for group in groups:
            assert f"of {fault}_{group} 2.0 can" in done.stderr and FAULTS[fault][1] in done.stderr


def test_a_format_that_fails_when_it_looks_is_named(vla: Vla, tmp_path: Path) -> None:
    code = "from vla_robot.recipe import DatasetFormat\nPLUGIN = DatasetFormat('', lambda place: 1 / 0, str)"
    package(tmp_path / "site", "rough", "[vla_robot.datasets]\nrough = rough:PLUGIN\n", code)
    done = vla("data", "inspect", "site", site=tmp_path / "site")
    assert done.returncode == 2
    assert "the plugin 'rough' of rough 2.0 fails when it looks at site: ZeroDivisionError" in done.stderr


def test_two_formats_that_recognise_one_dataset_are_both_named(vla: Vla, tmp_path: Path) -> None:
    code = "from vla_robot.recipe import DatasetFormat\nPLUGIN = DatasetFormat('', lambda place: True, str)"
    for name in ("one", "two"):
        package(tmp_path / "site", name, f"[vla_robot.datasets]\n{name} = {name}:PLUGIN\n", code)
    done = vla("data", "inspect", "site", site=tmp_path / "site")
    assert done.returncode == 2
    assert "'one' (one 2.0)" in done.stderr and "'two' (two 2.0)" in done.stderr
