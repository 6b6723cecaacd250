"""What every action head promises. A new one joins by one line in HEADS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_robot.core.errors import ContractError
from vla_robot.core.ports import ActionHead
from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.heads.flow import Attention, FlowHead
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.heads.prompted import Prompted
from vla_robot.policy.vla.sequence.ragged import RaggedSequence

from .kinds import as_named

K, D, WIDTH = 4, 3, 8
ATTENTION = Attention(2, 2, 1, 4, 10_000.0)
HEADS: dict[str, Callable[[], Any]] = {
    "L1Head": lambda: L1Head(WIDTH, D, K),
    "FlowHead": lambda: FlowHead(ATTENTION, 16, 24, K, D),
    "FlowHead with a prefix": lambda: FlowHead(ATTENTION, 16, 24, K, D, longest_prefix=2),
}
MADE: dict[str, Any] = {}


def head(kind: str) -> Any:
    if kind not in MADE:
        torch.manual_seed(0)
        MADE[kind] = as_named(kind, HEADS[kind]().eval())
    return MADE[kind]


def prompts(rows: int, seed: int = 0, scale: float = 1.0, only: int | None = None) -> Prompted:
    """Rows of different lengths, and a toy backbone of which each token sees itself alone."""
    generator = torch.Generator().manual_seed(seed)
    embeds = scale * torch.randn(rows, 9, WIDTH, generator=generator)
    lengths = torch.arange(rows) % 3 + 5
    if only is not None:
        embeds, lengths = embeds[only : only + 1], lengths[only : only + 1]
    return Prompted(RaggedSequence(embeds, lengths), lambda rows: torch.tanh(rows.embeds), _memory)


def _memory(rows: RaggedSequence) -> list[tuple[Tensor, Tensor]]:
    keys, values = rows.embeds.unflatten(2, (2, 1, 4)).permute(2, 0, 3, 1, 4)
    return [(keys, values)] * 2


def answer(kind: str, asked: Prompted, seeds: list[int]) -> Tensor:
    with torch.no_grad():
        return head(kind).answer(asked, np.array(seeds, dtype=np.int64))


@pytest.mark.parametrize("kind", HEADS)
def test_it_names_itself_and_its_sizes(kind: str) -> None:
    made: ActionHead[Prompted, Tensor] = head(kind)
    assert (made.chunk, made.dimension) == (K, D) and made.kind


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e6]))
def test_any_prompt_is_answered_by_a_finite_chunk_within_the_range(kind: str, seed: int, scale: float) -> None:
    said = answer(kind, prompts(2, seed % 1000, scale), [seed, seed + 1])
    assert said.shape == (2, K, D) and bool(torch.isfinite(said).all()) and float(said.abs().max()) <= 1


@pytest.mark.parametrize("kind", HEADS)
def test_a_row_of_a_batch_is_answered_as_alone(kind: str) -> None:
    together = answer(kind, prompts(4), [5, 6, 7, 8])
    for row in range(4):
        torch.testing.assert_close(
            answer(kind, prompts(4, only=row), [5 + row])[0], together[row], rtol=1e-5, atol=1e-6
        )
    assert torch.equal(answer(kind, prompts(4), [5, 6, 7, 8]), together)


@pytest.mark.parametrize("kind", HEADS)
def test_a_plan_is_continued_or_ignored(kind: str) -> None:
    """With a plan of which all but the last row is committed to, those rows are nearer to it than without."""
    plan = Plan(torch.full((1, K, D), 0.9), torch.tensor([K - 1]), torch.tensor([K]))
    with torch.no_grad():
        plain, given = (head(kind).answer(prompts(1), np.array([3]), each) for each in (None, plan))
    errors = [float((said[:, : K - 1] - 0.9).abs().mean()) for said in (plain, given)]
    assert errors[1] < errors[0] if head(kind).continues else torch.equal(plain, given)


@pytest.mark.parametrize("kind", HEADS)
def test_training_on_one_batch_brings_its_answers_nearer(kind: str) -> None:
    learner: Any = HEADS[kind]()
    asked, wanted, seeds = prompts(2), torch.full((2, K, D), 0.5), np.arange(2)
    before = float((learner.answer(asked, seeds) - wanted).detach().abs().mean())
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for step in range(100):
        optimizer.zero_grad()
        learner.loss(asked, wanted, seeds + 2 * step).backward()
        optimizer.step()
    with torch.no_grad():
        assert float((learner.answer(asked, seeds) - wanted).abs().mean()) < 0.5 * before


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("shape", [(1, K + 1, D), (1, K, D - 1)])
def test_actions_of_another_shape_are_refused(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match=f"answers {K} actions of {D} numbers, but the data have"):
        head(kind).loss(prompts(1), torch.zeros(shape), np.zeros(1, np.int64))
