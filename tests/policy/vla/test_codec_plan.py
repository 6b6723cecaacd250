"""Which rows a codec takes of a vocabulary, what it may not take, and FAST's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer

from vla_robot.cli.main import main
from vla_robot.core.errors import CheckpointError, ContractError, DataError, RecipeError
from vla_robot.policy.vla.codecs.bins import BinCodec
from vla_robot.policy.vla.codecs.fast import FastCodec, cosines
from vla_robot.policy.vla.codecs.fast_files import fast_from, read_fast, train_fast
from vla_robot.policy.vla.codecs.number_words import WordCodec, spelled_by
from vla_robot.policy.vla.codecs.plan import codec_of_new, planned_codec
from vla_robot.policy.vla.inputs.prompts import train_tokenizer
from vla_robot.policy.vla.json_files import write_json
from vla_robot.recipe.finetune import CodecRecipe

K, D, END = 4, 3, 1
SMOOTH = np.cumsum(np.random.default_rng(0).normal(size=(300, K, D)) * 0.2, axis=1).clip(-1, 1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = np.random.default_rng(0).integers(97, 123, (400, 6)).astype(np.uint8)
    return train_tokenizer([row.tobytes().decode() for row in letters], 900, ["<unk>", "<eos>"])


@pytest.fixture(scope="module")
def with_boxes(tokenizer: Tokenizer) -> Tokenizer:
    """Words, then PaliGemma's rows for boxes and masks, in its order."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    boxes = [AddedToken(f"<loc{n:04}>", special=False) for n in range(1024)]
    copy.add_tokens([*boxes, *(AddedToken(f"<seg{n:03}>", special=False) for n in range(128))])
    return copy


@pytest.fixture(scope="module")
def fast_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fast") / "fast.json"
    write_json(path, train_fast(SMOOTH, 300).to_dict())
    return path


def plan(recipe: CodecRecipe | None, tokenizer: Tokenizer, vocabulary: int | None = None) -> BinCodec:
    rows = tokenizer.get_vocab_size() if vocabulary is None else vocabulary
    codec = planned_codec(recipe, tokenizer, rows, END, K, D)
    assert isinstance(codec, BinCodec)
    return codec


def test_rows_are_the_rarest_words_or_added_ones(tokenizer: Tokenizer) -> None:
    V = tokenizer.get_vocab_size()
    np.testing.assert_array_equal(plan(None, tokenizer).ids, np.arange(V - 256, V))
    np.testing.assert_array_equal(plan(CodecRecipe(rows="added"), tokenizer, V + 64).ids, np.arange(V + 64, V + 320))
    own = plan(CodecRecipe(rows="added", by_dimension=True, scale="equal"), tokenizer)
    assert (len(own.ids), own.ids[0], own.dimension) == (768, V, D)
    new = codec_of_new(CodecRecipe(scale="equal"), tokenizer, V, END, K, D)
    np.testing.assert_array_equal(new.ids, np.arange(V, V + 256))


def test_words_before_boxes_are_taken_and_boxes_never(with_boxes: Tokenizer, fast_file: Path, tmp_path: Path) -> None:
    V = with_boxes.get_vocab_size()
    np.testing.assert_array_equal(plan(None, with_boxes).ids, np.arange(V - 1152 - 256, V - 1152))
    pi0 = CodecRecipe(kind="fast", rows="pi0_fast", tokenizer=fast_file)
    with pytest.raises(CheckpointError, match=r"protected rows of the vocabulary, <loc\d{4}> to <loc1023>"):
        planned_codec(pi0, with_boxes, V, END, K, D)
    (tmp_path / "rows.json").write_text(json.dumps({"ids": [*range(300, 555), 1]}))
    with pytest.raises(CheckpointError, match=r"1 protected rows of the vocabulary, <eos> to <eos>"):
        plan(CodecRecipe(rows_file=tmp_path / "rows.json"), with_boxes)


def test_pi0s_layout_falls_from_before_the_masks(tokenizer: Tokenizer, fast_file: Path) -> None:
    codec = planned_codec(
        CodecRecipe(kind="fast", rows="pi0_fast", tokenizer=fast_file), tokenizer, tokenizer.get_vocab_size(), END, K, D
    )
    V = tokenizer.get_vocab_size()
    np.testing.assert_array_equal(codec.ids, [V - 1 - 128 - token for token in range(len(codec.ids))])


def test_a_corpus_is_counted(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    last = tokenizer.id_to_token(tokenizer.get_vocab_size() - 1)
    (tmp_path / "corpus.txt").write_text(f"{last}\n{last} {last}\n")
    told = ["data", "rarest", str(tmp_path), str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "rows.json")]
    assert main(told) == 0
    assert "256 rows from" in capsys.readouterr().out
    codec = plan(CodecRecipe(rows_file=tmp_path / "rows.json"), tokenizer)
    assert len(codec.ids) == 256 and not set(codec.ids) & {0, 1, tokenizer.get_vocab_size() - 1}
    with pytest.raises(RecipeError, match="has 256 rows, but this codec takes 768"):
        plan(CodecRecipe(rows_file=tmp_path / "rows.json", by_dimension=True), tokenizer)
    (tmp_path / "corpus.txt").write_text("")
    assert main(told) == 2
    assert "no line of text" in capsys.readouterr().err


