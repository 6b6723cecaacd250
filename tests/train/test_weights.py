"""Datasets that are not drawn alike: shares, resuming, ranks, and how they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vla_robot.cli.finetune.finetune import FinetuneArgs, _overridden
from vla_robot.cli.main import main
from vla_robot.core.errors import DataError, RecipeError
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.pipeline.shuffle import BLOCK, Weighted
from vla_robot.policy.openvla.policy import load
from vla_robot.recipe import dump, read
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe
from vla_robot.train.batches.data import data_of_demos
from vla_robot.train.finetune import Progress, finetune
from vla_robot.train.parallel.ddp import Ranks

DRAWS = BLOCK


def quiet(_: Progress) -> None:
    pass


@settings(max_examples=8)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 20), min_size=4, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_each_dataset_has_its_share_and_each_of_its_frames_as_much_as_the_next(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    wanted = np.array([w * n for w, n in zip(weights, sizes, strict=False)])
    order = Weighted(sizes, wanted.tolist(), seed)
    drawn = [order.place(number) for number in range(DRAWS)]
    for which, share in enumerate(wanted / wanted.sum()):
        counts = np.bincount([step for dataset, step in drawn if dataset == which], minlength=sizes[which])
        assert abs(int(counts.sum()) - share * DRAWS) <= len(sizes)
        assert int(np.ptp(counts)) <= 1


@pytest.fixture
def two(recipe: DemosFinetuneRecipe, make_demos: Callable[..., Path], tmp_path: Path) -> DemosFinetuneRecipe:
    """A recipe with a dataset and a smaller one whose frames come up four times as often."""
    return replace(recipe, data=(*recipe.data, make_demos(tmp_path / "more", episodes=3)), weights=(1.0, 4.0))


def test_a_weighted_run_that_was_stopped_ends_bit_for_bit(two: DemosFinetuneRecipe, tmp_path: Path) -> None:
    whole = finetune(two, tmp_path / "whole", quiet)
    seen: list[int] = []
    finetune(two, tmp_path / "broken", lambda p: seen.append(p.done), lambda: len(seen) > 3)
    assert not (tmp_path / "broken" / "final").exists()
    resumed = finetune(two, tmp_path / "broken", quiet)
    one, other = (load_file(trained.policy / "model.safetensors") for trained in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    pooled = load_file(finetune(replace(two, weights=()), tmp_path / "pooled", quiet).policy / "model.safetensors")
    assert not all(torch.equal(one[name], pooled[name]) for name in one)


def test_ranks_share_a_weighted_step_without_overlap(two: DemosFinetuneRecipe, tmp_path: Path) -> None:
    policy = load(finetune(replace(two, steps=1), tmp_path / "run", quiet).policy)
    demos = open_demos(two.data)
    whole, *halves = (
        data_of_demos(two, demos, policy, ranks, lambda done, total: None)
        for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2))
    )
    for step in range(4):
        together = torch.cat([half.batch(step).pixels for half in halves])
        assert torch.equal(together, whole.batch(step).pixels)


def test_a_weighted_dataset_without_a_frame_to_train_on_is_named(
    recipe: DemosFinetuneRecipe, make_demos: Callable[..., Path], tmp_path: Path
) -> None:
    more = [make_demos(tmp_path / f"single {n}", episodes=1) for n in range(4)]
    recipe = replace(recipe, data=tuple(more), weights=(1.0, 1.0, 1.0, 2.0), held_out=0.5)
    with pytest.raises(DataError, match=r"single \d has no frame left to train on beside its held-out episodes"):
        finetune(recipe, tmp_path / "out", quiet)


def test_every_mistake_in_weights_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        DemosFinetuneRecipe(data=(Path("a"), Path("a")), weights=(1.0, 0.0, -2.0), steps=0)
    for part in ("3 numbers for 2 datasets", "names a dataset twice", "holds 0, -2", "steps is 0"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "data", "weights"),
    [
        (("a", "b"), ("a", "b"), ()),
        (("a,b",), ("a", "b"), ()),
        (("a,b:2",), ("a", "b"), (1.0, 2.0)),
        (("a:0.5", "b:2"), ("a", "b"), (0.5, 2.0)),
    ],
)
def test_the_command_takes_datasets_with_weights(
    texts: tuple[str, ...], data: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    recipe = DemosFinetuneRecipe(data=(Path("x"),), weights=(3.0,))
    chosen = _overridden(recipe, FinetuneArgs(out=Path("out"), data=texts))
    assert isinstance(chosen, DemosFinetuneRecipe)
    assert chosen.data == tuple(map(Path, data))
    assert chosen.weights == weights


def test_a_folder_with_a_colon_and_a_comma_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b:2").mkdir()
    chosen = _overridden(DemosFinetuneRecipe(), FinetuneArgs(out=Path("out"), data=("a,b:2",)))
    assert isinstance(chosen, DemosFinetuneRecipe)
    assert chosen.data == (Path("a,b:2"),)
    assert chosen.weights == ()


def test_a_weight_that_is_no_number_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--data", "a,b:much", "--out", str(tmp_path)]) == 2
    assert "'much' is no weight; write --data b:2" in " ".join(capsys.readouterr().err.split())


def test_weights_survive_the_copy_of_a_recipe(tmp_path: Path) -> None:
    recipe = DemosFinetuneRecipe(data=(Path("/a"), Path("/b")), weights=(1.0, 2.5))
    (tmp_path / "run.toml").write_text(dump(recipe))
    assert read(FinetuneRecipe, tmp_path / "run.toml") == recipe
