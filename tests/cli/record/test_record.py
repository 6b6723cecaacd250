"""`vla record`, end to end in a world that needs no graphics."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.cli.record import record
from vla_robot.cli.record.record import Build, RecordArgs, plan
from vla_robot.core.errors import RecipeError
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.recipe.dataset import DatasetRecipe, Recording
from vla_robot.recipe.env_source import find_env

RECIPE = """
env = "{env}"
[[recordings]]
episodes = 1
[[recordings]]
noise = 1.0
episodes = 1
seed = 7
"""


@pytest.fixture
def env(small_tabletop: Callable[..., Path]) -> Path:
    return small_tabletop(cameras=())


def run(env: Path, out: Path, *options: str) -> int:
    return main(["record", "--env", str(env), "--out", str(out), "--workers", "1", *options])


def test_demonstrations_are_recorded_and_continued(env: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, results = tmp_path / "demos", tmp_path / "results.json"
    assert run(env, out, "--episodes", "2", "--seed", "5", "--json", str(results)) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 succeeded" in printed
    assert "Next: name it under `data` in a launch file for `vla finetune`" in printed
    document = json.loads(results.read_text())
    assert (document["command"], document["successes"], document["success_rate"]) == ("record", 2, 1.0)
    assert [(e["seed"], e["success"], e["kept"]) for e in document["episodes"]] == [(5, True, True), (6, True, True)]

    assert run(env, out, "--episodes", "3", "--seed", "5") == 0
    assert "2 of them are recorded" in capsys.readouterr().out
    demos = open_demos(out)
    assert [(e.seed, e.driver, e.success) for e in demos.episodes] == [(s, "expert", True) for s in (5, 6, 7)]
    assert demos.embodiment.name == "sixjoint"

    assert run(env, out, "--episodes", "3", "--seed", "5") == 0
    assert "No new episode" in capsys.readouterr().out
    assert open_demos(out).num_frames == demos.num_frames


def test_the_number_of_workers_does_not_change_the_dataset(env: Path, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        options = ["--episodes", "3", "--noise", "1", "--save", "all", "--workers", workers]
        assert main(["record", "--env", str(env), "--out", str(tmp_path / workers), *options]) == 0
    one, two = open_demos(tmp_path / "1"), open_demos(tmp_path / "2")
    assert [e.seed for e in one.episodes] == [e.seed for e in two.episodes] == [0, 1, 2]
    np.testing.assert_array_equal(one.states, two.states)
    np.testing.assert_array_equal(one.actions, two.actions)
    assert one.executed is not None
    assert np.abs(one.executed - one.actions).max() > 0.01, "noise is executed, and the label stays clean"
    assert {e.driver for e in one.episodes} == {"expert, noise 1"}


def test_the_same_seed_is_recorded_in_each_world(env: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, other = tmp_path / "demos", env.with_name("other.toml")
    other.write_text(env.read_text())
    for world in (env, other):
        assert run(world, out, "--episodes", "1") == 0
    assert [episode.seed for episode in open_demos(out).episodes] == [0, 0]
    capsys.readouterr()
    assert run(other, out, "--episodes", "1") == 0
    assert "1 of them are recorded" in capsys.readouterr().out


def test_a_suite_is_recorded_task_by_task() -> None:
    builds = record._builds(
        find_env("libero_object"), DatasetRecipe("libero_object", (Recording(),)), Recording(), None
    )
    assert [build.env.name for build in builds] == [f"libero_object/{task}" for task in range(10)]
    assert [build.env.recipe.task for build in builds] == list(map(str, range(10)))  # type: ignore[attr-defined]


def test_a_recording_of_a_suite_names_its_tasks() -> None:
    recording = Recording(tasks=("7", "2"))
    builds = record._builds(find_env("libero_object"), DatasetRecipe("libero_object", (recording,)), recording, None)
    assert [build.env.name for build in builds] == ["libero_object/2", "libero_object/7"]


@pytest.mark.parametrize(
    ("env", "has"),
    [("metaworld_mt10", r"; did you mean 'reach'\? Available: .*push, reach"), ("lift", r"\. Available: none")],
)
def test_tasks_that_a_world_does_not_have_are_refused(env: str, has: str) -> None:
    recording = Recording(tasks=("reech",))
    with pytest.raises(RecipeError, match=rf"tasks: unknown task of '{env}' 'reech'{has}"):
        record._builds(find_env(env), DatasetRecipe(env, (recording,)), recording, None)


def test_a_dataset_recipe_records_all_its_parts(env: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE.format(env=env))
    assert main(["record", str(recipe), "--out", str(tmp_path / "demos"), "--workers", "1"]) == 0
    episodes = open_demos(tmp_path / "demos").episodes
    assert [(e.seed, e.driver) for e in episodes] == [(0, "expert"), (7, "expert, noise 1")]


def test_a_learner_drives_without_the_truth_and_its_failures_are_kept(env: Path, tmp_path: Path) -> None:
    assert run(env, tmp_path / "demos", "--episodes", "1", "--driver", "hold") == 0
    demos = open_demos(tmp_path / "demos")
    assert [(e.driver, e.success, len(e)) for e in demos.episodes] == [("hold", False, 100)]
    assert demos.executed is not None
    assert (demos.executed[:, :6] == 0).all()
    assert (np.abs(demos.actions[:, :3]).max(axis=1) > 0).all(), "the expert wants to move"


def test_ctrl_c_keeps_what_is_finished(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def pressed(self: object, event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(record._Bar, "add", pressed)
    assert run(env, tmp_path / "demos", "--episodes", "5") == EXIT_INTERRUPTED
    assert "the same command continues" in capsys.readouterr().out
    assert len(open_demos(tmp_path / "demos").episodes) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "lifft"], "unknown env 'lifft'; did you mean 'lift'"),
        (["--env", "lift", "--driver", "exprt"], "unknown policy 'exprt'; did you mean 'expert'"),
        (["--env", "lift", "--noise", "2"], "noise is 2; it must lie between 0 and 1"),
        (["--env", "lift", "--episodes", "0"], "episodes is 0; at least 1 is needed"),
        (["--env", "lift", "--image-size", "4"], "image_size is 4; it must lie between 16 and 640"),
        (["--env", "lift", "--workers", "0"], "--workers is 0; at least 1 is needed"),
        ([], "say what to record: a dataset recipe"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["record", "--out", str(tmp_path / "demos"), *options]) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demos").exists()


def test_a_mistake_that_shows_in_a_worker_arrives_as_one_paragraph(
    env: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    env.write_text(env.read_text() + 'expert = "juggle"\n')
    assert run(env, tmp_path / "demos") == EXIT_USER_ERROR
    assert "unknown expert 'juggle'" in capsys.readouterr().err


def test_experts_failures_are_left_out_and_learners_kept_unless_told_otherwise() -> None:
    assert Recording().kept == "success"
    assert Recording(driver="openvla_nano").kept == "all"
    assert Recording(save="all").kept == "all"


def test_options_make_a_recipe_of_one_recording() -> None:
    args = RecordArgs(out=Path("x"), env="lift", episodes=7, seed=3, noise=0.5, image_size=84)
    assert plan(args) == DatasetRecipe("lift", (Recording(noise=0.5, episodes=7, seed=3),), image_size=84)


@pytest.mark.parametrize("option", [{"episodes": 7}, {"seed": 3}, {"noise": 0.5}, {"image_size": 84}, {"save": "all"}])
def test_an_option_that_a_recipe_would_ignore_is_refused(option: dict[str, Any]) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(RecipeError, match=f"--{name}: with a dataset recipe"):
        plan(RecordArgs(out=Path("x"), recipe="lift_noisy", **option))


def test_a_recipe_without_recordings_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no \[\[recordings\]\] table"):
        DatasetRecipe("lift", ())


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("policies/expert.toml", "expert"),
        ("policies/openvla_nano", "openvla_nano"),
        ("runs/lift_nano/final", "lift_nano/final"),
    ],
)
def test_drivers_are_named_alike_on_every_computer(policy: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / policy
    path.parent.mkdir(parents=True)
    path.touch() if path.suffix else path.mkdir()
    assert Build(find_env("lift"), Path("l"), path, 0.0, None).driver_name == name


def test_a_disk_that_fills_up_keeps_every_episode_and_the_same_command_goes_on(
    env: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture
) -> None:
    out = small_disk(120) / "demos"
    assert run(env, out, "--episodes", "50") == EXIT_USER_ERROR
    told, error = capsys.readouterr()
    kept = len(open_demos(out).episodes)
    assert 0 < kept < 50
    assert f"{kept} episodes in" in told and f"{out} holds {kept} episodes" in told
    assert f"No space left on device. Its {kept} finished episodes are safe. Make room on that disk, then" in error
    subprocess.run(["mount", "-o", "remount,size=100m", str(out.parent)], check=True)
    assert run(env, out, "--episodes", str(kept + 1)) == 0
    assert [episode.seed for episode in open_demos(out).episodes] == list(range(kept + 1))