def test_numbers_are_spelled_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    spelled = spelled_by(tokenizer, 1000)
    text = "0 " + " ".join(map(str, [999, 0, 1000]))
    joined = [*spelled_by(tokenizer, 1)[0][1:], *spelled[999], *spelled[0], *spelled[1000]]
    assert tokenizer.encode(text, add_special_tokens=False).ids == joined
    codec = WordCodec(spelled, END, K, D)
    assert codec.grammar.longest == 5 * K * D + 1  # "▁" and four digits each


def test_a_tokenizer_that_joins_numbers_is_refused() -> None:
    joins = ByteLevelBPETokenizer()
    joins._tokenizer.pre_tokenizer.use_regex = False  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    joins.train_from_iterator(["0 0 7 10 42 99 100 255 380 999 1000"] * 50, vocab_size=300, show_progress=False)
    with pytest.raises(CheckpointError, match="joins numbers"):
        spelled_by(Tokenizer.from_str(joins.to_str()), 1000)


@pytest.mark.parametrize(
    ("spelled", "what"),
    [
        ([[5], [5]], "spelling of its own"),
        ([[5], [6, 5]], "run together"),
        ([[5], [5, 1]], "run together"),
        ([[5]], "two"),
    ],
)
def test_spellings_that_cannot_be_told_apart_are_refused(spelled: list[list[int]], what: str) -> None:
    with pytest.raises(ContractError, match=what):
        WordCodec(spelled, 1, K, D)


def test_the_transform_is_scipys() -> None:
    for count in (1, 2, 8, 50):
        x = np.random.default_rng(count).normal(size=(count, 3))
        np.testing.assert_allclose(cosines(count) @ x, np.asarray(scipy.fft.dct(x, axis=0, norm="ortho")), atol=1e-12)
        np.testing.assert_allclose(cosines(count).T @ (cosines(count) @ x), x, atol=1e-12)


def test_trained_tokens_shorten_what_they_were_trained_on() -> None:
    made = train_fast(SMOOTH, 400)
    lengths = [len(made.encode(chunk)) for chunk in SMOOTH]
    assert np.mean(lengths) < 0.7 * K * D
    error = np.abs([made.actions(made.encode(chunk)) - chunk for chunk in SMOOTH])
    assert error.max() <= 0.5 / 10 * K**0.5
    with pytest.raises(DataError, match="more than the 10 tokens asked for"):
        train_fast(SMOOTH, 10)


def published(folder: Path, **settings: object) -> ByteLevelBPETokenizer:
    """The two files of a published tokenizer, made by the library as its own code makes them."""
    whole = np.rint(cosines(K) @ SMOOTH * 10).astype(int) + 40
    pairs = ByteLevelBPETokenizer()
    texts = ["".join(map(chr, each.ravel())) for each in whole]
    pairs.train_from_iterator(texts, vocab_size=320, min_frequency=2, show_progress=False)
    (folder / "tokenizer.json").write_text(pairs.to_str())
    found = {"scale": 10, "min_token": -40, "vocab_size": 320, "time_horizon": None, "action_dim": None}
    (folder / "processor_config.json").write_text(json.dumps(found | settings))
    return pairs


def test_a_published_tokenizer_says_what_its_own_code_says(tmp_path: Path) -> None:
    pairs = published(tmp_path)
    ours = read_fast(tmp_path, K, D)
    for chunk in SMOOTH[:50]:
        coefficients = np.rint(np.asarray(scipy.fft.dct(chunk, axis=0, norm="ortho")) * 10).astype(int)
        theirs = pairs.encode("".join(map(chr, (coefficients + 40).ravel()))).ids
        assert ours.encode(chunk).tolist() == theirs
        text = pairs.decode(theirs)
        back = scipy.fft.idct((np.array(list(map(ord, text))).reshape(K, D) - 40) / 10, axis=0, norm="ortho")
        np.testing.assert_allclose(ours.actions(np.array(theirs)), np.asarray(back), atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"time_horizon": K + 1}, "time_horizon is 5, but the policy's is 4"),
        ({"action_dim": 7}, "action_dim is 7"),
        ({"scale": 0}, "scale is 0"),
        ({"min_token": "x"}, "min_token is 'x'"),
        ({"min_token": 3}, "min_token is 3"),
    ],
)
def test_a_published_tokenizer_for_other_chunks_is_refused(
    tmp_path: Path, settings: dict[str, object], what: str
) -> None:
    published(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=what):
        read_fast(tmp_path, K, D)


def test_a_file_for_another_horizon_is_refused(fast_file: Path) -> None:
    with pytest.raises(CheckpointError, match=f"is for chunks of {K} actions of {D} numbers, but the policy's have 8"):
        read_fast(fast_file, 8, D)
    with pytest.raises(ContractError, match="another horizon turns every coefficient into another motion"):
        FastCodec(read_fast(fast_file, K, D), np.arange(len(read_fast(fast_file, K, D).tokens)), 8)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a", "a"]}, {"tokens": []}, {"tokens": [3]}, {"merges": [[0, 10**6]]}, {"merges": [[0]]},
        {"spelling": "morse"}, {"symbols": 0}, {"least": 1.5}, {"chunk": 10**9}, {"scale": float("inf")},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(fast_file: Path, change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        fast_from(json.loads(fast_file.read_text()) | change, "fast.json")


@pytest.mark.parametrize(
    "table",
    [{"kind": "fast"}, {"tokenizer": Path("x")}, {"kind": "words", "scale": "equal"}, {"kind": "words", "largest": 0}],
)
def test_a_table_that_contradicts_itself_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        CodecRecipe(**table)  # pyright: ignore[reportArgumentType]
