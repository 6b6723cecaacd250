"""What every action codec promises. A new one joins by one line in CODECS."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from vla_robot.core.errors import ContractError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.bins import EQUAL, BinCodec, openvla_bins
from vla_robot.policy.vla.codecs.fast import FastCodec, FastTokenizer, cosines
from vla_robot.policy.vla.codecs.fast_files import read_fast, train_fast
from vla_robot.policy.vla.codecs.folder import codec_from
from vla_robot.policy.vla.codecs.number_words import WordCodec

from .kinds import as_named

K, D = 4, 3
SCATTERED = np.random.default_rng(0).permutation(5000)

CHUNKS = np.concatenate([np.random.default_rng(1).uniform(-1, 1, (200, K, D)), np.ones((1, K, D)), -np.ones((1, K, D))])


@functools.cache
def _trained() -> FastTokenizer:
    return train_fast(CHUNKS, 300)


@functools.cache
def _published() -> FastTokenizer:
    """A tokenizer of bytes, made by the library as the published one was."""
    whole = np.rint(cosines(K) @ CHUNKS * 10).astype(int) + 150
    pairs = ByteLevelBPETokenizer()
    texts = ["".join(map(chr, each.ravel())) for each in whole]
    pairs.train_from_iterator(texts, vocab_size=400, min_frequency=2, show_progress=False)
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(pairs.to_str())
        settings = {"scale": 10, "min_token": -150, "vocab_size": 400, "time_horizon": None, "action_dim": None}
        (Path(folder) / "processor_config.json").write_text(json.dumps(settings))
        return read_fast(Path(folder), K, D)


CODECS: dict[str, Callable[[], ActionCodec]] = {
    "BinCodec as published": lambda: openvla_bins(32000, chunk=K),
    "BinCodec over scattered rows": lambda: BinCodec(SCATTERED[:256], K),
    "BinCodec of equal bins": lambda: BinCodec(SCATTERED[:256], K, EQUAL),
    "BinCodec by dimension": lambda: BinCodec(np.arange(700, 700 + 256 * D), K, EQUAL, D),
    "WordCodec of digits": lambda: WordCodec([[29, *(40 + int(c) for c in str(n))] for n in range(1001)], 2, K, D),
    "WordCodec of single tokens": lambda: WordCodec([[100 + n] for n in range(256)], 1, K, D),
    "FastCodec": lambda: FastCodec(_trained(), SCATTERED[: len(_trained().tokens)], K),
    "FastCodec as published": lambda: FastCodec(_published(), SCATTERED[: len(_published().tokens)], K),
}
HALF_STEP = {
    "BinCodec as published": 1 / 255, "BinCodec over scattered rows": 1 / 255, "WordCodec of single tokens": 1 / 255,
    "WordCodec of digits": 1 / 1000, "FastCodec": 0.5 / 10 * K**0.5, "FastCodec as published": 0.5 / 10 * K**0.5,
}  # fmt: skip
"""Largest error of a round trip; 1 / 256 where it is not said."""

MADE: dict[str, ActionCodec] = {}


def codec(kind: str) -> ActionCodec:
    if kind not in MADE:
        MADE[kind] = as_named(kind, CODECS[kind]())
    return MADE[kind]


def answer(codec: ActionCodec, seed: int) -> np.ndarray:
    """Greedy decoding of random logits, as a model would do it that knows nothing."""
    rng, said, state = np.random.default_rng(seed), list[int](), 0
    for _ in range(codec.tokens(D)):
        logits = rng.normal(size=len(codec.ids)) * 10
        if codec.grammar is None:
            said.append(int(logits.argmax()))
            continue
        if state == codec.grammar.done:
            break
        logits[~codec.grammar.allowed[state]] = -np.inf
        said.append(int(logits.argmax()))
        state = int(codec.grammar.following[state, said[-1]])
    return codec.ids[said]


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_logits_decode_to_a_finite_chunk(kind: str, seed: int) -> None:
    chunk = codec(kind).decode(answer(codec(kind), seed), D)
    assert chunk.shape == (K, D) and chunk.dtype == np.float64
    assert np.isfinite(chunk).all() and np.abs(chunk).max() <= 1


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_it_says_is_an_answer_and_comes_back(kind: str, seed: int) -> None:
    made, actions = codec(kind), np.random.default_rng(seed).uniform(-0.9, 0.9, (K, D))
    ids = made.encode(actions)
    assert ids.dtype == np.int64 and len(ids) <= made.tokens(D)
    if made.grammar is not None:
        assert made.grammar.after(made.rows(ids)) == made.grammar.done
    error = np.abs(made.decode(ids, D) - actions)
    assert error.max() <= HALF_STEP.get(kind, 1 / 256) + 1e-12
    np.testing.assert_array_equal(made.encode(made.decode(ids, D)), ids)


@pytest.mark.parametrize("kind", CODECS)
def test_its_parts_fit_together(kind: str) -> None:
    made = codec(kind)
    assert made.chunk == K and made.dimension in (None, D)
    np.testing.assert_array_equal(made.ids[made.rows(made.ids)], made.ids)
    assert len(made.values) == (len(made.ids) if made.scale else 0)
    assert len(made.ids) % (made.scale or 1) == 0
    assert 1 <= made.drafted(D) <= made.tokens(D)
    guess = made.guess(made.tokens(D))
    assert guess.shape == (made.tokens(D),) and guess.min() >= 0 and guess.max() < len(made.ids)
    still = made.rows(made.encode(np.zeros((K, D))))
    np.testing.assert_array_equal(guess[: len(still)], still)
    if made.grammar is not None:
        assert made.grammar.longest == made.tokens(D)


@pytest.mark.parametrize("kind", CODECS)
def test_an_answer_begins_with_what_is_given(kind: str) -> None:
    made, actions = codec(kind), np.random.default_rng(2).uniform(-1, 1, (K, D))
    begun = made.beginning(actions[:2])
    if len(begun):
        np.testing.assert_array_equal(made.encode(actions)[: len(begun)], begun)


@pytest.mark.parametrize("kind", CODECS)
def test_what_is_no_answer_is_an_error_and_never_an_action(kind: str) -> None:
    made = codec(kind)
    ids = made.encode(np.random.default_rng(3).uniform(-1, 1, (K, D)))
    strange = int(np.setdiff1d(np.arange(len(made.ids) + 1), made.ids)[0])
    for wrong in (ids[:-1], ids[:0], np.append(ids, ids[-1]), np.append(ids[:-1], strange)):
        with pytest.raises(ContractError):
            made.decode(wrong, D)
    for value in (np.nan, np.inf):
        with pytest.raises(ContractError, match="not finite"):
            made.encode(np.full((K, D), value))
    if made.dimension is not None:
        with pytest.raises(ContractError, match=f"of {D} numbers"):
            made.tokens(D + 1)
        with pytest.raises(ContractError, match=f"of {D} numbers"):
            made.encode(np.zeros((K, D + 1)))


@pytest.mark.parametrize("kind", CODECS)
def test_its_file_makes_it_again(kind: str) -> None:
    made = codec(kind)
    again = codec_from(made.to_dict(), K, "codec.json")
    assert again.to_dict() == made.to_dict()
    actions = np.random.default_rng(4).uniform(-1, 1, (K, D))
    np.testing.assert_array_equal(again.encode(actions), made.encode(actions))
