"""Which codec a policy's folder names: the block "vla_robot" of config.json names its kind, codec.json describes it.

    config.json   "vla_robot": {"codec": "bins", "chunk": 8, ...}
    codec.json    {"kind": "bins", "scale": "equal", "dimension": 7, "ids": [...]}

Folders from before there were codecs, and OpenVLA's published ones, say the ids of its bins in config.json alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.bins import EQUAL, OPENVLA, BinCodec, openvla_bins
from vla_robot.policy.vla.codecs.fast import FastCodec
from vla_robot.policy.vla.codecs.fast_files import fast_from
from vla_robot.policy.vla.codecs.number_words import WordCodec
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, shown, whole, write_json

FILE = "codec.json"
KEY = "codec"
"""Key of our block of config.json."""
MOST_IDS = 1 << 24
"""More than the rows of any vocabulary."""
BINS, END = "n_action_bins", "action_vocab_end"
"""Keys of the same block, in folders whose codec is OpenVLA's bins over consecutive ids."""


def named_codec(
    source: str, block: Mapping[str, Any], folder: Path | None, chunk: int, vocabulary: int
) -> ActionCodec | None:
    """Return the codec that a folder names, or None if its block of config.json names none.

    Args:
        source: path of config.json, for messages.
        block: our block of it.
        folder: the folder; None where there is none, as for a new configuration.
        chunk: K, actions of an answer.
        vocabulary: rows of the language model.

    Raises:
        CheckpointError: codec.json is missing or damaged, describes another kind, has ids beyond the vocabulary, or
            lies in a folder whose config.json names no codec.
    """
    kind = block.get(KEY)
    path = None if folder is None else folder / FILE
    if kind is None:
        if path is not None and path.is_file():
            raise CheckpointError(f"{path} is there, but {source} names no codec; one of the two is of another policy.")
        return None
    if path is None or not path.is_file():
        raise CheckpointError(
            f"{source} names the codec {shown(kind)}, but {FILE} is missing beside it; copy it again."
        )
    data = read_json(path)
    if data.get("kind") != kind:
        raise CheckpointError(
            f"{source} names the codec {shown(kind)}, but {path} describes {shown(data.get('kind'))}."
        )
    codec = codec_from(data, chunk, str(path))
    if codec.ids.max() >= vocabulary:
        raise CheckpointError(
            f"{path} has action tokens up to id {codec.ids.max()}, but the model's vocabulary has {vocabulary} rows."
        )
    return codec


def codec_of(source: str, block: Mapping[str, Any], folder: Path | None, chunk: int, vocabulary: int) -> ActionCodec:
    """Return the codec that a block names; the arguments are those of `named_codec`.

    Raises:
        CheckpointError: as `named_codec`, or the block names neither a codec nor the ids of OpenVLA's bins.
    """
    if (named := named_codec(source, block, folder, chunk, vocabulary)) is not None:
        return named
    if END not in block:
        raise CheckpointError(
            f'{source} names no codec: its block \'{OUR_BLOCK}\' has neither "{KEY}" nor the "{END}" of '
            "OpenVLA's bins. How its weights say actions cannot be guessed; copy the file of its training again."
        )
    bins = whole(source, BINS, block.get(BINS, 256), vocabulary, 2)
    return openvla_bins(whole(source, END, block[END], vocabulary, bins), bins, chunk)


def codec_block(codec: ActionCodec) -> dict[str, Any]:
    """Return what a block of config.json says of a codec: the ids of OpenVLA's bins where they lie together."""
    if is_in_config(codec):
        return {END: int(codec.ids[-1]) + 1, BINS: len(codec.ids)}
    return {KEY: codec.kind}


def is_in_config(codec: ActionCodec) -> bool:
    """Return whether config.json alone says a codec, as it did before there were others; no codec.json is written."""
    return (
        isinstance(codec, BinCodec)
        and codec.how == OPENVLA
        and codec.dimension is None
        and bool((np.diff(codec.ids) == 1).all())
    )


def codec_from(data: Mapping[str, Any], chunk: int, source: str) -> ActionCodec:
    """Return the codec that the content of a codec.json describes. Raises CheckpointError if it describes none."""
    kind = data.get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{source}: {unknown('codec', str(kind), KINDS)}")
    try:
        return KINDS[kind](data, chunk, source)
    except ContractError as error:
        raise CheckpointError(f"{source}: {error}") from error


def write_codec(codec: ActionCodec, folder: Path) -> None:
    """Write codec.json, unless config.json alone says the codec."""
    if not is_in_config(codec):
        write_json(folder / FILE, codec.to_dict())


def fingerprint(codec: ActionCodec) -> str:
    """Return a short hash of all that codec.json says."""
    return hashlib.sha256(json.dumps(codec.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def ids_of(data: Mapping[str, Any], source: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the list "ids" of a codec.json. Raises CheckpointError unless it holds whole numbers."""
    ids = data.get("ids")
    if not isinstance(ids, list) or not ids:
        raise CheckpointError(f"{source}: ids is {shown(ids)}; expected a list of whole numbers.")
    return np.array([whole(source, "ids", each, MOST_IDS, 0) for each in ids], dtype=np.int64)


def dimension_of(data: Mapping[str, Any], source: str) -> int:
    """Return the number "dimension" of a codec.json. Raises CheckpointError unless it is one."""
    return whole(source, "dimension", data.get("dimension"), 1000)


def _bins(data: Mapping[str, Any], chunk: int, source: str) -> BinCodec:
    how = data.get("scale")
    if how not in (OPENVLA, EQUAL):
        raise CheckpointError(f"{source}: {unknown('scale', str(how), (OPENVLA, EQUAL))}")
    dimension = None if data.get("dimension") is None else dimension_of(data, source)
    return BinCodec(ids_of(data, source), chunk, how, dimension)


def _words(data: Mapping[str, Any], chunk: int, source: str) -> WordCodec:
    spelled = data.get("spelled")
    if not isinstance(spelled, list) or not all(isinstance(each, list) and each for each in spelled):
        raise CheckpointError(f"{source}: spelled must be a list with the ids of each number.")
    ids = [[whole(source, "spelled", id, MOST_IDS, 0) for id in each] for each in spelled]
    return WordCodec(ids, whole(source, "end", data.get("end"), MOST_IDS, 0), chunk, dimension_of(data, source))


def _fast(data: Mapping[str, Any], chunk: int, source: str) -> FastCodec:
    return FastCodec(fast_from(data, source), ids_of(data, source), chunk)


KINDS: dict[str, Callable[[Mapping[str, Any], int, str], ActionCodec]] = {"bins": _bins, "words": _words, "fast": _fast}
"""`kind` of codec.json -> what reads the rest."""
