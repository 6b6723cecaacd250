"""Joint training: questions are learned beside actions, kept while they go on being asked, and lost without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_robot.core.errors import ContractError, DataError, RecipeError
from vla_robot.data.questions import QuestionWriter, read_questions
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, QuestionsRecipe, RolloutsRecipe
from vla_robot.train.batches.questions import QuestionData
from vla_robot.train.finetune import Progress, finetune
from vla_robot.train.parallel.ddp import Ranks

QUESTION = "how bright is it?"


def quiet(_: Progress) -> None:
    pass


def frame(light: float) -> np.ndarray:
    return np.full((28, 28, 3), round(255 * light), np.uint8)


def answer_to(light: float) -> str:
    return "dark" if light < 0.5 else "very bright"


def write_questions(folder: Path, camera: str = "front", scenes: int = 40) -> Path:
    rng = np.random.default_rng(0)
    with QuestionWriter(folder) as writer:
        for scene in range(scenes):
            light = rng.uniform(0.55, 1.0) if scene % 2 else rng.uniform(0.0, 0.45)
            split = "train" if scene < 0.75 * scenes else "held_out"
            writer.write(split, scene, {camera: frame(light)}, [(QUESTION, answer_to(light))])
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "bright")


@pytest.fixture
def joint(recipe: FinetuneRecipe, questions: Path) -> FinetuneRecipe:
    return replace(recipe, questions=QuestionsRecipe(questions, weight=0.5))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, demos_folder: Path, tiny_architecture, questions: Path) -> Path:
    """A policy that has learned both."""
    recipe = DemosFinetuneRecipe(
        data=(demos_folder,), architecture=tiny_architecture, dataset_name="light", steps=200, batch_size=32,
        learning_rate=5e-3, warmup_steps=10, evaluate_every=200, held_out=0.2, shift_px=0, ema=0.9,
        questions=QuestionsRecipe(questions, weight=0.5),
    )  # fmt: skip
    return finetune(recipe, tmp_path_factory.mktemp("learned"), quiet).policy


def go_on(recipe: FinetuneRecipe, learned: Path, weight: float, out: Path, steps: int = 60) -> float:
    """Accuracy on held-out questions after the policy went on with robot data."""
    assert recipe.questions is not None
    recipe = replace(
        recipe, policy=learned, steps=steps, batch_size=16, learning_rate=5e-3, warmup_steps=5, shift_px=0, ema=0.9,
        evaluate_every=steps, questions=replace(recipe.questions, weight=weight),
    )  # fmt: skip
    return finetune(recipe, out, quiet).metrics["question_accuracy"]


def test_questions_are_answered_in_words_after_joint_training(learned: Path) -> None:
    policy = load(learned)
    for light in (0.1, 0.3, 0.7, 0.9):
        assert policy.answer({"front": frame(light)}, QUESTION) == answer_to(light)


def test_actions_are_learned_beside_questions(learned: Path) -> None:
    last = json.loads((learned.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["held_out_l1"] < 0.2
    assert last["question_accuracy"] == 1.0
    assert last["question_loss"] < 0.2


def test_answers_are_kept_with_a_weight_and_lost_without(joint: FinetuneRecipe, learned: Path, tmp_path: Path) -> None:
    kept, lost = (go_on(joint, learned, weight, tmp_path / str(weight)) for weight in (0.5, 0.0))
    assert kept == 1.0
    assert lost <= 0.5


def test_a_run_with_questions_resumes_bit_for_bit(joint: FinetuneRecipe, tmp_path: Path) -> None:
    whole = finetune(joint, tmp_path / "whole", quiet)
    seen: list[int] = []
    finetune(joint, tmp_path / "broken", lambda p: seen.append(p.done), lambda: len(seen) > 3)
    assert not (tmp_path / "broken" / "final").exists()
    resumed = finetune(joint, tmp_path / "broken", quiet)
    assert resumed.metrics == whole.metrics
    assert_same_weights(whole.policy, resumed.policy)


def test_questions_of_weight_zero_are_asked_but_change_nothing(
    recipe: FinetuneRecipe, joint: FinetuneRecipe, questions: Path, tmp_path: Path
) -> None:
    without = finetune(recipe, tmp_path / "without", quiet)
    asked = finetune(replace(joint, questions=QuestionsRecipe(questions, weight=0)), tmp_path / "asked", quiet)
    assert_same_weights(without.policy, asked.policy)
    assert asked.metrics.keys() - without.metrics.keys() == {"question_accuracy"}


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_parts_of_all_ranks_have_the_loss_of_the_whole_batch(joint: FinetuneRecipe, learned: Path) -> None:
    policy = load(learned)
    asked = joint.questions
    assert asked is not None
    data = [QuestionData(replace(joint, micro_batch=1), asked, policy, Ranks(rank, 2)) for rank in (0, 1)]
    whole = QuestionData(joint, asked, policy, Ranks()).parts(step=3)
    assert len(whole) == 1
    assert whole[0][1] == 1.0
    parts = [part for each in data for part in each.parts(step=3)]
    assert len(parts) == joint.question_rows
    assert len({int((batch.labels != IGNORE).sum()) for batch, _ in parts}) > 1  # answers of different lengths
    loss = sum(float(loss_of(policy, batch)) * share for batch, share in parts) / 2
    assert loss == pytest.approx(float(loss_of(policy, whole[0][0])), rel=1e-5)


@torch.no_grad()
def loss_of(policy: OpenVLAPolicy, batch) -> torch.Tensor:
    return policy.model(batch.pixels, batch.input_ids, batch.labels, batch.state).loss


def test_an_answer_counts_exactly_when_greedy_decoding_says_it(
    joint: FinetuneRecipe, learned: Path, questions: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "half wrong"
    with QuestionWriter(wrong) as writer:
        for number, q in enumerate(read_questions(questions)["held_out"]):
            answer = ("bright" if number == 1 else "very bright!") if number % 3 else q.answer
            writer.write("held_out", q.scene, q.frames(), [(q.question, answer)])
        writer.write("train", 99, {"front": frame(0.1)}, [(QUESTION, "dark")])
    policy = load(learned)
    counted: list[bool] = []
    data = QuestionData(joint, QuestionsRecipe(wrong), policy, Ranks())

    def answers_match(batch):
        counted.extend(policy.model.answers_match(batch.pixels, batch.input_ids, batch.labels, batch.state).tolist())
        return torch.tensor(counted)

    share = data.accuracy(answers_match)
    said = [policy.answer(q.frames(), q.question) == q.answer for q in read_questions(wrong)["held_out"]]
    assert counted == said
    assert True in said
    assert False in said
    assert share == pytest.approx(np.mean(said))


def test_questions_without_an_image_of_a_camera_are_refused(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    folder = write_questions(tmp_path / "other", camera="wrist", scenes=4)
    with pytest.raises(DataError, match=r"about scene 0 does not fit the policy: unknown camera 'front'.*wrist"):
        finetune(replace(recipe, questions=QuestionsRecipe(folder)), tmp_path / "out", quiet)


def test_an_empty_question_is_refused(learned: Path) -> None:
    with pytest.raises(ContractError, match="the question is empty; ask something about the image"):
        load(learned).answer({"front": frame(0.5)}, " ")


def test_recipes_that_cannot_be_are_refused(recipe: FinetuneRecipe, questions: Path) -> None:
    with pytest.raises(RecipeError, match=r"weight is 1, must lie in \[0, 1\)"):
        QuestionsRecipe(questions, weight=1)
    with pytest.raises(RecipeError, match="a batch_size of 1 has no room for questions"):
        replace(recipe, batch_size=1, questions=QuestionsRecipe(questions))
    with pytest.raises(RecipeError, match="every is 0 and episodes 10; must be at least 1"):
        RolloutsRecipe("lift", every=0)


@pytest.mark.parametrize(("weight", "rows"), [(0.0, 0), (0.01, 1), (0.2, 2), (0.5, 4), (0.99, 7)])
def test_a_weight_is_a_share_of_the_rows(joint: FinetuneRecipe, questions: Path, weight: float, rows: int) -> None:
    recipe = replace(joint, questions=QuestionsRecipe(questions, weight))
    assert recipe.question_rows == rows
    assert recipe.robot_rows == 8 - rows


def test_rollouts_measure_the_averaged_weights_and_leave_training_alone(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    driven: list[tuple[str, float]] = []

    def roll_out(folder: Path, key: str) -> float:
        chance = float(torch.rand(()))  # what would disturb a training that drew from the same generator
        driven.append((key, float(load(folder, Loading(statistics_key=key)).model.projector.fc1.weight.sum().item())))
        return chance

    plain = finetune(recipe, tmp_path / "plain", quiet)
    asked = replace(recipe, rollouts=RolloutsRecipe("lift", every=4))
    measured = finetune(asked, tmp_path / "measured", quiet, roll_out=roll_out)
    assert_same_weights(plain.policy, measured.policy)
    assert [key for key, _ in driven] == ["light"] * 3  # before the first step, after the fourth and after the last
    assert len({weight for _, weight in driven}) == 3
    final = load(measured.policy).model.projector.fc1.weight.sum().item()
    assert driven[-1][1] == pytest.approx(float(final))
    lines = [json.loads(line) for line in (tmp_path / "measured" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, recipe.steps]
    assert all(0 <= line["rollout_success"] < 1 for line in lines)


def test_rollouts_that_were_ended_early_are_no_measurement(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, rollouts=RolloutsRecipe("lift"))
    trained = finetune(recipe, tmp_path, quiet, roll_out=lambda folder, key: None)
    assert "rollout_success" not in trained.metrics


def test_rollouts_without_anybody_who_drives_are_refused(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"asks for \[rollouts\], which only `vla finetune` can run"):
        finetune(replace(recipe, rollouts=RolloutsRecipe("lift")), tmp_path, quiet)
