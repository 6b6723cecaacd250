"""What learns, what stays, and that a merged policy is the one that was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import DataError, RecipeError
from vla_robot.core.messages import Observation
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.families import family_of
from vla_robot.policy.openvla.create import create
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import parse
from vla_robot.recipe.finetune import Architecture, FinetuneRecipe, with_mixture
from vla_robot.testing import toy_embodiment
from vla_robot.train.checkpoint import FOLDER, learning
from vla_robot.train.finetune import SIDE_FILES, Progress, finetune
from vla_robot.train.lora import adapt, merged
from vla_robot.train.parallel.activation_checkpointing import checkpoint_activations


def quiet(_: Progress) -> None:
    pass


def stop_in_step(number: int) -> Callable[[], bool]:
    """True the `number`-th time it is asked; a run asks once a step."""
    asked = count(1)
    return lambda: next(asked) >= number


@pytest.fixture(scope="module")
def start(recipe: FinetuneRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of a short run, which no test changes."""
    return finetune(recipe, tmp_path_factory.mktemp("first"), quiet).policy


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """Top-level parts whose weights differ."""
    old, new = weights(before), weights(after)
    return {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        (("projector",), {"projector", "proprio_projector"}),
        (("decoder",), {"language_model"}),
        (("vision", "projector"), {"vision_backbone", "projector", "proprio_projector"}),
    ],
)
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_only_the_parts_that_are_named_change(
    recipe: FinetuneRecipe, start: Path, tmp_path: Path, train: Any, parts: set[str], lora_rank: int
) -> None:
    finetune(replace(recipe, policy=start, train=train, lora_rank=lora_rank), tmp_path / "second", quiet)
    assert changed(start, tmp_path / "second" / "final") == parts


def test_lora_learns_a_small_share_and_leaves_the_head_alone(recipe: FinetuneRecipe, start: Path) -> None:
    model = load(start).model
    total = sum(p.numel() for p in model.parameters())
    adapt(model, replace(recipe, lora_rank=2))
    names = learning(model)
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)
    assert 0 < sum(p.numel() for p in names.values()) < 0.25 * total


def test_the_merged_policy_answers_as_the_one_with_adapters(recipe: FinetuneRecipe, start: Path) -> None:
    policy = load(start)
    adapt(policy.model, replace(recipe, lora_rank=4))
    with torch.no_grad():
        for name, parameter in learning(policy.model).items():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    rng = np.random.default_rng(0)
    frames = [[rng.integers(0, 256, (28, 28, 3), np.uint8)] for _ in range(100)]
    pixels = torch.from_numpy(policy.preprocessor(frames))
    ids = torch.from_numpy(np.tile(policy.tokenizer("go to the light"), (100, 1)))
    state = torch.from_numpy(rng.uniform(-1, 1, (100, 1)).astype(np.float32))
    plain = load(save_merged(policy.model, start, start.with_name("plain"))).model
    assert not any("lora" in name for name, _ in plain.named_parameters())
    with torch.no_grad():
        ours, theirs = (_logits(m.eval(), pixels, ids, state) for m in (policy.model, plain))
        before = _logits(load(start).model, pixels, ids, state)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert (ours - before).abs().max() > 0.1


def save_merged(model: Any, start: Path, folder: Path) -> Path:
    """Write a policy without adapters, as a training does in the end."""
    family = family_of(start)
    family.save_in_turn(start, folder, merged(model, family.rows(start)))
    for name in SIDE_FILES:
        if (start / name).is_file():
            shutil.copy(start / name, folder)
    return folder


