"""OpenVLA's bins, exactly, and the other scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.codecs.bins import EQUAL, BinCodec, openvla_bins

OPENVLA = openvla_bins(32000)
HALF_BIN = 1 / 255
EXTREME = 1 - HALF_BIN


def back_of(codec: BinCodec, ids: object) -> np.ndarray:
    return codec.values[codec.rows(ids)]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("value", "token", "back"),
    [
        (-1.0, 31999, -0.99607843),
        (0.0, 31872, 0.0),
        (0.25, 31840, 0.25098039),
        (0.998, 31745, 0.99607843),
        (1.0, 31744, 0.99607843),
    ],
)
def test_the_published_check_values(value: float, token: int, back: float) -> None:
    assert OPENVLA.encode(np.array([[value]])) == token
    assert OPENVLA.decode(np.array([token]), 1)[0, 0] == pytest.approx(back, abs=1e-8)


def test_256_ids_decode_to_255_values() -> None:
    ids = np.arange(31744, 32000)
    assert len(np.unique(back_of(OPENVLA, ids))) == 255
    assert back_of(OPENVLA, 31744) == back_of(OPENVLA, 31745)


def test_256_equal_bins_have_the_published_errors() -> None:
    equal = BinCodec(np.arange(256), how=EQUAL)
    x = np.linspace(-1, 1, 10_001)
    back = equal.values[equal.rows(equal.encode(x[:, None]))]
    assert np.abs(back - x).max() == pytest.approx(0.00390625)
    assert (equal.values[0], equal.values[-1]) == (-0.99609375, 0.99609375)
    assert (np.diff(equal.values) > 0).all()


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1, 1)))
def test_a_round_trip_is_off_by_at_most_half_a_bin(values) -> None:
    back = back_of(OPENVLA, OPENVLA.encode(values)).reshape(values.shape)
    assert (np.abs(back - values) <= HALF_BIN + 1e-12).all()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_values_outside_are_clipped_to_the_extremes(value: float) -> None:
    token = int(OPENVLA.encode(np.array([[value]]))[0])
    assert 31744 <= token <= 31999
    if abs(value) > 1:
        assert back_of(OPENVLA, token) == pytest.approx(np.copysign(EXTREME, value))


@given(st.integers(31744, 31999))
def test_a_token_comes_back_from_its_own_value(token: int) -> None:
    twin = 31745 if token == 31744 else token
    assert OPENVLA.encode(OPENVLA.decode(np.array([token]), 1)) == twin


@given(st.integers(2, 300), st.integers(0, 4000))
def test_other_vocabularies_only_shift_the_ids(bins: int, rest: int) -> None:
    codec = openvla_bins(bins + rest, bins)
    ids = codec.encode(np.linspace(-1, 1, 50)[:, None])
    assert ids.min() == codec.ids[0] and ids.max() == bins + rest - 1
    assert (np.diff(ids) <= 0).all()


def test_rows_may_be_any_of_the_vocabulary_in_any_order() -> None:
    ids = np.random.default_rng(0).permutation(5000)[:256]
    anywhere = BinCodec(ids)
    values = np.random.default_rng(1).uniform(-1, 1, (1, 7))
    np.testing.assert_array_equal(anywhere.encode(values), ids[OPENVLA.encode(values) - OPENVLA.ids[0]])
    np.testing.assert_array_equal(
        anywhere.decode(anywhere.encode(values), 7), OPENVLA.decode(OPENVLA.encode(values), 7)
    )


def test_with_rows_of_its_own_a_dimension_says_only_those() -> None:
    codec = BinCodec(np.arange(1000, 2792), chunk=2, how=EQUAL, dimension=7)
    assert codec.grammar is not None
    assert (codec.grammar.longest, codec.grammar.done) == (14, 14)
    for place in range(14):
        rows = np.flatnonzero(codec.grammar.allowed[place])
        np.testing.assert_array_equal(rows, np.arange(256) + 256 * (place % 7))
    ids = codec.encode(np.zeros((2, 7)))
    np.testing.assert_array_equal((ids - 1000) // 256, [*range(7), *range(7)])
    with pytest.raises(ContractError, match="token 0 of the answer may not stand there"):
        codec.decode(ids[::-1], 7)


@pytest.mark.parametrize("token", [31743, 32000, -1])
def test_a_word_is_not_an_action(token: int) -> None:
    with pytest.raises(ContractError, match=r"are no action tokens; those lie in \[31744, 32000\)"):
        OPENVLA.decode(np.array([token]), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_has_no_token(value: float) -> None:
    with pytest.raises(ContractError, match="not finite has no token"):
        OPENVLA.encode(np.array([[0.0, value]]))


def test_a_vocabulary_too_small_for_its_bins_is_refused() -> None:
    with pytest.raises(ContractError, match="256 action bins do not fit a vocabulary of 100 rows"):
        openvla_bins(100)


@pytest.mark.parametrize("ids", [[], [3, 3], [-1, 2]])
def test_rows_are_distinct_ids(ids: list[int]) -> None:
    with pytest.raises(ContractError, match="must be distinct and not negative"):
        BinCodec(ids)


def test_another_length_than_that_of_the_training_is_no_answer() -> None:
    with pytest.raises(ContractError, match="an answer of 6 tokens holds no 1 actions of 7 numbers"):
        OPENVLA.decode(np.full(6, 31744), 7)
    with pytest.raises(ContractError, match="for actions of 7 numbers, but 6 are asked for"):
        BinCodec(np.arange(1792), dimension=7).tokens(6)
