"""FAST's files: one that is trained here, and the published ones, which are read without their code.

fast.json                                    ours: chunk, dimension, scale, tokens ...
tokenizer.json  processor_config.json        published: physical-intelligence/fast
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, trainers

from vla_robot.core.errors import CheckpointError, ContractError, DataError
from vla_robot.policy.vla.codecs.fast import FastTokenizer, cosines, whole_coefficients
from vla_robot.policy.vla.codecs.spelling import MOST_SYMBOLS, SPELLINGS, Bytes, Symbols
from vla_robot.policy.vla.json_files import read_json, shown, whole

MOST_NUMBERS = 4096
"""Most numbers of a chunk; 50 actions of 14 numbers are 700."""
MOST_TOKENS = 65_536


def train_fast(chunks: NDArray[np.floating], tokens: int, scale: float = 10.0) -> FastTokenizer:
    """Train a tokenizer on chunks of actions.

    Args:
        chunks: (N, K, D) in [-1, 1].
        tokens: size of its vocabulary; every single coefficient of the chunks' range is among them.
        scale: factor on coefficients before they are rounded.

    Raises:
        DataError: there are no chunks, or their coefficients alone are more than `tokens`.
    """
    if chunks.ndim != 3 or 0 in chunks.shape:
        raise DataError(f"FAST is trained on chunks of (N, K, D) actions, got an array of shape {chunks.shape}.")
    _, K, D = chunks.shape
    exact = whole_coefficients(cosines(K), chunks.astype(np.float64), scale)  # (N, K, D)
    least, largest = int(exact.min()), int(exact.max())
    spelling = Symbols(largest - least + 1)
    if spelling.symbols > tokens:
        raise DataError(
            f"the coefficients of these actions take {spelling.symbols} values, more than the {tokens} tokens asked "
            "for; ask for more, or take a smaller scale."
        )
    alphabet = spelling.spell(np.arange(spelling.symbols))
    pairs = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=list(alphabet), min_frequency=2, show_progress=False
    )
    pairs.train_from_iterator((spelling.spell(each - least) for each in exact.reshape(len(exact), -1)), trainer)
    vocabulary, merges = _vocabulary(pairs.to_str())
    return FastTokenizer(K, D, scale, least, spelling, vocabulary, merges)


def fast_from(data: Mapping[str, Any], source: str) -> FastTokenizer:
    """Return the tokenizer that the content of a file describes.

    Raises:
        CheckpointError: it describes none.
    """
    name, tokens, merges = data.get("spelling"), data.get("tokens"), data.get("merges")
    if name not in SPELLINGS:
        raise CheckpointError(f"{source}: spelling is {shown(name)}; expected one of {', '.join(SPELLINGS)}.")
    chunk = whole(source, "chunk", data.get("chunk"), MOST_NUMBERS)
    dimension = whole(source, "dimension", data.get("dimension"), MOST_NUMBERS // chunk)
    spelling = SPELLINGS[name](whole(source, "symbols", data.get("symbols"), MOST_TOKENS))
    if not isinstance(tokens, list) or len(tokens) > MOST_TOKENS or not all(isinstance(each, str) for each in tokens):
        raise CheckpointError(f"{source}: tokens must be a list of at most {MOST_TOKENS} texts.")
    if not isinstance(merges, list) or not all(isinstance(each, list) and len(each) == 2 for each in merges):
        raise CheckpointError(f"{source}: merges must be a list of pairs of tokens.")
    pairs = [_pair(source, each, len(tokens)) for each in merges]
    least = whole(source, "least", data.get("least"), MOST_TOKENS, -MOST_TOKENS)
    return _made(source, chunk, dimension, _scale(source, data), least, spelling, tokens, pairs)


def read_fast(path: Path, chunk: int, dimension: int) -> FastTokenizer:
    """Read a tokenizer for chunks of this shape.

    Args:
        path: a file of `vla data fast`, or a folder as published, with tokenizer.json and processor_config.json.
        chunk: K, actions of a chunk.
        dimension: D, numbers of an action.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer was made for chunks of another shape.
    """
    made = _published(path, chunk, dimension) if path.is_dir() else fast_from(read_json(path), str(path))
    if (made.chunk, made.dimension) != (chunk, dimension):
        raise CheckpointError(
            f"{path} is for chunks of {made.chunk} actions of {made.dimension} numbers, but the policy's have {chunk} "
            f"of {dimension}. Train one for them: `vla data fast DATA --chunk {chunk} --out FILE`."
        )
    return made


def _published(folder: Path, chunk: int, dimension: int) -> FastTokenizer:
    """Read the published files; a horizon or a size of actions that they name are binding, and they may name none."""
    source, settings = str(folder / "processor_config.json"), read_json(folder / "processor_config.json")
    for key, wanted in (("time_horizon", chunk), ("action_dim", dimension)):
        named = settings.get(key)
        if named is not None and named != wanted:
            raise CheckpointError(f"{source}: {key} is {shown(named)}, but the policy's is {wanted}.")
    least = whole(source, "min_token", settings.get("min_token"), 0, -MOST_SYMBOLS // 2)
    path = folder / "tokenizer.json"
    data = read_json(path)
    model, words = data.get("model"), data.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(words, dict):
        raise CheckpointError(f"{path} is no byte-pair tokenizer of bytes, as FAST's is.")
    if words.get("type") != "ByteLevel" or words.get("add_prefix_space") or not words.get("use_regex", True):
        raise CheckpointError(f"{path}: its pre_tokenizer is {shown(words)}; only FAST's own, ByteLevel, is done here.")
    try:
        tokens, merges = _of_model(model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its vocabulary is damaged ({type(error).__name__}). Copy it again.") from error
    # The published processor clips below alone; coefficients are as large above.
    spelling = Bytes(1 - 2 * least)
    return _made(str(path), chunk, dimension, _scale(source, settings), least, spelling, tokens, merges)


def _made(source: str, *arguments: Any) -> FastTokenizer:
    try:
        made = FastTokenizer(*arguments)
        made.require_whole_answers()
    except ContractError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return made


def _scale(source: str, data: Mapping[str, Any]) -> float:
    scale = data.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (0 < scale < math.inf):
        raise CheckpointError(f"{source}: scale is {shown(scale)}; expected a number above 0.")
    return float(scale)


def _pair(source: str, pair: Sequence[object], tokens: int) -> tuple[int, int]:
    first, second = (whole(source, "merges", each, tokens - 1, 0) for each in pair)
    return first, second


def _vocabulary(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the tokens and merges of a tokenizer's own JSON."""
    return _of_model(json.loads(text)["model"])


def _of_model(model: Mapping[str, Any]) -> tuple[list[str], list[tuple[int, int]]]:
    vocab: dict[str, int] = model["vocab"]
    tokens = sorted(vocab, key=lambda token: vocab[token])
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("ids are not 0, 1, 2 ...")
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return tokens, [(vocab[first], vocab[second]) for first, second in pairs]
