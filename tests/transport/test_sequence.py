"""A command is obeyed once, in order, in its session; everything else is refused and counted."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import TransportError
from vla_robot.transport.sequence import SequenceGuard


@pytest.fixture
def guard() -> SequenceGuard:
    return SequenceGuard()


def test_growing_numbers_are_admitted_and_gaps_are_fine(guard: SequenceGuard) -> None:
    session = guard.open()
    for seq in (1, 2, 3, 10, 5_000, 2**63):
        guard.admit(session, seq)
    assert guard.counts == {"replayed": 0, "reordered": 0, "forged": 0}


def test_a_replayed_command_is_refused(guard: SequenceGuard) -> None:
    session = guard.open()
    guard.admit(session, 1)
    guard.admit(session, 2)
    for seq in (2, 1):
        with pytest.raises(TransportError, match=f"command {seq} came before: it was replayed"):
            guard.admit(session, seq)
    assert guard.counts["replayed"] == 2


def test_a_command_that_was_overtaken_is_refused_and_its_copy_is_a_replay(guard: SequenceGuard) -> None:
    session = guard.open()
    guard.admit(session, 1)
    guard.admit(session, 3)
    with pytest.raises(TransportError, match="command 2 came after command 3: it was overtaken"):
        guard.admit(session, 2)
    with pytest.raises(TransportError, match="replayed"):
        guard.admit(session, 2)
    assert guard.counts == {"replayed": 1, "reordered": 1, "forged": 0}


@pytest.mark.parametrize("session", ["", "0" * 32, "é", "x" * 10_000])
def test_a_command_of_no_session_is_forged(guard: SequenceGuard, session: str) -> None:
    for _ in range(2):
        with pytest.raises(TransportError, match="belongs to no session that is open here"):
            guard.admit(session, 1)
        guard.open()
    assert guard.counts["forged"] == 2


def test_a_command_of_the_session_before_is_refused(guard: SequenceGuard) -> None:
    old = guard.open()
    guard.admit(old, 1)
    new = guard.open()
    with pytest.raises(TransportError, match="no session"):
        guard.admit(old, 2)
    guard.admit(new, 1)


def test_after_closing_nothing_is_admitted(guard: SequenceGuard) -> None:
    session = guard.open()
    guard.close()
    for forged in (session, ""):
        with pytest.raises(TransportError, match="no session"):
            guard.admit(forged, 1)


def test_sessions_cannot_be_guessed(guard: SequenceGuard) -> None:
    sessions = {guard.open() for _ in range(100)}
    assert len(sessions) == 100
    assert {len(session) for session in sessions} == {32}


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**64), max_size=60))
def test_whatever_the_order_what_is_admitted_only_grows_and_all_is_counted(numbers: list[int]) -> None:
    guard = SequenceGuard()
    session = guard.open()
    admitted = admitted_of(guard, session, numbers)
    assert all(a < b for a, b in itertools.pairwise(admitted))
    assert len(admitted) + sum(guard.counts.values()) == len(numbers)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_each_second_copy_counts_as_a_replay_and_each_late_first_one_does_not(numbers: list[int]) -> None:
    guard = SequenceGuard()
    admitted = admitted_of(guard, guard.open(), numbers)
    assert guard.counts["replayed"] == len(numbers) - len(set(numbers))
    assert guard.counts["reordered"] == len(set(numbers)) - len(admitted)


def test_zero_is_no_number_of_a_command(guard: SequenceGuard) -> None:
    with pytest.raises(TransportError, match="replayed"):
        guard.admit(guard.open(), 0)


def admitted_of(guard: SequenceGuard, session: str, numbers: list[int]) -> list[int]:
    admitted: list[int] = []
    for seq in numbers:
        with contextlib.suppress(TransportError):
            guard.admit(session, seq)
            admitted.append(seq)
    return admitted