def _logits(model: Any, pixels: torch.Tensor, ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return model.language_model(inputs_embeds=model.embed(pixels, ids, state)).logits


def test_adapters_of_a_model_without_weights_are_those_of_one_with_them(recipe: FinetuneRecipe, start: Path) -> None:
    recipe, family = replace(recipe, lora_rank=4), family_of(start)
    models = (family.load_model(start, torch.float32, torch.device(place)) for place in ("cpu", "meta"))
    wanted, found = (learning(adapt(model, recipe)) for model in models)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_lora_teaches_too_and_its_policy_loads_as_any_other(
    recipe: FinetuneRecipe, start: Path, tmp_path: Path
) -> None:
    recipe = replace(
        recipe, policy=start, lora_rank=16, batch_size=32, learning_rate=1e-2, warmup_steps=0, shift_px=0, ema=0.0,
        evaluate_every=60, checkpoint_every=60,
    )  # fmt: skip
    before = finetune(replace(recipe, steps=1, learning_rate=0.0), tmp_path / "before", quiet).metrics
    trained = finetune(replace(recipe, steps=60), tmp_path / "after", quiet)
    # Not far: the start is almost random, and embeddings, norms and head are frozen.
    assert trained.metrics["held_out_loss"] < before["held_out_loss"] - 0.1
    seen = Observation({"front": np.full((28, 28, 3), 230, np.uint8)}, np.zeros(1), "go to the light", 0, 0)
    assert np.isfinite(load(trained.policy).act([seen])[0].actions).all()


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_broken_run_goes_on_bit_for_bit(recipe: FinetuneRecipe, start: Path, tmp_path: Path, lora_rank: int) -> None:
    recipe = replace(recipe, policy=start, lora_rank=lora_rank, train=("projector", "decoder"))
    finetune(recipe, tmp_path / "whole", quiet)
    assert finetune(recipe, tmp_path / "broken", quiet, stop_in_step(3)).steps == 3
    assert (tmp_path / "broken" / FOLDER).is_dir()
    finetune(recipe, tmp_path / "broken", quiet)
    one, other = weights(tmp_path / "whole" / "final"), weights(tmp_path / "broken" / "final")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("changes", [{}, {"train": ("projector", "decoder")}, {"lora_rank": 4}])
def test_what_is_recomputed_is_the_same_bit_for_bit(
    recipe: FinetuneRecipe, start: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = replace(recipe, policy=start, **changes)
    kept = finetune(recipe, tmp_path / "kept", quiet)
    again = finetune(replace(recipe, activation_checkpointing=True), tmp_path / "again", quiet)
    assert kept.metrics == again.metrics, "losses and the norm of gradients"
    one, other = weights(kept.policy), weights(again.policy)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gradients_are_the_same_when_blocks_are_recomputed(recipe: FinetuneRecipe, start: Path) -> None:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 300, (4, 12)))
    batch = torch.from_numpy(rng.normal(size=(4, 1, 6, 28, 28)).astype(np.float32)), ids, ids, torch.zeros(4, 1)
    found: list[dict[str, torch.Tensor | None]] = []
    for again in (False, True):
        model = adapt(load(start).model, recipe)
        if again:
            checkpoint_activations(model)
        model(*batch).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        assert torch.equal(gradient, found[1][name]), name  # type: ignore[arg-type]


def test_parts_of_a_batch_add_up_to_the_whole(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    whole = finetune(replace(recipe, steps=2), tmp_path / "whole", quiet)
    parts = finetune(replace(recipe, steps=2, micro_batch=3), tmp_path / "parts", quiet)
    for name, value in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": ()}, "names no part"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"data": ("x",), "mixture": "bridge", "policy": "y"}, "data: this key is for kind 'demonstrations'"),
        ({"mixture": "bridge"}, "policy: this key is missing"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        parse(FinetuneRecipe, changes, "run.toml")


@pytest.fixture
def reads_eight_numbers(tiny_architecture: Architecture, tmp_path: Path) -> Path:
    """A new policy for the samples' arms: seven numbers an action, eight of the state."""
    dims = [Dim(f"a{i}", "m", -1, 1) for i in range(7)]
    state = [Dim(f"s{i}", "m", -1, 1) for i in range(8)]
    arm = toy_embodiment(
        name="any", axes=dims, gripper=None, state=state, cameras=("primary",), height=28, width=28, rate_hz=5.0
    )
    rng = np.random.default_rng(0)
    statistics = dataset_statistics("none", rng.normal(size=(50, 7)), rng.normal(size=(50, 8)), 5)
    create(tmp_path / "new", tiny_architecture, arm, statistics, ["pick up the can"], seed=0)
    return tmp_path / "new"


def test_a_mixture_trains_a_policy_and_a_broken_run_goes_on_bit_for_bit(
    recipe: FinetuneRecipe, reads_eight_numbers: Path, tmp_path: Path
) -> None:
    samples = tmp_path / "oxe"
    shutil.copytree(Path(__file__).parents[2] / "golden" / "rlds_samples", samples)
    recipe = with_mixture(
        recipe, mixture="bridge_rt_1", root=samples, policy=reads_eight_numbers, workers=0, steps=4, batch_size=4
    )
    with pytest.raises(DataError, match="set held_out = 0 to train without"):
        finetune(recipe, tmp_path / "too small", quiet)
    recipe = replace(recipe, held_out=0.0)
    shutil.copytree(samples / "bridge_orig" / "1.0.0", samples / "bridge_orig" / "0.9.0")
    told: list[object] = []
    whole = finetune(recipe, tmp_path / "whole", quiet, on_plan=told.append)
    assert told[0] == f"bridge_orig: {samples}/bridge_orig holds several versions: 1.0.0 is read, not 0.9.0."
    started = finetune(recipe, tmp_path / "broken", quiet, stop_in_step(2))
    assert started.steps == 2
    again = finetune(recipe, tmp_path / "broken", quiet)
    assert again.steps == 4
    one, other = weights(tmp_path / "whole" / "final"), weights(tmp_path / "broken" / "final")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {"bridge_orig", "fractal20220817_data"} <= set(
        load(whole.policy, Loading(statistics_key="bridge_orig")).statistics
    )
