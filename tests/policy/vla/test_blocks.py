"""Inference in blocks of fixed sizes: the generator's tokens, for every family, ragged, in chunks and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError
from vla_robot.policy.families import FAMILIES, family_of
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.slots import memory
from vla_robot.policy.vla.slots.sizes import rounded_rows, rounded_text

from ..openvla import tiny_policies
from ..vlm import tiny_vlms


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policies.create_policy(tmp_path_factory.mktemp("tiny"))


def both[N: np.generic](policy: AnyVLAPolicy, run: Callable[[], NDArray[N]]) -> tuple[NDArray[N], NDArray[N]]:
    """What the generator says, and what the blocks say."""
    said: list[NDArray[N]] = []
    for in_blocks in (False, True):
        policy.in_blocks = in_blocks
        said.append(run())
    return said[0], said[1]


def test_sizes_are_rounded_up_to_few() -> None:
    assert [rounded_rows(n) for n in (1, 2, 3, 5, 33, 64)] == [1, 2, 4, 8, 64, 64]
    assert [rounded_text(n) for n in (1, 16, 17)] == [16, 16, 32]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_blocks_give_the_generators_tokens(
    name: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name == "openvla":
        policy, observation = load(tiny_folder), lambda n: tiny_policies.observation(seed=n, instruction=TEXTS[n % 2])
    else:
        folder = tiny_vlms.create(tmp_path_factory.mktemp(name), name, use_state=True)
        # An acting policy's weights may not change.
        policy, observation = family_of(folder).load(folder, Loading(trainable=True)), tiny_vlms.observation
    config = policy.model.config
    torch.manual_seed(1)
    for parameter in policy.model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    first = config.codec.ids[0]
    for rows in (1, 3):
        batch = policy.read([observation(n) for n in range(rows)])
        plain, blocks = both(policy, lambda batch=batch: policy.generate(batch, 7))
        np.testing.assert_array_equal(blocks, plain)
        assert len(np.unique(plain)) > 1
        unsure = both(policy, lambda batch=batch: policy.answer_batch(batch, 7).entropy.numpy())
        np.testing.assert_allclose(*unsure, atol=1e-4)
        # Two actions, of which rows are given none, a part, and one token of the second.
        setattr(policy.codec, "chunk", 2)  # noqa: B010 - the port has no way to change it
        prefixes = [np.arange(first, first + n) for n in (0, 3, 5)[:rows]]
        prefixes[-1] = np.arange(first, first + 5)
        plain, blocks = both(policy, lambda b=batch, p=prefixes: policy.generate(b, 8, prefixes=p))
        np.testing.assert_array_equal(blocks, plain)
        unsure = both(policy, lambda b=batch, p=prefixes: policy.answer_batch(b, 8, prefixes=p).entropy.numpy())
        np.testing.assert_allclose(*unsure, atol=1e-4)
        setattr(policy.codec, "chunk", 1)  # noqa: B010


TEXTS = tiny_vlms.INSTRUCTIONS


def test_a_prompt_near_the_last_position_is_not_rounded_up(tiny_folder: Path) -> None:
    """The tiny model has 128 positions: 1 + 2 * 4 of images and state, and 7 of an action."""
    policy = load(tiny_folder)
    longest = 128 - 6 - policy.model.image_tokens - 1
    batch = policy.read([tiny_policies.observation()])
    for length in (longest, longest + 1):
        batch = type(batch)(batch.pixels, [np.arange(1, 1 + length)], batch.state)
        if length == longest:
            plain, blocks = both(policy, lambda batch=batch: policy.generate(batch, 7))
            np.testing.assert_array_equal(blocks, plain)
        else:
            policy.in_blocks = True
            with pytest.raises(ContractError, match="129 tokens, but the language model has 128 positions"):
                policy.generate(batch, 7)


def test_few_blocks_are_kept(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCKS", 2)
    policy = load(tiny_folder)
    policy.in_blocks = True
    for rows in (1, 2, 1, 4):
        policy.generate(policy.read([tiny_policies.observation()] * rows), 7)
    assert [size.rows for size in policy._blocks.sizes] == [1, 4]
