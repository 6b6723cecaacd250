"""Tests of the plan: which row is executed at which step, how late rows are counted, and how two chunks are merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import ActionChunk
from vla_robot.safety.chunk import ChunkBuffer, ChunkMerge
from vla_robot.safety.delay import DelayEstimator
from vla_robot.safety.splice import blend_weights, ensemble, rtc_weights

SPLICES: tuple[ChunkMerge, ...] = ("drop", "blend", "ensemble", "rtc")


def chunk(step: int, *values: float) -> ActionChunk:
    """Return a chunk of one-dimensional actions."""
    return ActionChunk(np.array(values)[:, None], stamp_ns=step * 100_000_000, step=step)


def executed(buffer: ChunkBuffer, first: int, count: int) -> list[float | None]:
    actions = [buffer.pop(step) for step in range(first, first + count)]
    return [None if action is None else round(float(action[0]), 6) for action in actions]


@pytest.mark.parametrize("splice", SPLICES)
def test_a_single_chunk_is_executed_as_it_is_and_then_nothing(splice: ChunkMerge) -> None:
    buffer = ChunkBuffer(splice, dims=1)
    assert buffer.insert(chunk(0, 1, 2, 3), due_step=0) == 0
    assert len(buffer.planned(0)) == 3
    assert executed(buffer, 0, 4) == [1, 2, 3, None]


@pytest.mark.parametrize("splice", SPLICES)
def test_late_actions_are_skipped_and_counted(splice: ChunkMerge) -> None:
    buffer = ChunkBuffer(splice, dims=1)
    assert buffer.insert(chunk(10, 0, 1, 2, 3), due_step=12) == 2
    assert executed(buffer, 12, 2) == [2, 3]
    assert buffer.insert(chunk(10, 0, 1, 2, 3), due_step=14) == 4
    assert buffer.dropped_rows == 6 and buffer.pop(14) is None


def test_drop_takes_the_newest_chunk_and_forgets_the_old_ones_end() -> None:
    buffer = ChunkBuffer("drop", dims=1)
    buffer.insert(chunk(0, 0, 0, 0, 0, 0, 0), due_step=0)
    buffer.insert(chunk(1, 9, 8, 7), due_step=2)
    assert executed(buffer, 2, 3) == [8, 7, None]


def test_blend_goes_over_linearly_from_the_step_that_is_due() -> None:
    buffer = ChunkBuffer("blend", dims=1, blend_steps=3)
    buffer.insert(chunk(0, *[0.0] * 8), due_step=0)
    buffer.insert(chunk(1, *[4.0] * 8), due_step=3)
    assert executed(buffer, 3, 6) == [1, 2, 3, 4, 4, 4]


def test_ensemble_weighs_all_predictions_of_a_step_as_act_does() -> None:
    buffer = ChunkBuffer("ensemble", dims=1, ensemble_m=np.log(2))
    buffer.insert(chunk(0, 0, 0, 0, 0), due_step=0)
    buffer.insert(chunk(1, 7, 7, 7, 7), due_step=2)
    buffer.insert(chunk(2, 14, 14, 14, 14), due_step=3)
    # Step 3 was predicted three times: weights 1, 1/2, 1/4 for 0, 7 and 14 give 7 / 1.75. Step 4 only by 7 and 14.
    assert executed(buffer, 3, 3) == [4.0, pytest.approx(28 / 3, abs=1e-6), 14.0]


def test_the_golden_weights_of_the_ensemble() -> None:
    mean = ensemble([np.array([1.0]), np.array([2.0])], m=0.01)
    assert mean[0] == pytest.approx((1 + 2 * 0.990049833749168) / 1.990049833749168)


def test_rtc_executes_what_is_committed_and_then_follows_the_soft_mask() -> None:
    buffer = ChunkBuffer("rtc", dims=1)
    buffer.insert(chunk(0, 0, 0, 0, 0, 0, 0), due_step=0)
    buffer.pop(0)
    assert buffer.commit(1, 3).tolist() == [[0], [0], [0]]
    buffer.insert(chunk(1, *[1.0] * 6), due_step=2)  # it came sooner than estimated: steps 2 and 3 stay committed
    # d = 3, H - s = 5: rows 3 and 4 have c = 2/3 and 1/3, c (e^c - 1) / (e - 1) = 0.367706 and 0.076746.
    assert executed(buffer, 2, 5) == [0, 0, 0.632294, 0.923254, 1]


def test_rtc_takes_the_rows_of_a_conditioned_chunk_exactly() -> None:
    buffer = ChunkBuffer("rtc", dims=1)
    buffer.insert(chunk(0, 0, 0.1, 0.2, 0.3, 0.4), due_step=0)
    buffer.pop(0)
    committed = buffer.commit(1, 2)
    buffer.insert(replace(chunk(1, *committed[:, 0], 5, 6, 7), conditioned=True), due_step=2)
    assert executed(buffer, 2, 4) == [0.2, 5, 6, 7]


def test_a_promise_counts_for_the_chunk_of_its_own_observation_alone() -> None:
    buffer = ChunkBuffer("rtc", dims=1)
    buffer.insert(chunk(0, *[0.0] * 9), due_step=0)
    for step in range(4):
        buffer.commit(step, 3)
        buffer.pop(step)
    # Promised were steps 2, 3 and 4; the promise of step 3 reached 5.
    buffer.insert(replace(chunk(2, *[1.0] * 9), conditioned=True), due_step=4)
    assert executed(buffer, 4, 3) == [0, 1, 1]


def test_the_plan_behind_what_is_committed_is_told() -> None:
    buffer = ChunkBuffer("rtc", dims=1)
    buffer.insert(chunk(0, 0, 1, 2, 3, 4), due_step=0)
    committed = buffer.commit(1, 2)
    assert buffer.planned(1 + len(committed)).tolist() == [[3], [4]]
    assert buffer.planned(5).shape == (0, 1)


def test_what_is_committed_ends_where_the_plan_ends() -> None:
    buffer = ChunkBuffer("rtc", dims=1)
    assert buffer.commit(0, 3).shape == (0, 1)
    buffer.insert(chunk(0, 1, 2), due_step=0)
    assert buffer.commit(1, 3).tolist() == [[2]]


@pytest.mark.parametrize("splice", SPLICES)
def test_a_chunk_that_was_overtaken_is_late_as_a_whole(splice: ChunkMerge) -> None:
    buffer = ChunkBuffer(splice, dims=1)
    buffer.insert(chunk(5, 1, 2, 3), due_step=5)
    assert buffer.insert(chunk(4, 9, 9, 9, 9, 9), due_step=5) == 5
    assert executed(buffer, 5, 3) == [1, 2, 3]


def test_a_cleared_plan_is_empty_and_takes_any_chunk() -> None:
    buffer = ChunkBuffer("drop", dims=1)
    buffer.insert(chunk(50, 1, 2), due_step=50)
    buffer.clear()
    assert len(buffer.planned(50)) == 0
    assert buffer.insert(chunk(0, 3), due_step=0) == 0 and executed(buffer, 0, 1) == [3]


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros(3), r"shape \(3,\), expected \(1 or more, 1\)"),
        (np.zeros((0, 1)), r"shape \(0, 1\)"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (np.array([[0.0], [np.nan]]), "row 1 of a chunk of 2 actions is not finite"),
    ],
)
def test_a_malformed_chunk_leaves_the_plan_as_it_was(actions: np.ndarray, words: str) -> None:
    buffer = ChunkBuffer("ensemble", dims=1)
    buffer.insert(chunk(0, 1, 2), due_step=0)
    with pytest.raises(PolicyError, match=words):
        buffer.insert(ActionChunk(actions, 0, 0), due_step=0)
    assert executed(buffer, 0, 2) == [1, 2]


def test_the_error_for_an_unknown_splice_names_the_nearest_one() -> None:
    with pytest.raises(ContractError, match="unknown splice 'blent'; did you mean 'blend'"):
        ChunkBuffer("blent", dims=1)  # pyright: ignore[reportArgumentType]


@given(
    splice=st.sampled_from(SPLICES),
    conditioned=st.booleans(),
    length=st.integers(1, 12),
    delays=st.lists(st.integers(0, 15), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_executed_action_lies_between_predictions_that_were_made_for_its_step(
    splice: ChunkMerge, conditioned: bool, length: int, delays: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    buffer = ChunkBuffer(splice, dims=2)
    made: dict[int, list[np.ndarray]] = {}
    step = rows = taken = 0
    for delay in delays:
        rows_now = rng.normal(size=(length, 2))
        cause = step
        buffer.commit(step, delay)
        for row, action in enumerate(rows_now):
            made.setdefault(cause + row, []).append(action)
        for _ in range(delay):
            taken += _execute(buffer, step, made)
            step += 1
        late = buffer.insert(ActionChunk(rows_now, 0, cause, conditioned=conditioned), due_step=step)
        assert late == min(delay, length)
        rows += length
    while len(buffer.planned(step)):
        taken += _execute(buffer, step, made)
        step += 1
    assert taken + buffer.dropped_rows <= rows + step


def _execute(buffer: ChunkBuffer, step: int, made: dict[int, list[np.ndarray]]) -> int:
    action = buffer.pop(step)
    if action is None:
        return 0
    predictions = np.stack(made[step])
    assert (action >= predictions.min(axis=0) - 1e-12).all() and (action <= predictions.max(axis=0) + 1e-12).all()
    return 1


@given(delay=st.integers(0, 20), overlap=st.integers(1, 20))
def test_the_shares_of_the_old_plan_only_fall(delay: int, overlap: int) -> None:
    for weights in (rtc_weights(delay, overlap), blend_weights(delay + 1, overlap)):
        assert ((weights >= 0) & (weights <= 1)).all() and (np.diff(weights) <= 0).all()


def test_the_delay_is_the_longest_of_the_recent_ones_rounded_up_to_steps() -> None:
    delay = DelayEstimator(window=3)
    for answer_ms in (500, 90, 101, 40):
        delay.add(answer_ms * 1_000_000)
    assert delay.longest_ns == 101_000_000
    assert delay.steps(rate_hz=10) == 2


def test_a_negative_delay_counts_as_none() -> None:
    delay = DelayEstimator()
    delay.add(-5)
    assert delay.steps(rate_hz=10) == 0
