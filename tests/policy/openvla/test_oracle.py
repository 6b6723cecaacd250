"""Token for token, the reference's answers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from vla_robot.core.normalise import unnormalise


@pytest.mark.parametrize("index", range(5))
def test_action_tokens_are_the_references(oracle, index: int) -> None:
    tokens = oracle.policy.generate_tokens([oracle.images[index]], [oracle.ids(index)])
    np.testing.assert_array_equal(tokens[0], oracle.expected[f"{index}/action_tokens"])


@pytest.mark.parametrize("index", range(5))
def test_actions_in_units_are_the_references(oracle, index: int) -> None:
    stats = oracle.policy.action_stats(str(oracle.expected[f"{index}/unnorm_key"]))
    tokens = oracle.expected[f"{index}/action_tokens"]
    action = unnormalise(oracle.policy.codec.decode(tokens, 7)[0], stats)
    np.testing.assert_allclose(action, oracle.expected[f"{index}/action"], atol=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_first_logits_are_the_references(oracle, index: int) -> None:
    logits = oracle.policy.first_logits([oracle.images[index]], [oracle.ids(index)])
    np.testing.assert_allclose(logits[0], oracle.expected[f"{index}/first_logits_31744_32000"], atol=1e-3)


@pytest.mark.parametrize("index", [0, 2])
def test_pixels_are_the_references(oracle, index: int) -> None:
    pixels = oracle.policy.preprocessor([[oracle.images[index]]])[0, 0]
    np.testing.assert_allclose(pixels, oracle.expected[f"{index}/pixel_values"], atol=1e-5)


@pytest.mark.parametrize("order", list(permutations(range(5)))[::29])
def test_a_batch_in_any_order_gives_each_row_its_own_tokens(oracle, order: tuple[int, ...]) -> None:
    tokens = oracle.policy.generate_tokens([oracle.images[i] for i in order], [oracle.ids(i) for i in order])
    np.testing.assert_array_equal(tokens, [oracle.expected[f"{i}/action_tokens"] for i in order])


def test_training_loss_is_the_references(oracle) -> None:
    expected = oracle.expected
    pixels = torch.from_numpy(oracle.policy.preprocessor([[oracle.images[i]] for i in expected["train/images"]]))
    ids, labels = (torch.from_numpy(expected[f"train/{name}"]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        output = oracle.policy.model(pixels, ids, labels, None)
    assert float(output.loss) == pytest.approx(float(expected["train/loss"]), abs=1e-4)


def test_a_prompt_without_the_final_space_token_gets_it(oracle) -> None:
    assert oracle.ids(1)[-1] != 29871  # the sample that the reference completes, too
    both = oracle.policy.generate_tokens([oracle.images[1]] * 2, [oracle.ids(1), np.append(oracle.ids(1), 29871)])
    np.testing.assert_array_equal(both[0], both[1])
