"""Batches of mixtures: what is in them, who gets which, and where a run goes on."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_robot.core.errors import DataError
from vla_robot.core.image import resize_lanczos
from vla_robot.data.formats.images import decode_image
from vla_robot.data.pipeline.mixture import Choices, Mixture, open_mixture
from vla_robot.data.pipeline.windows import Window
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.train.batches.augment import OpenVLAAugment
from vla_robot.train.batches.frames import Batch
from vla_robot.train.batches.stream import Batches, Encoder, MixtureStream
from vla_robot.train.finetune import finetune


@pytest.fixture(scope="module")
def policy(
    demos_folder: Path, tiny_architecture: Architecture, tmp_path_factory: pytest.TempPathFactory
) -> OpenVLAPolicy:
    """Any policy will do that has a tokenizer; it reads one camera and a state of one number."""
    out = tmp_path_factory.mktemp("run")
    recipe = DemosFinetuneRecipe(data=(demos_folder,), architecture=tiny_architecture, steps=1, batch_size=4)
    finetune(recipe, out, lambda progress: None)
    return load(out / "final")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = tmp_path_factory.mktemp("oxe")
    shutil.copytree(Path(__file__).parents[2] / "golden" / "rlds_samples", folder, dirs_exist_ok=True)
    return open_mixture("bridge_rt_1", folder, Choices(window=Window(future=1), seed=3), folder / "cache")


@pytest.fixture(scope="module")
def encoder(policy: OpenVLAPolicy) -> Encoder:
    # The samples' state has 8 numbers, which the tiny policy does not read.
    return replace(Encoder.of(policy, augment=OpenVLAAugment(5)), proprio_dim=8)


def stream(mixture: Mixture, encoder: Encoder, batch_size: int = 4, rank: int = 0, ranks: int = 1) -> MixtureStream:
    return MixtureStream(mixture, encoder, batch_size, rank, ranks)


def take(batches: Batches, steps: int) -> list[Batch]:
    return [batch for batch, _ in zip(batches, range(steps), strict=False)]


def equal(one: Batch, other: Batch) -> bool:
    pairs: list[tuple[Any, Any]] = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_a_batch_holds_the_samples_actions_as_labels(mixture: Mixture, encoder: Encoder) -> None:
    batch = stream(mixture, encoder).batch(2)
    samples = [mixture.sample(n) for n in range(8, 12)]
    labels = batch.labels[batch.labels != IGNORE].reshape(4, 8)
    assert (labels[:, -1] == encoder.tokenizer.eos).all()
    decoded = encoder.codec.values[encoder.codec.rows(labels[:, :-1].numpy())]
    np.testing.assert_allclose(decoded, [np.clip(s.actions[0], -1, 1) for s in samples], atol=0.0045)
    assert batch.actions is not None and batch.actions.shape == (4, 2, 7)
    for row, sample in zip(batch.input_ids, samples, strict=True):
        prompt = encoder.tokenizer(sample.instruction)
        assert row[: len(prompt)].tolist() == prompt.tolist()
    assert batch.state is not None
    np.testing.assert_array_equal(batch.state.numpy(), [s.state[0] for s in samples])


def test_without_augmentation_pixels_are_the_resized_frame(mixture: Mixture, encoder: Encoder) -> None:
    plain = replace(encoder, augment=None)
    frame = decode_image(mixture.sample(0).frames["primary"][0], "uint8", "here")
    square = resize_lanczos(frame, *encoder.frame_shape)
    expected = torch.from_numpy(encoder.preprocessor.normalise(square[None, None]))
    torch.testing.assert_close(stream(mixture, plain, 1).batch(0).pixels, expected, rtol=0, atol=0)
    assert not torch.equal(stream(mixture, encoder, 1).batch(0).pixels, expected)


def test_a_batch_depends_on_its_step_alone(mixture: Mixture, encoder: Encoder) -> None:
    first, second = stream(mixture, encoder), stream(mixture, encoder)
    second.batch(9)
    assert equal(first.batch(4), second.batch(4))


def test_ranks_and_workers_share_the_single_process_stream(mixture: Mixture, encoder: Encoder) -> None:
    whole = take(Batches(stream(mixture, encoder, batch_size=4)), 6)
    shared = [take(Batches(stream(mixture, encoder, 2, rank=rank, ranks=2), workers=2), 6) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [shared[rank][step] for rank in range(2)]
        torch.testing.assert_close(torch.cat([part.pixels for part in parts]), batch.pixels, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([part.actions for part in parts]), batch.actions, rtol=0, atol=0)  # type: ignore[arg-type]
    numbers = [stream(mixture, encoder, 2, rank=r, ranks=2).numbers(s).tolist() for s in range(6) for r in range(2)]
    assert [n for part in numbers for n in part] == list(range(24)), "disjoint, and nothing is missing"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_run_goes_on_with_the_next_batch_bit_for_bit(
    mixture: Mixture, encoder: Encoder, done: int, workers: int
) -> None:
    expected = [stream(mixture, encoder).batch(step) for step in range(done, done + 2)]
    before = Batches(stream(mixture, encoder))
    take_exactly(before, done)
    after = Batches(stream(mixture, encoder), workers)
    after.load_state_dict(before.state_dict())
    assert all(map(equal, take(after, 2), expected))


def take_exactly(batches: Batches, steps: int) -> None:
    """Not one more than these, as a run that was killed."""
    iterator = iter(batches)
    for _ in range(steps):
        next(iterator)


def test_a_camera_that_a_dataset_has_not_is_black(policy: OpenVLAPolicy, mixture: Mixture, encoder: Encoder) -> None:
    sample = mixture.sample(0)
    lacking = replace(sample, frames={"primary": (b"",)})
    black = np.zeros((1, 1, *encoder.frame_shape, 3), np.uint8)
    made = encoder([lacking], np.array([0])).pixels
    np.testing.assert_array_equal(made.numpy(), encoder.preprocessor.normalise(black))


def test_a_policy_that_reads_another_state_is_refused(policy: OpenVLAPolicy, mixture: Mixture) -> None:
    with pytest.raises(
        DataError, match=r"the policy reads a state of 1 numbers, but these datasets have .*bridge_orig"
    ):
        stream(mixture, Encoder.of(policy))


def test_a_policy_that_looks_at_another_number_of_cameras_is_refused(policy: OpenVLAPolicy) -> None:
    with pytest.raises(DataError, match=r"uses 1 camera\(s\), got primary, wrist"):
        Encoder.of(policy, ("primary", "wrist"))
