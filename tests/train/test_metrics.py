"""The same lines for all who are told, and no point twice, however often a run goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vla_robot.cli.main import main
from vla_robot.core.errors import CheckpointError, MissingDependencyError, RecipeError
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe
from vla_robot.train.finetune import Progress, finetune
from vla_robot.train.spent import SPENT, Spent, Times, trainings_of


def quiet(_: Progress) -> None:
    pass


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def points(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Curve -> (step, value), of all event files there are."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


class FakeWandB(ModuleType):
    """What our runs use of the package, with a server's memory."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.points: list[tuple[str, int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **given: Any) -> Any:
        self.started.append(given)
        return FakeRun(self, given["id"])


class FakeRun:
    def __init__(self, wandb: FakeWandB, number: str) -> None:
        self._wandb, self._number = wandb, number

    def log(self, values: dict[str, float], step: int) -> None:
        self._wandb.points.append((self._number, step, values))

    def finish(self) -> None:
        self._wandb.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("vla_robot.train.metrics.installed", lambda name: "0")
    return fake


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each step."""
    monkeypatch.setattr("vla_robot.train.trainer.METRICS_EVERY", 1)


def stop_in_step(number: int) -> Callable[[], bool]:
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= number


@pytest.mark.usefixtures("often")
def test_tensorboard_has_the_lines_of_the_file_once_when_a_run_goes_on(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, tensorboard=True)
    finetune(recipe, tmp_path, quiet, stop_in_step(3))
    finetune(recipe, tmp_path, quiet, stop_in_step(2))
    finetune(recipe, tmp_path, quiet)
    curves = points(tmp_path)
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4, 5, 6]
    for name, curve in curves.items():
        wanted = [(line["step"], pytest.approx(line[name])) for line in lines(tmp_path) if name in line]
        assert curve == wanted


def test_who_asks_for_tensorboard_later_gets_all_of_it(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    finetune(recipe, tmp_path, quiet)
    finetune(replace(recipe, tensorboard=True), tmp_path, quiet)
    assert [step for step, _ in points(tmp_path)["loss"]] == [recipe.steps]


@pytest.mark.usefixtures("often")
def test_a_run_of_wandb_goes_on_as_the_same_one_without_a_point_twice(
    recipe: FinetuneRecipe, tmp_path: Path, wandb: FakeWandB
) -> None:
    recipe = replace(recipe, wandb="arms")

    def crash(progress: Progress) -> None:
        if progress.phase == "steps" and progress.done == 5:  # the newest checkpoint is that of step 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, tmp_path, crash)
    finetune(recipe, tmp_path, quiet)
    assert [step for _, step, _ in wandb.points] == [1, 2, 3, 4, 5, 6]
    assert len({number for number, _, _ in wandb.points}) == 1
    assert [{"step": step, **values} for _, step, values in wandb.points] == lines(tmp_path)
    assert wandb.finished == 2, "once after the crash"
    assert [(s["project"], s["resume"], s["config"]["batch_size"]) for s in wandb.started] == [("arms", "allow", 8)] * 2


def test_without_the_package_the_command_names_the_installation(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_robot.train.metrics.installed", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'wandb'.*`pip install wandb`"):
        finetune(replace(recipe, wandb="arms"), tmp_path, quiet)
    assert not (tmp_path / "start").exists()


def test_an_empty_project_is_refused(recipe: FinetuneRecipe) -> None:
    with pytest.raises(RecipeError, match="wandb is empty"):
        replace(recipe, wandb=" ")


def test_the_command_asks_for_both(recipe: FinetuneRecipe, tmp_path: Path, wandb: FakeWandB) -> None:
    (tmp_path / "tiny.toml").write_text(dump(replace(recipe, steps=2)))
    out = tmp_path / "out"
    assert main(["finetune", str(tmp_path / "tiny.toml"), "--tensorboard", "--wandb", "arms", "--out", str(out)]) == 0
    assert wandb.started[0]["name"] == "out"
    assert points(out)["loss"]


def test_who_is_told_may_change_when_a_run_goes_on(recipe: FinetuneRecipe, tmp_path: Path, wandb: FakeWandB) -> None:
    finetune(recipe, tmp_path, quiet, stop_in_step(2))
    finetune(replace(recipe, wandb="arms", tensorboard=True), tmp_path, quiet)
    with pytest.raises(CheckpointError, match="another recipe"):
        finetune(replace(recipe, wandb="arms", seed=1), tmp_path, quiet)


class Clock:
    """Stands in for both clocks: every look is a second later on the wall, and two of the processor."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> Times:
        self.looks += 1
        return Times(self.looks, 2 * self.looks)


def test_the_time_of_a_training_counts_lost_work_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Times, "now", clock.now)
    spent = Spent(tmp_path)
    spent.go_on_from(0)
    for step in (10, 20, 30):
        spent.add(step)
    assert spent.total() == Times(3, 6)
    (tmp_path / SPENT).open("a").write('{"step": 40, "sec')  # a crash
    again = Spent(tmp_path)
    again.go_on_from(20)  # the checkpoint of step 30 was not finished
    assert again.total() == Times(2, 4)
    clock.looks += 5
    again.add(30)
    assert again.total() == Times(8, 16)


def test_a_policy_tells_of_all_its_trainings(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    first = finetune(replace(recipe, steps=2, description="lift"), tmp_path / "first", lambda _: None).policy
    second = replace(recipe, steps=3, architecture=type(recipe.architecture)(), policy=first, seed=7)
    out = tmp_path / "second"
    done = iter([False, True])
    finetune(second, out, lambda _: None, lambda: next(done))
    finetune(second, out, lambda _: None)
    one, two = trainings_of(out / "final")
    assert (one["description"], one["steps"], two["steps"], two["seed"]) == ("lift", 2, 3, 7)
    lines = [json.loads(line) for line in (out / SPENT).read_text().splitlines()]
    assert lines[0]["step"] == 2
    assert lines[-1]["step"] == 3
    for unit in ("seconds", "cpu_seconds"):  # to a tenth: three steps of so small a policy may take none
        assert two[unit] == pytest.approx(sum(line[unit] for line in lines), abs=0.06)


def test_a_list_of_trainings_that_is_none_is_refused(tmp_path: Path) -> None:
    assert trainings_of(tmp_path) == []
    for text in ("[]", '{"trainings": [{"seconds": 3}]}', '{"trainings": [{"seconds": 3, "cpu_seconds": "x"}]}', "{"):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"training\.json has no list of trainings"):
            trainings_of(tmp_path)
