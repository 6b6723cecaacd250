from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.reason.action_tokens import ActionTokenizer

OPENVLA = ActionTokenizer(vocab_end=32000)
HALF_BIN = 1 / 255
EXTREME = 1 - HALF_BIN


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
    assert OPENVLA.encode(value) == token
    assert OPENVLA.decode(token) == pytest.approx(back, abs=1e-8)


def test_256_ids_decode_to_255_values() -> None:
    ids = np.arange(31744, 32000)
    assert len(np.unique(OPENVLA.decode(ids))) == 255
    assert OPENVLA.decode(31744) == OPENVLA.decode(31745)


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=9), elements=st.floats(-1, 1)))
def test_a_round_trip_is_off_by_at_most_half_a_bin(values) -> None:
    back = OPENVLA.decode(OPENVLA.encode(values))
    assert back.shape == values.shape
    assert (np.abs(back - values) <= HALF_BIN + 1e-12).all()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_values_outside_are_clipped_to_the_extremes(value: float) -> None:
    token = int(OPENVLA.encode(value))
    assert 31744 <= token <= 31999
    if abs(value) > 1:
        assert OPENVLA.decode(token) == pytest.approx(np.copysign(EXTREME, value))


@given(st.integers(31744, 31999))
def test_a_token_comes_back_from_its_own_value(token: int) -> None:
    twin = 31745 if token == 31744 else token
    assert OPENVLA.encode(OPENVLA.decode(token)) == twin


@given(st.integers(2, 300), st.integers(0, 4000))
def test_other_vocabularies_only_shift_the_ids(bins: int, rest: int) -> None:
    tokens = ActionTokenizer(vocab_end=bins + rest, bins=bins)
    ids = tokens.encode(np.linspace(-1, 1, 50))
    assert ids.min() == tokens.first_id and ids.max() == bins + rest - 1
    assert (np.diff(ids) <= 0).all()


@pytest.mark.parametrize("token", [31743, 32000, -1])
def test_a_word_is_not_an_action(token: int) -> None:
    with pytest.raises(ContractError, match=r"ids must lie in \[31744, 32000\)"):
        OPENVLA.decode([token])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_has_no_token(value: float) -> None:
    with pytest.raises(ContractError, match="not finite has no token"):
        OPENVLA.encode([0.0, value])


def test_a_vocabulary_too_small_for_its_bins_is_refused() -> None:
    with pytest.raises(ContractError, match="256 action bins do not fit a vocabulary of 100 rows"):
        ActionTokenizer(100)
