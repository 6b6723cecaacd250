from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.messages import Observation
from vla_robot.core.normalise import normalise, unnormalise
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.policy.openvla.network.model import IGNORE
from vla_robot.policy.openvla.policy import load
from vla_robot.recipe.finetune import Architecture, FinetuneRecipe
from vla_robot.train.batches.augment import random_shift
from vla_robot.train.batches.frames import FrameBank, Split, rows_of_step, shift_generator
from vla_robot.train.finetune import finetune


@pytest.fixture(scope="module")
def bank(demos_folder: Path, tiny_architecture: Architecture, tmp_path_factory) -> FrameBank:
    out = tmp_path_factory.mktemp("run")
    recipe = FinetuneRecipe(
        data=(demos_folder,), architecture=tiny_architecture, dataset_name="light", steps=1, batch_size=4
    )
    finetune(recipe, out, lambda progress: None)
    return FrameBank.load(open_demos(demos_folder), load(out / "final"), "light", lambda done, total: None)


def test_labels_are_the_action_tokens_and_the_end_and_nothing_else(bank: FrameBank, demos_folder: Path) -> None:
    batch = bank.batch(np.array([0, 5]))
    labelled = batch.labels != IGNORE
    assert labelled.sum(dim=1).tolist() == [3, 3]  # two action dimensions and </s>
    torch.testing.assert_close(batch.labels[labelled], batch.input_ids[labelled])
    policy = bank.policy
    tokens = batch.labels[labelled].reshape(2, 3)
    assert (tokens[:, -1] == policy.tokenizer.eos).all()
    stats = policy.action_stats("light")
    actions = unnormalise(policy.action_tokens.decode(tokens[:, :2].numpy()), stats)
    stored = np.clip(open_demos(demos_folder).actions[[0, 5]], [stats.q01[0], 0], [stats.q99[0], 1])
    np.testing.assert_allclose(actions, stored, atol=0.01)


def test_each_frame_is_taught_with_its_own_instruction(bank: FrameBank, demos_folder: Path) -> None:
    """Several tasks within one episode, which LeRobot's task_index of each step allows."""
    demos = open_demos(demos_folder)
    text_of = np.arange(demos.num_frames) % 2
    two = replace(demos, texts=("push the red cube", "open the lid"), text_of=text_of)
    taught = FrameBank.load(two, bank.policy, "light", lambda done, total: None).batch(np.array([0, 1, 3]))
    for row, text in enumerate(("push the red cube", "open the lid", "open the lid")):
        prompt = bank.policy.tokenizer(text)
        np.testing.assert_array_equal(taught.input_ids[row, : len(prompt)].numpy(), prompt)


def test_a_policy_of_three_actions_learns_those_of_the_next_three_steps(
    demos_folder: Path, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    recipe = FinetuneRecipe(
        data=(demos_folder,), architecture=tiny_architecture, dataset_name="light", steps=1, batch_size=4, chunk=3
    )
    finetune(recipe, tmp_path, lambda progress: None)
    demos, policy = open_demos(demos_folder), load(tmp_path / "final")
    bank = FrameBank.load(demos, policy, "light", lambda done, total: None)
    last = demos.episodes[0].stop - 1
    batch = bank.batch(np.array([0, last]))
    labelled = batch.labels != IGNORE
    assert labelled.sum(dim=1).tolist() == [7, 7]  # three times two action dimensions, and </s>
    said = policy.action_tokens.decode(batch.labels[labelled].reshape(2, 7)[:, :6].numpy()).reshape(2, 3, 2)
    wanted = normalise(demos.actions[[0, 1, 2, last]], policy.action_stats("light"))
    np.testing.assert_allclose(said[0], np.clip(wanted[:3], -1, 1), atol=0.005)
    # Behind the end nothing is to be done: no motion, the gripper as it was.
    np.testing.assert_allclose(said[1], np.clip([wanted[3], [0, wanted[3, 1]], [0, wanted[3, 1]]], -1, 1), atol=0.005)

    frame = demos.images(0)
    (chunk,) = policy.act([Observation(frame, demos.states[0], demos.episodes[0].instruction, 0, 0)])
    assert chunk.actions.shape == (3, 2)


def test_a_batch_is_what_the_policy_sees_when_it_acts(bank: FrameBank, demos_folder: Path) -> None:
    images = open_demos(demos_folder).images(3)
    np.testing.assert_array_equal(
        bank.batch(np.array([3])).pixels.numpy(), bank.policy.preprocessor([[images["front"]]]).numpy()
    )


def test_a_shift_depends_on_seed_and_step_alone(bank: FrameBank) -> None:
    rows = np.arange(6)
    one, same, other = (bank.batch(rows, 3, shift_generator(0, step)).pixels for step in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other) or torch.equal(one, bank.batch(rows).pixels)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    rows, columns = ((torch.arange(6) + by).clamp(0, 5) for by in (down, right))
    return image[rows][:, columns]


def test_a_shift_moves_whole_images_and_repeats_the_border() -> None:
    frame = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6, 1).repeat(64, 1, 1, 1, 3)
    shifted = random_shift(frame, 2, torch.Generator().manual_seed(0))
    found = set()
    for image in shifted[:, 0, :, :, 0]:
        offsets = [o for o in product(range(-2, 3), repeat=2) if torch.equal(image, moved(frame[0, 0, :, :, 0], *o))]
        assert len(offsets) == 1
        found.add(offsets[0])
    assert len(found) > 15


@given(frames=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 5))
def test_an_epoch_shows_each_frame_at_most_once_and_epochs_differ(frames: int, batch: int, seed: int) -> None:
    train = np.arange(100, 100 + frames)
    per_epoch = frames // min(batch, frames)
    epochs = [
        np.concatenate([rows_of_step(train, e * per_epoch + k, batch, seed) for k in range(per_epoch)]) for e in (0, 1)
    ]
    for rows in epochs:
        assert len(np.unique(rows)) == len(rows) == per_epoch * min(batch, frames)
        assert set(rows) <= set(train)
    np.testing.assert_array_equal(epochs[0][: min(batch, frames)], rows_of_step(train, 0, batch, seed))


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.01, 1), (0.25, 2), (1.0, 7)])
def test_whole_episodes_are_held_out_and_one_always_trains(demos_folder: Path, share: float, held: int) -> None:
    demos = open_demos(demos_folder)
    split = Split.make(demos, share, seed=0)
    assert len(np.unique(demos.episode_index[split.held_out])) == held
    assert not set(demos.episode_index[split.held_out]) & set(demos.episode_index[split.train])
    assert len(split.train) + len(split.held_out) == demos.num_frames


def test_frames_whose_actions_are_lost_behind_a_gap_are_not_trained_on(demos_folder: Path) -> None:
    demos = open_demos(demos_folder)
    first = replace(demos.episodes[0], goes_on=True)
    cut = replace(demos, episodes=(first, *demos.episodes[1:]))
    split = Split.make(cut, 0.0, seed=0, future=2)
    assert sorted(set(range(demos.num_frames)) - set(split.train)) == [first.stop - 2, first.stop - 1]
    assert len(Split.make(cut, 0.0, seed=0).train) == demos.num_frames  # one action a frame: nothing is missing
