"""Boxes in training: they move with the picture, labels may spread, both losses are reported, and words stay words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_robot.core.errors import DataError, RecipeError
from vla_robot.core.language.boxes import BINS, Box, boxes_in_words, boxes_of
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.data.questions import QuestionWriter
from vla_robot.policy.families import family_named, family_of
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.codecs.scores import AnswerScores
from vla_robot.recipe.finetune import CodecRecipe, DemosFinetuneRecipe, QuestionsRecipe
from vla_robot.train.batches.questions import QuestionData, moved_boxes
from vla_robot.train.finetune import finetune
from vla_robot.train.parallel.ddp import Ranks

from ..conftest import EMBODIMENT, TINY
from ..test_families import OTHERS, seen

SIZE = 28
BRIGHT = 200


def quiet(*_: object) -> None:
    pass


def write_scenes(folder: Path, scenes: int = 40) -> Path:
    """Scenes with one bright rectangle, and questions of all three kinds."""
    rng = np.random.default_rng(0)
    with QuestionWriter(folder) as writer:
        for scene in range(scenes):
            top, left = rng.integers(4, 16, 2)
            height, width = rng.integers(4, 8, 2)
            image = np.zeros((SIZE, SIZE, 3), np.uint8)
            image[top : top + height, left : left + width] = BRIGHT
            box = Box(top / SIZE, left / SIZE, (top + height) / SIZE, (left + width) / SIZE, "spot")
            side = "left" if left < 10 else "right"
            asked = [("detect spot", boxes_in_words([box])), ("which side?", side), ("caption en", f"a spot {side}")]
            writer.write("train" if scene < 0.75 * scenes else "held_out", scene, {"front": image}, asked)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "spots")


@pytest.fixture
def joint(recipe: DemosFinetuneRecipe, scenes: Path) -> DemosFinetuneRecipe:
    sizes = replace(recipe.architecture, locations=True)
    asked = QuestionsRecipe(scenes, weight=0.5, box_smoothing=10)
    return replace(recipe, architecture=sizes, questions=asked, batch_size=24)


def test_a_shifted_picture_and_its_box_stay_together(joint: DemosFinetuneRecipe, tmp_path: Path) -> None:
    policy = load(finetune(replace(joint, steps=1), tmp_path, quiet).policy)
    assert joint.questions is not None
    policy.model.locations = policy.tokenizer.locations()
    data = QuestionData(replace(joint, shift_px=3), joint.questions, policy, Ranks())
    plain = QuestionData(replace(joint, shift_px=0), joint.questions, policy, Ranks())
    checked, moved = 0, 0
    for step in range(6):
        (batch, _), (still, _) = data.parts(step)[0], plain.parts(step)[0]
        for pixels, ids, labels, before in zip(batch.pixels, batch.input_ids, batch.labels, still.labels, strict=True):
            said = policy.tokenizer.words(labels[labels >= 0].numpy())
            if not said.startswith("<loc"):
                assert torch.equal(labels, before)
                continue
            assert torch.equal(ids[labels >= 0], labels[labels >= 0])
            (box,) = boxes_of(said)
            spot = pixels[0, 0] > (pixels[0, 0].min() + pixels[0, 0].max()) / 2
            rows, columns = (np.flatnonzero(spot.any(dim=axis).numpy()) for axis in (1, 0))
            edges = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
            assert (box.y_min, box.x_min, box.y_max, box.x_max) == pytest.approx(np.array(edges) / SIZE, abs=2 / BINS)
            checked += 1
            moved += not torch.equal(labels, before)
    assert checked > 10 and moved > checked / 2


def test_places_that_leave_the_picture_end_at_its_edge() -> None:
    locations = range(100, 1124)
    labels = np.array([[-100, 110, 1100, 500, 1123, 7]])
    moved = moved_boxes(labels, locations, np.array([[-0.5], [0.5]]))
    assert moved.tolist() == [[-100, 100, 1123, 100, 1123, 7]]


def test_labels_of_places_spread_over_places_alone() -> None:
    V, locations = 1400, range(200, 1224)
    scores = AnswerScores(openvla_bins(V, 100), V, torch.device("cpu"), locations)
    soft = scores.smooth(torch.tensor([205, 1223, 7]), 3.0)
    assert soft.sum(dim=1) == pytest.approx([1, 1, 1])
    assert soft[0].argmax() == 205 and soft[0, 206] == pytest.approx(float(soft[0, 204]))
    assert float(soft[0, 206] / soft[0, 205]) == pytest.approx(np.exp(-0.5 / 9), rel=1e-5)
    assert not soft[:2, :200].any() and not soft[:2, 1224:].any()
    assert soft[2].nonzero().tolist() == [[7]]


def test_both_losses_are_reported_and_fall(joint: DemosFinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(joint, steps=40, learning_rate=5e-3, evaluate_every=40, ema=0.0)
    metrics: list[dict[str, float]] = []
    finetune(recipe, tmp_path, lambda p: metrics.append(dict(p.metrics)) if p.phase == "steps" else None)
    first, last = metrics[1], metrics[-1]
    assert last["loss"] < first["loss"]
    assert last["question_loss"] < first["question_loss"]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "question_loss", "held_out_loss", "question_accuracy"} <= line.keys()


def test_a_new_tokenizer_knows_the_words_of_questions(joint: DemosFinetuneRecipe, tmp_path: Path) -> None:
    assert joint.questions is not None
    sizes, asked = replace(joint.architecture, text_vocab=400), replace(joint.questions, in_vocabulary=True)
    policy = load(finetune(replace(joint, steps=1, architecture=sizes, questions=asked), tmp_path, quiet).policy)
    places = policy.tokenizer.locations()
    assert places is not None and len(places) == BINS
    said = policy.tokenizer.ids("<loc0001><loc0002><loc0003><loc1023> spot")
    assert said[:4] == [places[1], places[2], places[3], places[1023]]
    assert set(said[4:]).isdisjoint(places)
    plain = load(finetune(replace(joint, steps=1, architecture=sizes), tmp_path / "plain", quiet).policy)
    assert len(policy.tokenizer.ids("which side?")) < len(plain.tokenizer.ids("which side?"))
    assert set(places).isdisjoint(policy.codec.ids.tolist())


def test_boxes_without_their_tokens_are_refused(joint: DemosFinetuneRecipe, tmp_path: Path) -> None:
    without = replace(joint, architecture=replace(joint.architecture, locations=False))
    with pytest.raises(DataError, match=r"'detect spot' is answered with <loc> tokens.*`locations = true`"):
        finetune(without, tmp_path, quiet)
    with pytest.raises(RecipeError, match="box_smoothing is -1, must be 0 or more"):
        QuestionsRecipe(tmp_path, box_smoothing=-1)


@pytest.mark.parametrize("name", ["openvla", *OTHERS])
def test_an_action_prompt_yields_no_word_and_a_question_no_action(
    recipe: DemosFinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With random weights, words and actions are about equally likely, so that an open vocabulary would show."""
    edge = 28 if name in ("openvla", "minivla", "paligemma") else 56
    sizes = replace(TINY, image_size=edge, tower_depth=3, max_positions=256, family=name, locations=True)
    statistics = dataset_statistics("light", np.array([[-1.0, 0.0], [1.0, 1.0]]), np.array([[-1.0], [1.0]]), 1)
    codec = None if name == "openvla" else CodecRecipe(scale="equal")
    family_named(name).create(tmp_path / "new", sizes, EMBODIMENT, statistics, ["go to the light"], 0, codec)
    policy: Any = family_of(tmp_path / "new").load(tmp_path / "new")
    actions = set(policy.codec.ids.tolist())
    frames = [seen(light) for light in (0.1, 0.4, 0.9)]
    tokens = policy.generate(policy.read(frames), policy.codec.tokens(2))
    assert set(tokens.ravel().tolist()) <= actions
    assert all(np.isfinite(chunk.actions).all() for chunk in policy.act(frames))

    said: list[int] = []
    monkeypatch.setattr(policy.tokenizer, "words", lambda ids: said.extend(ids.tolist()) or "")
    for observation in frames:
        policy.answer(observation.images, "how bright is it?", 16)
    assert len(said) > 3
    assert actions.isdisjoint(said)
