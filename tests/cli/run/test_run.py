"""`vla run`: what it decides before anything starts, and how a run ends."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.cli.run import run
from vla_robot.cli.run.run import RunArgs, plan
from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.core.messages import Observation
from vla_robot.recipe.policy import OpenVLARecipe
from vla_robot.record.episode import EpisodeStep, EpisodeWriter, read_episode
from vla_robot.testing import FunctionPolicy, NoLimits, ToyWorld, toy_embodiment, toy_observation

POINT = toy_embodiment(step_m=1, height=16, width=16)
STEP = EpisodeStep(toy_observation(POINT), np.zeros(2), np.zeros(2), 0, success=False)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a world and a policy of its own."""
    for kind, text in (("envs", 'kind = "robosuite"\ntask = "Lift"\ninstruction = "go right"\n'), ("policies", "")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "mine.toml").write_text(text or 'kind = "hold"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Observation], float]], ToyWorld]:
    """Replaces the processes and models of a run by small ones; the loop, the log and the report are real."""

    def replace(decide: Callable[[Observation], float]) -> ToyWorld:
        world = ToyWorld(embodiment=POINT, goal=3, horizon=5)

        @contextmanager
        def opened(env: Path, privileged: bool) -> Iterator[ToyWorld]:
            yield world
            world.close()

        monkeypatch.setattr(run, "open_world", opened)
        monkeypatch.setattr(run, "build_policy", lambda *_: FunctionPolicy(decide))
        monkeypatch.setattr(run, "build_guard", lambda _: NoLimits())
        return world

    return replace


RUN = ["run", "--env", "mine", "--policy", "mine", "--episodes", "2", "--seed", "7", "--json", "out.json", "--out", "r"]


def test_a_launch_file_says_what_runs(checkout: Path, repository: Path) -> None:
    what = plan(RunArgs(str(repository / "launch" / "lift.toml"), env="mine", policy="mine"))
    assert what.source == str(repository / "launch" / "lift.toml")
    assert list(what.launch.seeds) == [10000, 10001, 10002, 10003, 10004]


def test_an_option_beats_the_launch_file(checkout: Path) -> None:
    what = plan(RunArgs("lift", env="mine", policy="mine", episodes=1, seed=3, real_time=True, rows=4))
    assert what.env.path == checkout / "envs" / "mine.toml"
    assert (list(what.launch.seeds), what.launch.real_time, what.launch.rows) == ([3], True, 4)


def test_world_and_policy_suffice_without_a_launch_file(checkout: Path) -> None:
    assert plan(RunArgs(env="mine", policy="mine")).source == "the command line"


@pytest.mark.parametrize("args", [RunArgs(), RunArgs(env="mine"), RunArgs(policy="mine")])
def test_nothing_to_run_is_explained(checkout: Path, args: RunArgs) -> None:
    with pytest.raises(RecipeError, match=r"say what to run: a launch file.*vla list"):
        plan(args)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lifft"], "unknown launch file 'lifft'; did you mean 'lift'?"),
        (["--env", "mone", "--policy", "mine"], "unknown env 'mone'; did you mean 'mine'?"),
        (["--env", "mine", "--policy", "policies/mnie"], "unknown policy 'mnie'; did you mean 'mine'?"),
        (["--env", "mine", "--policy", "mine", "--episodes", "0"], "episodes is 0; at least 1 is needed"),
        (
            ["--env", "mine", "--policy", "mine", "--ask-when-unsure", "entropy:2"],
            "hands over to a person: add --takeover DEVICE",
        ),
        *(
            (["--env", "mine", "--policy", "mine", "--takeover", "keyboard", "--ask-when-unsure", given], message)
            for given, message in (
                ("2.96", "--ask-when-unsure is '2.96': name the signal, too, as in entropy:2.96 or chunk_gap:0.15"),
                ("gap:0.2", "unknown signal of --ask-when-unsure 'gap'; did you mean 'chunk_gap'?"),
                ("entropy:nan", "--ask-when-unsure is 'entropy:nan'; a threshold above 0 nats is needed"),
                ("entropy:inf", "--ask-when-unsure is 'entropy:inf'; a threshold above 0 nats is needed"),
                ("chunk_gap:15", "'chunk_gap:15'; a threshold above 0 and below 1 of the range is needed"),
                ("chunk_gap:much", "'chunk_gap:much'; a threshold above 0 and below 1 of the range is needed"),
            )
        ),
        (["--env", "mine", "--policy", "mine", "--seed", "-1"], "seed is -1; it must be 0 or more"),
        (["--env", "mine", "--policy", "mine", "--seed", str(2**63)], "must be at most 9223372036854775807"),
        (["--env", "mine", "--policy", "mine", "--seed", str(2**63 - 1)], "the last one, 9223372036854775811, must"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    checkout: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["run", *argv]) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_the_device_is_named_and_one_that_is_not_there_is_told_before_the_world_opens(
    checkout: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = str(repository / "policies/openvla_nano")
    what = plan(RunArgs(env="mine", policy=nano, device="cpu"))
    assert isinstance(what.policy.recipe, OpenVLARecipe)
    assert (what.policy.recipe.device, what.device) == ("cpu", "cpu")
    assert plan(RunArgs(env="mine", policy="mine")).device is None
    assert main(["run", "--env", "mine", "--policy", nano, "--device", "cuda:99"]) == EXIT_USER_ERROR
    assert "device is 'cuda:99', but" in capsys.readouterr().err
    assert main([*RUN, "--device", "cuda"]) == EXIT_USER_ERROR
    assert "policy 'mine' of kind 'hold' has no weights in this process" in capsys.readouterr().err


def test_a_misspelt_camera_key_is_told_with_its_place(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (checkout / "envs" / "mine.toml").open("a") as recipe:
        recipe.write('[[cameras]]\nname = "front"\nsorce = "frontview"\n')
    assert main(RUN) == EXIT_USER_ERROR
    assert "cameras[0].sorce: unknown key 'sorce'; did you mean 'source'?" in capsys.readouterr().err


def test_a_run_writes_a_report_and_numbers(
    parts: Callable[..., ToyWorld], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = parts(lambda _: 1.0)
    assert main(RUN) == 0
    written = json.loads(Path("out.json").read_text())
    assert written["command"] == "run"
    assert [(e["seed"], e["success"], e["steps"]) for e in written["episodes"]] == [(7, True, 3), (8, True, 3)]
    assert (written["successes"], written["success_rate"]) == (2, 1.0)
    assert {"mujoco", "robosuite", "torch"} <= set(written["versions"])
    assert (checkout / "r" / "report.html").is_file()
    assert world.closed
    out = capsys.readouterr().out
    assert out.startswith("vla run: the command line\n  world envs/mine.toml, policy policies/mine.toml, 2 episodes")
    assert out.splitlines()[-1].startswith("Next: `vla run --env envs/mine.toml --policy policies/mine.toml")


def test_a_low_score_is_an_answer_and_not_a_failure(parts: Callable[..., ToyWorld]) -> None:
    parts(lambda _: 0.0)
    assert main(RUN) == 0
    assert json.loads(Path("out.json").read_text())["successes"] == 0


def test_a_policy_without_an_answer_fails_the_command(parts: Callable[..., ToyWorld]) -> None:
    def lost(_: Observation) -> float:
        raise PolicyError("no idea")

    parts(lost)
    assert main(RUN) == EXIT_FAILED
    assert json.loads(Path("out.json").read_text())["episodes"][0]["error"] == "no idea"


def test_ctrl_c_keeps_the_finished_episodes(parts: Callable[..., ToyWorld], capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def pressed_in_the_second_episode(_: Observation) -> float:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt
        return 1.0

    world = parts(pressed_in_the_second_episode)
    assert main(RUN) == EXIT_INTERRUPTED
    written = json.loads(Path("out.json").read_text())
    assert [e["seed"] for e in written["episodes"]] == [7]
    assert written["interrupted"] is True
    assert world.closed
    assert "Traceback" not in capsys.readouterr().err


def without_folder(argv: list[str]) -> list[str]:
    at = argv.index("--out")
    return argv[:at] + argv[at + 2 :]


def test_two_runs_of_one_second_do_not_meet(parts: Callable[..., ToyWorld], checkout: Path) -> None:
    """The second begins and ends in the midst of the first."""
    world, status = parts(lambda _: 1.0), []

    def begins_another(_: Observation) -> float:
        if not status:
            status.append(None)
            inner = world.x, world.at_step
            parts(lambda _: 1.0)
            status.append(main(without_folder(RUN)))
            (world.x, world.at_step) = inner
        return 1.0

    world = parts(begins_another)
    assert main(without_folder(RUN)) == 0
    assert status == [None, 0]
    folders = sorted((checkout / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        logs = sorted((folder / "episodes").iterdir())
        assert [path.name for path in logs] == ["seed_7.vlalog", "seed_8.vlalog"]
        assert all(read_episode(path).complete for path in logs)
        assert (folder / "report.html").is_file() and not (folder / ".lock").exists()


def test_a_second_run_in_the_same_folder_is_told_who_writes_there(
    parts: Callable[..., ToyWorld], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status: list[int] = []

    def begins_another(_: Observation) -> float:
        if not status:
            status.append(main(RUN))
        return 1.0

    parts(begins_another)
    assert main(RUN) == 0
    assert status == [EXIT_USER_ERROR]
    assert f"r is being written by process {os.getpid()} (" in capsys.readouterr().err
    assert [read_episode(path).complete for path in sorted((checkout / "r" / "episodes").iterdir())] == [True, True]


def test_a_run_that_cannot_begin_leaves_no_folder(
    parts: Callable[..., ToyWorld], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise RecipeError("no such checkpoint")

    parts(lambda _: 1.0)
    monkeypatch.setattr(run, "build_policy", refuses)
    assert main(RUN) == EXIT_USER_ERROR
    assert main(without_folder(RUN)) == EXIT_USER_ERROR
    assert not (checkout / "r").exists() and not (checkout / "runs").exists()


def test_the_same_command_keeps_what_a_dead_run_left(
    parts: Callable[..., ToyWorld], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "r" / "episodes").mkdir(parents=True)
    writer = EpisodeWriter(checkout / "r" / "episodes" / "seed_7.vlalog", {"seed": 7})
    writer.add(STEP)
    writer.abandon()
    left = (checkout / "r" / "episodes" / "seed_7.vlalog.part").read_bytes()
    parts(lambda _: 1.0)
    assert main(RUN) == 0
    assert "1 episodes of a crashed run are in r/episodes" in capsys.readouterr().out
    aside = checkout / "r" / "episodes" / "seed_7.crashed-1.vlalog.part"
    assert aside.read_bytes() == left
    assert len(read_episode(aside).steps) == 1
    assert read_episode(checkout / "r" / "episodes" / "seed_7.vlalog").complete


def test_a_disk_that_fills_up_ends_the_run_with_its_table_and_the_finished_episodes(
    parts: Callable[..., ToyWorld],
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(400)

    def fills_up_in_the_second_episode(observation: Observation) -> float:
        if (disk / "r" / "episodes" / "seed_7.vlalog").exists():
            with contextlib.suppress(OSError):
                (disk / "ballast").write_bytes(bytes(1 << 20))
        return 1.0

    parts(fills_up_in_the_second_episode)
    assert main([*RUN, "--out", str(disk / "r")]) == EXIT_USER_ERROR
    out, error = capsys.readouterr()
    logs = list((disk / "r" / "episodes").glob("*.vlalog"))
    kept = len(logs)  # the second has its name if it still found room in its last page
    assert f"{kept} of {kept}" in out and f"Finished episodes, saved in {disk / 'r' / 'episodes'}: {kept}." in out
    assert "No space left on device" in error and "Make room on that disk" in error
    assert "Traceback" not in error
    assert disk / "r" / "episodes" / "seed_7.vlalog" in logs and all(read_episode(log).complete for log in logs)


def test_results_that_cannot_be_written_come_after_those_on_the_screen(
    parts: Callable[..., ToyWorld], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    parts(lambda _: 1.0)
    assert main([*RUN, "--json", "file/out.json"]) == EXIT_USER_ERROR
    out, error = capsys.readouterr()
    assert "2 of 2" in out
    assert "cannot write file/out.json" in error
    assert (checkout / "r" / "report.html").is_file()
