"""What `make demo` promises, through the real command: two processes, the shipped weights, success."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_robot.cli.build import build_policy
from vla_robot.cli.main import main
from vla_robot.core.errors import ContractError
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy_source import find_policy

pytestmark = pytest.mark.sim
VLA = [sys.executable, "-m", "vla_robot.cli.main"]
SEEDS = 3


Refuse = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refused(*arguments)` is the message, of one paragraph, of a command that fails as a user's mistake. It runs in
    this process, which has imported torch, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        capfd.readouterr()
        assert main(arguments) == 2
        message = capfd.readouterr().err
        assert "Traceback" not in message
        assert len(message.strip().splitlines()) == 1
        return message

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run on a few seeds."""
    folder = tmp_path_factory.mktemp("demo")
    command = [*VLA, "run", "launch/lift.toml", "--episodes", str(SEEDS), "--out", str(folder / "run")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [*command, "--json", str(folder / "out.json")], cwd=root, capture_output=True, text=True, check=False
    )
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


def test_the_same_seed_gives_the_same_actions_in_another_process(
    demo: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_robot.record.episode import read_episode

    monkeypatch.chdir(repository)
    assert main(["run", "launch/lift.toml", "--episodes", "1", "--out", str(tmp_path / "again")]) == 0
    first, second = (next(iter(sorted((root / "episodes").iterdir()))) for root in (demo / "run", tmp_path / "again"))
    once, again = ([step.executed for step in read_episode(path).steps] for path in (first, second))
    assert len(once) > 1 and all(action is not None for action in once)
    np.testing.assert_array_equal(once, again)


def test_a_policy_for_another_rate_is_refused_with_the_difference(
    repository: Path, tmp_path: Path, refused: Refuse
) -> None:
    text = (repository / "envs" / "lift.toml").read_text().replace("rate_hz = 10 ", "rate_hz = 20 ")
    (tmp_path / "fast.toml").write_text(text)
    message = refused("run", "--env", str(tmp_path / "fast.toml"), "--policy", "openvla_nano")
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


def test_corrupt_weights_are_told_and_nothing_runs(repository: Path, tmp_path: Path, refused: Refuse) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (repository / "policies" / "openvla_nano").iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    message = refused("run", "--env", "tabletop", "--policy", str(broken))
    assert "is damaged or not safetensors" in message
    assert not (tmp_path / "runs").exists()


def test_without_opengl_the_fix_is_named(refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    message = refused("run", "--env", "lift", "--policy", "hold", "--episodes", "1")
    assert "OpenGL cannot start here (MUJOCO_GL=nonsense)" in message
    assert "apt-get install libegl1" in message


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
