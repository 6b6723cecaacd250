"""Which rows of a vocabulary a new policy's codec takes: the rarest, added ones, or those of a published layout.

Control tokens, and every other token that was added to a tokenizer, are protected: PaliGemma's <loc0000> ... are where
it says boxes, and no action may take their place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError, ContractError, RecipeError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.bins import BinCodec, openvla_bins
from vla_robot.policy.vla.codecs.fast import FastCodec
from vla_robot.policy.vla.codecs.fast_files import read_fast
from vla_robot.policy.vla.codecs.number_words import WordCodec, spelled_by
from vla_robot.policy.vla.json_files import read_json, shown, whole
from vla_robot.recipe.finetune import ADDED, PI0_FAST, RAREST, CodecRecipe

BINS = 256
PI0_SKIPPED = 128
"""Ids at the end of PaliGemma's vocabulary that openpi leaves free: its <seg000> ... <seg127>."""


def rarest_words(tokenizer: Tokenizer, count: int) -> int:
    """Return one past the last of `count` consecutive ids before the tokens that were added to a tokenizer.

    Merges of a byte-pair tokenizer are in the order of their frequency, so that the last ones are the rarest.

    Raises:
        CheckpointError: it has too few words.
    """
    added = tokenizer.get_added_tokens_decoder().keys()
    end = tokenizer.get_vocab_size(with_added_tokens=True)
    while end >= count and (taken := [id for id in range(end - count, end) if id in added]):
        end = taken[0]
    if end < count:
        raise CheckpointError(f"the tokenizer has no {count} consecutive words that are not control tokens.")
    return end


def count_rarest(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the (count,) ids, rising, that occur least in a corpus, and how often; of equals, the last ids.

    Args:
        tokenizer: its added tokens are left out.
        texts: the corpus.
        count: how many.

    Raises:
        CheckpointError: the tokenizer has too few other tokens.
    """
    seen = Counter(id for text in texts for id in tokenizer.encode(text, add_special_tokens=False).ids)
    added = tokenizer.get_added_tokens_decoder().keys()
    free = [id for id in range(tokenizer.get_vocab_size(with_added_tokens=True)) if id not in added]
    if len(free) < count:
        raise CheckpointError(f"the tokenizer has {len(free)} tokens that are not control tokens, fewer than {count}.")
    rarest = sorted(sorted(free, key=lambda id: (seen[id], -id))[:count])
    return np.array(rarest, dtype=np.int64), np.array([seen[id] for id in rarest], dtype=np.int64)


def planned_codec(
    recipe: CodecRecipe | None, tokenizer: Tokenizer, vocabulary: int, end: int, chunk: int, dimension: int
) -> ActionCodec:
    """Return the codec of a new policy; its ids may lie behind the vocabulary, which then must grow.

    Args:
        recipe: what is asked for; None for OpenVLA's bins over the rarest words.
        tokenizer: the model's words.
        vocabulary: rows of the model.
        end: id that ends an answer.
        chunk: K, actions of an answer.
        dimension: D, numbers of an action.

    Raises:
        CheckpointError: a file is damaged or does not fit, the tokenizer has too few words or joins numbers, or ids
            of protected tokens are asked for.
        RecipeError: the number of rows in a file is another than the codec's.
    """
    if recipe is None:
        return openvla_bins(rarest_words(tokenizer, BINS), BINS, chunk)
    if recipe.kind == "words":
        return WordCodec(spelled_by(tokenizer, recipe.largest), end, chunk, dimension)
    if recipe.kind == "fast":
        assert recipe.tokenizer is not None  # the recipe was checked
        fast = read_fast(recipe.tokenizer, chunk, dimension)
        return FastCodec(fast, _rows(recipe, tokenizer, vocabulary, len(fast.tokens)), chunk)
    count = BINS * (dimension if recipe.by_dimension else 1)
    ids = _rows(recipe, tokenizer, vocabulary, count)
    return BinCodec(ids, chunk, recipe.scale, dimension if recipe.by_dimension else None)


def codec_of_new(
    recipe: CodecRecipe | None, tokenizer: Tokenizer, vocabulary: int, end: int, chunk: int, dimension: int
) -> ActionCodec:
    """Return the codec of a new model, whose rows are added behind its `vocabulary`; otherwise as `planned_codec`."""
    if recipe is None:
        return openvla_bins(vocabulary + BINS, BINS, chunk)
    return planned_codec(replace(recipe, rows=ADDED, rows_file=None), tokenizer, vocabulary, end, chunk, dimension)


def added_rows(codec: ActionCodec, vocabulary: int) -> int:
    """Return by how many rows a vocabulary must grow for a codec."""
    return max(0, int(codec.ids.max()) + 1 - vocabulary)


def require_free(ids: NDArray[np.int64], tokenizer: Tokenizer) -> None:
    """Raise CheckpointError if an id is that of a token that was added to a tokenizer: a control token, or <loc>."""
    added = tokenizer.get_added_tokens_decoder()
    taken = sorted(set(ids.tolist()) & added.keys())
    if taken:
        first, last = (added[id].content for id in (taken[0], taken[-1]))
        raise CheckpointError(
            f"actions would take {len(taken)} protected rows of the vocabulary, {first} to {last} (ids {taken[0]} to "
            f'{taken[-1]}), and the model could say them no more. Choose other rows in [codec]: "{ADDED}" leaves all '
            "old rows as they are."
        )


def _rows(recipe: CodecRecipe, tokenizer: Tokenizer, vocabulary: int, count: int) -> NDArray[np.int64]:
    if recipe.rows_file is not None:
        ids = _counted(recipe.rows_file, count)
    else:
        ids = _named(recipe.rows, tokenizer, vocabulary, count)
    if (inside := ids[ids < vocabulary]).size:
        require_free(inside, tokenizer)
    return ids


def _named(rows: str, tokenizer: Tokenizer, vocabulary: int, count: int) -> NDArray[np.int64]:
    if rows == ADDED:
        return np.arange(vocabulary, vocabulary + count)
    if rows == RAREST:
        end = rarest_words(tokenizer, count)
        return np.arange(end - count, end)
    assert rows == PI0_FAST
    last = tokenizer.get_vocab_size(with_added_tokens=True) - 1 - PI0_SKIPPED
    if last < count:
        raise CheckpointError(f"the tokenizer's vocabulary is too small for pi0-FAST's layout of {count} tokens.")
    return last - np.arange(count)


def write_rows(ids: NDArray[np.int64]) -> str:
    """Return the content of a file of rows, as `[codec] rows_file` reads it."""
    return json.dumps({"ids": ids.tolist()}) + "\n"


def _counted(path: Path, count: int) -> NDArray[np.int64]:
    ids = read_json(path).get("ids")
    if not isinstance(ids, list):
        raise CheckpointError(f"{path}: ids is {shown(ids)}; expected the list that `vla data rarest` writes.")
    if len(ids) != count:
        raise RecipeError(f"{path} has {len(ids)} rows, but this codec takes {count}; `vla data rarest` has --count.")
    try:
        return np.array([whole(str(path), "ids", each, 1 << 24, 0) for each in ids], dtype=np.int64)
    except ContractError as error:
        raise CheckpointError(f"{path}: {error}") from error
