"""Which connections are closed when there are too many: a flood's own, and never the newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vla_robot.transport.admission import Admission


def test_the_oldest_newcomer_goes_first_and_the_newest_stays() -> None:
    admission = Admission(room=(3, 3))
    for key in range(10):
        admission.enter(key, "10.0.0.9", now_ns=key)
    assert admission.surplus(now_ns=10) == list(range(7))
    assert admission.open_keys() == [7, 8, 9] and admission.closed == 7


def test_the_address_that_has_most_loses_its_own() -> None:
    admission = Admission(room=(4, 4))
    admission.enter("operator", "10.0.0.1", now_ns=0)
    for key in range(8):
        admission.enter(key, "10.0.0.9", now_ns=1 + key)
    assert "operator" not in admission.surplus(now_ns=9)
    assert len(admission.open_keys()) == 4 and admission.surplus(now_ns=10) == []


def test_who_has_spoken_is_counted_apart() -> None:
    admission = Admission(room=(2, 2))
    admission.enter("operator", "10.0.0.1", now_ns=0)
    admission.hear("operator", now_ns=1, rank=1)
    for key in range(8):
        admission.enter(key, "10.0.0.1", now_ns=2 + key)
    assert admission.surplus(now_ns=10) == list(range(6))


def test_of_those_who_spoke_the_longest_silent_goes() -> None:
    admission = Admission(room=(2, 2))
    for key in "abc":
        admission.enter(key, "10.0.0.1", now_ns=0)
        admission.hear(key, now_ns=1, rank=1)
    admission.hear("a", now_ns=2, rank=1)
    admission.hear("c", now_ns=3, rank=1)
    assert admission.surplus(now_ns=4) == ["b"]


def test_what_is_being_answered_stays_and_the_newest_is_turned_away() -> None:
    admission = Admission(room=(2, 2))
    for now_ns, key in enumerate("abc"):
        admission.enter(key, "10.0.0.1", now_ns)
        admission.hear(key, now_ns, rank=1, busy=True)
    assert admission.surplus(now_ns=4) == ["c"]
    admission.enter("d", "10.0.0.1", now_ns=5)
    admission.hear("a", now_ns=6)  # its answer is out
    admission.hear("d", now_ns=7, rank=1, busy=True)
    assert admission.surplus(now_ns=8) == ["a"]


def test_a_deadline_ends_a_connection_unless_it_is_renewed() -> None:
    admission = Admission(room=(9, 9))
    for key in "ab":
        admission.enter(key, "10.0.0.1", now_ns=0, deadline_ns=10)
    admission.hear("a", now_ns=5, deadline_ns=20)
    assert admission.surplus(now_ns=9) == []
    assert admission.surplus(now_ns=10) == ["b"]
    assert admission.surplus(now_ns=20) == ["a"]


def test_one_that_left_is_not_closed_again() -> None:
    admission = Admission(room=(0, 0))
    admission.enter("a", "", now_ns=0)
    admission.leave(["a", "unknown"])
    admission.hear("a", now_ns=1, rank=1)
    assert admission.surplus(now_ns=2) == [] and len(admission.open_keys()) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["a", "b", "c"]), st.integers(0, 2), st.booleans()), max_size=60
    )
)
def test_afterwards_no_rank_holds_more_than_its_room(events: list[tuple[int, str, int, bool]]) -> None:
    room = (3, 2, 1)
    admission = Admission(room)
    ranks: dict[object, int] = {}
    for now_ns, (key, address, rank, busy) in enumerate(events):
        if key not in ranks:
            admission.enter(key, address, now_ns)
            ranks[key] = 0
        admission.hear(key, now_ns, rank, busy=busy)
        ranks[key] = max(ranks[key], rank)
        for gone in admission.surplus(now_ns):
            del ranks[gone]
    assert set(admission.open_keys()) == set(ranks)
    assert all(list(ranks.values()).count(rank) <= most for rank, most in enumerate(room))
