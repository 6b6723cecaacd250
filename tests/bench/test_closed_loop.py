"""The table of policies in closed loop, with one episode of each world."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.models import closed_loop, error_by_task, scores
from benchmarks.models.closed_loop import ClosedLoopArgs
from benchmarks.models.error_by_task import ErrorByTaskArgs, errors
from benchmarks.models.inference_times import ours
from benchmarks.models.scores import Score, labels, trained_s
from benchmarks.models.turns import take_turns
from benchmarks.policy import PolicyArgs, measure
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import normalise, unnormalise
from vla_robot.recipe.finetune import CodecRecipe, DemosFinetuneRecipe, HeadRecipe
from vla_robot.recipe.policy import CheckpointRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.finetune import finetune

from ..train.conftest import TINY, write_demos


@pytest.mark.slow
def test_the_table_has_what_vla_eval_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"lift": (2, 10000), "lift_colour": (1, 20000)}
    monkeypatch.setattr(scores, "WORLDS", few)
    table = tmp_path / "table.json"
    args = ClosedLoopArgs(tmp_path / "out", policies=("openvla_nano",), rounds=4, workers=1, json=table)
    assert closed_loop.main(args) == 0
    values = {row["name"]: row["value"] for row in json.loads(table.read_text())["rows"]}
    episodes = json.loads((tmp_path / "out" / "lift" / "openvla_nano.json").read_text())["episodes"]
    assert values["openvla_nano/lift/successes"] == sum(e["success"] for e in episodes) == 2
    assert values["openvla_nano/lift/stalled"] == 0
    assert values["openvla_nano/parameters"] == 2_362_784
    assert values["openvla_nano/passes"] >= 1
    assert values["openvla_nano/inference_p50"] > 0
    assert values["openvla_nano/tokens"] == 7
    assert 0 < values["openvla_nano/error"] < 0.2  # of all possible differences, which reach 2


def test_a_score_has_wilsons_interval() -> None:
    assert str(Score(50, 47, 0, 0)) == "47 of 50 (84% to 98%)"


def test_trainings_are_told_apart_by_their_runs() -> None:
    assert labels(["openvla_nano", "data/a/final", "data/b/final"]) == {
        "openvla_nano": "openvla_nano",
        "a": "data/a/final",
        "b": "data/b/final",
    }
    with pytest.raises(RecipeError, match="several are called a;"):
        labels(["a", "data/a/final"])


def test_a_policy_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="of kind 'hold', whose inference this does not time"):
        closed_loop.main(ClosedLoopArgs(tmp_path, policies=("hold",)))


def test_the_time_of_all_trainings_is_added(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    recipe = find_policy("openvla_nano").recipe
    assert isinstance(recipe, CheckpointRecipe)
    shutil.copytree(recipe.checkpoint, folder)
    (folder / "training.json").unlink(missing_ok=True)
    assert trained_s(str(folder)) is None
    trainings = [{"seconds": 50.0, "cpu_seconds": 40.0}, {"seconds": 3.0, "cpu_seconds": 2.5, "processes": 2}]
    (folder / "training.json").write_text(json.dumps({"trainings": trainings}))
    assert trained_s(str(folder)) == 45.0


@pytest.mark.parametrize("said", [{"codec": CodecRecipe("words", largest=9)}, {"head": HeadRecipe()}])
def test_policies_that_answer_otherwise_are_timed_whole(said: dict[str, Any], tmp_path: Path) -> None:
    tiny = DemosFinetuneRecipe(
        data=(write_demos(tmp_path / "light"),), architecture=replace(TINY, family="paligemma", max_positions=128),
        dataset_name="light", chunk=2, steps=3, batch_size=8, warmup_steps=1, held_out=0.2, **said,
    )  # fmt: skip
    name = str(finetune(tiny, tmp_path / "run", lambda _: None).policy)
    policy = scores.loaded(name)
    scenes = [Observation({"front": np.zeros((28, 28, 3), np.uint8)}, np.zeros(1), "go to the light", 1, step=1)]
    timings = take_turns({"tiny": ours(policy, scenes, 1)}, 2, lambda: None)
    exact = policy.act(scenes)[0].actions[:1]
    middle = unnormalise(np.zeros(2), policy.action_stats())
    assert scores.error_to(policy, scenes, exact) == 0
    distance = np.abs(normalise(exact, policy.action_stats())).mean()
    assert scores.error_to(policy, scenes, middle[None]) == pytest.approx(distance, rel=1e-6)
    measured = closed_loop.measured_of(policy, timings["tiny"], 0.2, None)
    assert measured.chunk == 2
    if "head" in said:
        assert measured.tokens == 0
        np.testing.assert_array_equal(timings["tiny"].tokens[0][0].shape, (2, 2))
    else:
        assert 2 * 2 < measured.tokens <= policy.codec.tokens(2)
    with pytest.raises(RecipeError, match="gives its actions by"):
        measure(PolicyArgs(policy=name, batch=(1,), rounds=1), Terminal())


def test_horizons_are_those_that_a_policy_has_actions_for() -> None:
    assert closed_loop.horizons(8, ()) == [None]
    assert closed_loop.horizons(8, (1, 4, 8, 16)) == [1, 4, 8]
    assert closed_loop.horizons(1, (1, 4)) == [None]
    with pytest.raises(RecipeError, match="from 1 on"):
        ClosedLoopArgs(Path("out"), rows=(0,))
    with pytest.raises(RecipeError, match="--episodes"):
        ClosedLoopArgs(Path("out"), episodes=0)


def test_one_world_and_a_number_of_episodes_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, int | None]]()

    def counted(*args: Any) -> Score:
        asked.append((args[2], args[6]))
        return Score(3, 2, 0, 1)

    monkeypatch.setattr(closed_loop, "scored", counted)
    table = tmp_path / "table.json"
    args = ClosedLoopArgs(tmp_path, ("openvla_nano",), worlds=("lift",), episodes=3, rounds=2, workers=1, json=table)
    assert closed_loop.main(args) == 0
    assert asked == [("lift", 3)]
    values = {row["name"]: row["value"] for row in json.loads(table.read_text())["rows"]}
    names = set(values)
    assert values["openvla_nano/lift/successes"] == 2 and values["openvla_nano/lift/stalled"] == 1
    assert not any("lift_colour" in name for name in names)


def test_errors_are_told_by_task_beside_those_of_the_median() -> None:
    wanted = np.array([[0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.5, 0.5]])
    given = wanted + [[0.1, 0.0], [-0.3, 0.0], [0.0, 0.2], [0.0, 0.0]]
    found = errors(["reach", "reach", "push", "reach"], given, wanted)
    assert list(found) == ["reach", "push"]
    np.testing.assert_allclose(found["reach"].policy, [0.4 / 3, 0.0])
    np.testing.assert_allclose(found["reach"].median, [1.0 / 3, 0.5 / 3])
    np.testing.assert_allclose([found["push"].policy, found["push"].median], [[0.0, 0.2], [0.0, 0.0]])


def test_a_policy_is_asked_about_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_demos(tmp_path / "light")
    tiny = DemosFinetuneRecipe(
        data=(data,), architecture=replace(TINY, family="paligemma", max_positions=128), dataset_name="light",
        chunk=2, steps=3, batch_size=8, warmup_steps=1, held_out=0.2,
    )  # fmt: skip
    name = str(finetune(tiny, tmp_path / "run", lambda _: None).policy)
    assert error_by_task.main(ErrorByTaskArgs(name, data, frames=12)) == 0
    said = capsys.readouterr().out
    assert "go to the light" in said and "12" in said and "mean of the" in said
    with pytest.raises(RecipeError, match="--frames 0"):
        ErrorByTaskArgs(name, data, frames=0)
