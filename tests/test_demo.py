"""What `make demo` promises, through the real command: two processes, the shipped weights, success."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_robot.cli.build import build_policy
from vla_robot.core.errors import ContractError
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy_source import find_policy

pytestmark = pytest.mark.sim
VLA = [sys.executable, "-m", "vla_robot.cli.main"]
SEEDS = 3


def vla(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VLA, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def one_paragraph(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as a user's mistake."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder in which the demo has run on a few seeds."""
    folder = tmp_path_factory.mktemp("demo")
    root = Path(__file__).resolve().parent.parent
    done = vla("run", "launch/lift.toml", "--episodes", str(SEEDS), "--out", str(folder / "run"), "--json",
               str(folder / "out.json"), cwd=root)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_the_shipped_policy_lifts_the_cube(demo: Path) -> None:
    results = json.loads((demo / "out.json").read_text())
    assert len(results["episodes"]) == SEEDS
    assert results["successes"] >= SEEDS - 1
    assert results["success_rate"] == results["successes"] / SEEDS
    lifted = [episode for episode in results["episodes"] if episode["success"]]
    assert all(10 <= episode["steps"] < 100 for episode in lifted)


def test_the_numbers_say_where_they_are_from(demo: Path) -> None:
    results = json.loads((demo / "out.json").read_text())
    assert all(results["versions"][name] for name in ("mujoco", "robosuite", "torch"))
    assert results["machine"]
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["capture_to_command_p50"]["unit"] == "ms"
    assert rows["capture_to_command_p50"]["value"] > 0


def test_the_demo_leaves_a_report_with_videos_and_says_what_is_next(demo: Path) -> None:
    report = (demo / "run" / "report.html").read_text()
    assert "lift the red cube" in report
    assert len(list((demo / "run" / "videos").glob("*.mp4"))) == SEEDS
    assert len(list((demo / "run" / "episodes").iterdir())) == SEEDS
    assert "Next: " in (demo / "stdout").read_text().splitlines()[-1]


def test_the_same_seed_gives_the_same_actions_in_another_process(demo: Path, repository: Path, tmp_path: Path) -> None:
    from vla_robot.record.episode import read_episode

    vla("run", "launch/lift.toml", "--episodes", "1", "--out", str(tmp_path / "again"), cwd=repository)
    first, second = (next(iter(sorted((root / "episodes").iterdir()))) for root in (demo / "run", tmp_path / "again"))
    once, again = ([step.executed for step in read_episode(path).steps] for path in (first, second))
    assert len(once) > 1 and all(action is not None for action in once)
    np.testing.assert_array_equal(once, again)


def test_a_policy_for_another_rate_is_refused_with_the_difference(repository: Path, tmp_path: Path) -> None:
    text = (repository / "envs" / "lift.toml").read_text().replace("rate_hz = 10 ", "rate_hz = 20 ")
    (tmp_path / "fast.toml").write_text(text)
    message = one_paragraph(vla("run", "--env", str(tmp_path / "fast.toml"), "--policy", "openvla_nano", cwd=tmp_path))
    assert "the policy was trained at 10 Hz, the world runs at 20 Hz" in message


def test_a_world_without_the_policys_camera_is_refused(repository: Path, tmp_path: Path) -> None:
    text = (repository / "envs" / "tabletop.toml").read_text().replace('name = "wrist"', 'name = "wrst"')
    scene = (repository / "envs" / "tabletop.xml").resolve()
    (tmp_path / "odd.toml").write_text(text.replace('"tabletop.xml"', f'"{scene}"'))
    env = find("envs", tmp_path / "odd.toml")
    from vla_robot.world.kinds import build_world

    world = build_world(read(EnvRecipe, env))
    with pytest.raises(ContractError, match="unknown camera 'wrist'; did you mean 'wrst'"):
        build_policy(find_policy("openvla_nano"), read(EnvRecipe, env), world.embodiment)
    world.close()


def test_corrupt_weights_are_told_and_nothing_runs(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (repository / "policies" / "openvla_nano").iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    message = one_paragraph(vla("run", "--env", "tabletop", "--policy", str(broken), cwd=tmp_path))
    assert "is damaged or not safetensors" in message
    assert not (tmp_path / "runs").exists()


def test_without_opengl_the_fix_is_named(repository: Path, tmp_path: Path) -> None:
    done = vla("run", "--env", "lift", "--policy", "hold", "--episodes", "1", cwd=tmp_path, MUJOCO_GL="nonsense")
    assert "OpenGL cannot start here (MUJOCO_GL=nonsense)" in one_paragraph(done)
    assert "apt-get install libegl1" in done.stderr


def test_ctrl_c_ends_within_two_seconds_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*VLA, "run", "--env", "tabletop", "--policy", "hold", "--episodes", "500", "--out", str(tmp_path / "run")],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "timeout" not in process.stdout.readline():  # the first finished episode
        assert process.poll() is None
    children = _children(process.pid)
    assert children
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130  # the promise is 2 s; 500 episodes take longer than a busy computer does
    assert (tmp_path / "run" / "report.html").exists()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
