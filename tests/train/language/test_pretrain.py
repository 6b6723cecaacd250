"""Contrastive pre-training: the losses as they are defined, what learns, and how a policy takes a tower over."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize
from transformers import SiglipConfig, SiglipModel

from vla_robot.core.errors import CheckpointError, DataError, RecipeError
from vla_robot.data.cube_questions import CAPTION
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.data.questions import QuestionWriter
from vla_robot.policy.families import NEW_MODELS, family_named, family_of
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import read
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.recipe.trainings.pretrain import PretrainRecipe, TextTower
from vla_robot.train.contrastive.captions import CaptionData
from vla_robot.train.contrastive.loss import pair_terms, sigmoid_loss, softmax_loss
from vla_robot.train.contrastive.model import ContrastiveModel, vision_parameters
from vla_robot.train.contrastive.pretrain import pretrain
from vla_robot.train.finetune import finetune

from ..conftest import EMBODIMENT, TINY

SIZE = 28
PLACES = [(row, column) for row in (0, 10, 20) for column in (0, 10, 20)]


def quiet(*_: object) -> None:
    pass


def write_captions(folder: Path) -> Path:
    """Scenes with a bright spot in one of nine places, and captions that name it."""
    rng = np.random.default_rng(0)
    with QuestionWriter(folder) as writer:
        for scene in range(72):
            place = PLACES[scene % 9]
            image = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
            image[place[0] : place[0] + 8, place[1] : place[1] + 8] = 220
            caption = f"{('top', 'middle', 'bottom')[place[0] // 10]} {('left', 'centre', 'right')[place[1] // 10]}"
            asked = [(CAPTION, caption), ("how many spots?", "one")]
            writer.write("train" if scene < 54 else "held_out", scene, {"front": image}, asked)
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captions(tmp_path_factory.mktemp("captions") / "spots")


@pytest.fixture
def tower_recipe(captions: Path) -> PretrainRecipe:
    return PretrainRecipe(
        folder=captions, architecture=TINY, text=TextTower(dim=16, layers=1, heads=2), steps=4, batch_size=8,
        learning_rate=3e-3, warmup_steps=2, shift_px=0, evaluate_every=4, checkpoint_every=2,
    )  # fmt: skip


def test_the_sigmoid_loss_has_its_worked_value() -> None:
    """Two orthonormal pairs, scale 10 and bias -10: logits 0 and -10, loss ln 2 + ln(1 + e^-10)."""
    logits = 10 * torch.eye(2, dtype=torch.float64) - 10
    assert float(sigmoid_loss(logits)) == pytest.approx(0.69319258, abs=5e-9)
    assert float(sigmoid_loss(logits)) == pytest.approx(math.log(2) + math.log1p(math.exp(-10)), abs=1e-12)


@torch.no_grad()
def test_the_sigmoid_loss_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 30, "max_position_embeddings": 5, "bos_token_id": 1, "eos_token_id": 2}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}))
    siglip.logit_scale.fill_(math.log(10))
    siglip.logit_bias.fill_(-10)
    out: Any = siglip(torch.randint(0, 30, (6, 5)), torch.randn(6, 3, 8, 8), return_loss=True)
    logits = normalize(out.text_embeds, dim=-1) @ normalize(out.image_embeds, dim=-1).T * 10 - 10
    assert torch.allclose(logits, out.logits_per_text, atol=1e-5)
    assert float(sigmoid_loss(logits)) == pytest.approx(float(out.loss), rel=1e-6)


def test_a_pairs_term_does_not_depend_on_the_batch_and_a_softmax_row_does() -> None:
    torch.manual_seed(0)
    captions, pictures = (normalize(torch.randn(6, 8, dtype=torch.float64), dim=-1) for _ in range(2))
    logits = 10 * captions @ pictures.T - 10
    small, large = pair_terms(logits[:2, :2]), pair_terms(logits)
    assert torch.equal(small, large[:2, :2])
    rows = [cross_entropy(each[:1], torch.tensor([0])) for each in (logits[:2, :2], logits)]
    assert rows[1] > rows[0] + 1e-3
    assert float(softmax_loss(logits)) == pytest.approx(
        float((cross_entropy(logits, torch.arange(6)) + cross_entropy(logits.T, torch.arange(6))) / 2)
    )


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_captions_find_their_pictures_after_training(tower_recipe: PretrainRecipe, tmp_path: Path, loss: str) -> None:
    recipe = replace(tower_recipe, steps=120, evaluate_every=120, checkpoint_every=120, loss=loss)  # pyright: ignore
    losses: list[float] = []
    trained = pretrain(recipe, tmp_path, lambda now: losses.append(now.metrics["loss"]))
    assert trained.metrics["held_out_found"] >= 0.75
    assert trained.metrics["held_out_loss"] < losses[0]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "found", "held_out_loss", "held_out_found"} <= line.keys()


def test_a_run_resumes_bit_for_bit(tower_recipe: PretrainRecipe, tmp_path: Path) -> None:
    whole = pretrain(tower_recipe, tmp_path / "whole", quiet)
    steps = iter(range(10))
    halted = pretrain(tower_recipe, tmp_path / "halves", quiet, lambda: next(steps) == 1)
    assert halted.steps == 2
    halves = pretrain(tower_recipe, tmp_path / "halves", quiet)
    a, b = (load_file(trained.policy / "tower.safetensors") for trained in (whole, halves))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(CheckpointError, match="another recipe"):
        pretrain(replace(tower_recipe, loss="softmax"), tmp_path / "halves", quiet)


def test_captions_of_a_batch_are_all_different(tower_recipe: PretrainRecipe, tmp_path: Path) -> None:
    pretrain(replace(tower_recipe, steps=1), tmp_path, quiet)
    data = CaptionData(tower_recipe, load(tmp_path / "start"))
    for step in range(5):
        ids = data.batch(step).input_ids
        assert len({tuple(row.tolist()) for row in ids}) == len(ids) == 8
        assert torch.equal(ids, data.batch(step).input_ids)


def test_a_policy_takes_the_tower_over_and_nothing_else(
    tower_recipe: PretrainRecipe, recipe: DemosFinetuneRecipe, tmp_path: Path
) -> None:
    tower = pretrain(tower_recipe, tmp_path / "tower", quiet).policy
    with_tower = replace(recipe, architecture=replace(TINY, tower=tower), steps=1)
    finetune(with_tower, tmp_path / "with", quiet)
    finetune(replace(recipe, steps=1), tmp_path / "without", quiet)
    a, b = (load(tmp_path / run / "start").model for run in ("with", "without"))
    stored, theirs = load_file(tower / "tower.safetensors"), dict(b.named_parameters())
    assert set(stored) == set(vision_parameters(a))
    for name, parameter in a.named_parameters():
        assert torch.equal(parameter, stored[name] if name in stored else theirs[name]), name
    assert any(not torch.equal(stored[name], theirs[name]) for name in stored)


def test_towers_that_do_not_fit_are_refused(
    tower_recipe: PretrainRecipe, recipe: DemosFinetuneRecipe, tmp_path: Path
) -> None:
    tower = pretrain(replace(tower_recipe, steps=1), tmp_path / "tower", quiet).policy

    def start(**sizes: Any) -> None:
        finetune(replace(recipe, architecture=replace(TINY, **sizes)), tmp_path / "run", quiet)

    with pytest.raises(RecipeError, match=r"does not fit the tower of \[architecture\]: \d+ of its parameters differ"):
        start(tower=tower, tower_dim=32)
    with pytest.raises(RecipeError, match="a tower of the family 'openvla', and the new model is a paligemma"):
        start(tower=tower, family="paligemma")
    with pytest.raises(CheckpointError, match="is missing; `vla pretrain` writes it"):
        start(tower=tmp_path)
    (tower / "tower.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is damaged or not safetensors"):
        start(tower=tower)


@pytest.mark.parametrize("name", NEW_MODELS)
def test_the_tower_of_every_family_learns_and_no_other_part(tmp_path: Path, name: str) -> None:
    edge = 28 if name in ("openvla", "minivla", "paligemma") else 56
    sizes = replace(TINY, image_size=edge, tower_depth=3, max_positions=256, family=name)
    statistics = dataset_statistics("light", np.array([[-1.0, 0.0], [1.0, 1.0]]), np.array([[-1.0], [1.0]]), 1)
    family_named(name).create(tmp_path / "new", sizes, EMBODIMENT, statistics, ["go to the light"], 0)
    model: Any = family_of(tmp_path / "new").load(tmp_path / "new", Loading(trainable=True)).model
    both = ContrastiveModel(model, TextTower(dim=16, layers=1, heads=2), 320, 6, "sigmoid")
    pixels = torch.rand(3, *model.pixel_shape())
    both(pixels, torch.randint(0, 320, (3, 6)), torch.zeros(3, 6), None).loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert moved
    assert all(n.startswith(model.PARTS["vision"]) for n in moved)


def test_recipes_that_cannot_be_are_refused(tower_recipe: PretrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch_size is 1, must be at least 2"):
        replace(tower_recipe, batch_size=1)
    with pytest.raises(RecipeError, match="names a tower, and this makes one"):
        replace(tower_recipe, architecture=replace(TINY, tower=tmp_path))
    with pytest.raises(RecipeError, match="dim must be a multiple of heads"):
        TextTower(dim=10, heads=4)
    with pytest.raises(RecipeError, match=r"batch_size is 10, but .* has 9 different captions"):
        pretrain(replace(tower_recipe, batch_size=10), tmp_path / "run", quiet)


def test_a_folder_without_captions_is_refused(tower_recipe: PretrainRecipe, tmp_path: Path) -> None:
    with QuestionWriter(tmp_path / "asked") as writer:
        for scene, split in enumerate(("train", "held_out")):
            writer.write(split, scene, {"front": np.zeros((8, 8, 3), np.uint8)}, [("how many?", "one")])  # pyright: ignore
    with pytest.raises(DataError, match="0 captions for training and 0 held out"):
        pretrain(replace(tower_recipe, folder=tmp_path / "asked"), tmp_path / "run", quiet)


def test_the_shipped_recipe_is_a_towers(repository: Path) -> None:
    recipe = read(PretrainRecipe, repository / "launch" / "tower.toml")
    assert (recipe.loss, recipe.architecture) == ("sigmoid", Architecture(family="paligemma"))
