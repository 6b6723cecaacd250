"""Chunks are played at the steps that they were meant for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.act.chunk import ChunkPlayer
from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import ActionChunk


def chunk(step: int, rows: int) -> ActionChunk:
    """Row k holds the number of the step that it is meant for."""
    return ActionChunk(np.arange(step, step + rows, dtype=np.float64)[:, None], stamp_ns=0, step=step)


@given(st.integers(0, 50), st.integers(0, 8), st.integers(0, 12))
def test_every_row_is_late_or_played_at_its_step(start: int, rows: int, delay: int) -> None:
    player = ChunkPlayer()
    player.load(chunk(start, rows), step=start + delay)
    step, played = start + delay, 0
    while player.has_action(step):
        assert player.action(step) == [step]
        step, played = step + 1, played + 1
    assert player.late_rows + played == rows


def test_a_new_chunk_replaces_the_old_one() -> None:
    player = ChunkPlayer()
    player.load(chunk(0, 4), step=0)
    player.load(ActionChunk(np.array([[100.0]]), stamp_ns=0, step=1), step=1)
    assert player.action(1) == [100.0]
    assert not player.has_action(2)


def test_late_rows_add_up_over_chunks() -> None:
    player = ChunkPlayer()
    player.load(chunk(0, 4), step=1)
    player.load(chunk(2, 4), step=4)
    assert player.late_rows == 3


def test_no_row_stands_in_for_a_missing_one() -> None:
    player = ChunkPlayer()
    player.load(chunk(5, 2), step=5)
    with pytest.raises(PolicyError, match="no action for step 7: the chunk holds steps 5 to 6"):
        player.action(7)


def test_a_player_without_a_chunk_says_so() -> None:
    with pytest.raises(PolicyError, match="no chunk has come yet"):
        ChunkPlayer().action(0)


def test_a_cleared_player_has_forgotten() -> None:
    player = ChunkPlayer()
    player.load(chunk(0, 4), step=2)
    player.clear()
    assert player.late_rows == 0
    assert not player.has_action(2)
