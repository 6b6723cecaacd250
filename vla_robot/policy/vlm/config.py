"""Reads a config.json of transformers strictly, with our block beside the published keys."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.folder import codec_block, codec_of
from vla_robot.policy.vla.first_weights import stated_range
from vla_robot.policy.vla.heads.sizes import HeadSizes, head_block, head_of
from vla_robot.policy.vla.inputs.reader import InputSizes
from vla_robot.policy.vla.json_files import OUR_BLOCK, whole
from vla_robot.policy.vla.small_files import table_of
from vla_robot.recipe.finetune import Architecture

MAX_LAYERS, MAX_NUMBER = 256, 4_194_304
"""Largest number of layers, and largest other whole number; Gemma 4 31B has 60 layers and 262,144 tokens."""

LAYER_KEYS = ("num_hidden_layers", "depth")

CODE = ("auto_map", "custom_pipelines", "quantization_config")
"""Keys with which a folder asks for code of its own, or for weights in a form that is not read here."""

IMPLEMENTATION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "kernel_config")
"""Keys that choose an implementation, some by fetching it; they are left out, so that the library takes its own."""


def text_sizes(a: Architecture, vocabulary: int) -> dict[str, Any]:
    """Return the sizes of a new language model by their names in transformers, and how its weights are drawn.

    Args:
        a: the sizes.
        vocabulary: rows of its vocabulary.
    """
    return {
        "vocab_size": vocabulary,
        "hidden_size": a.llm_dim,
        "intermediate_size": a.llm_ff_dim,
        "num_hidden_layers": a.llm_layers,
        "num_attention_heads": a.llm_heads,
        "max_position_embeddings": a.max_positions,
        **stated_range(a),
    }


def tower_sizes(a: Architecture) -> dict[str, int]:
    """Return the sizes of a new vision tower, with one block less than OpenVLA's, which leaves its last one out."""
    return {
        "hidden_size": a.tower_dim,
        "intermediate_size": 4 * a.tower_dim,
        "num_hidden_layers": a.tower_depth - 1,
        "num_attention_heads": a.tower_heads,
    }


@dataclass(frozen=True)
class VLMConfig:
    """Sizes of a checkpoint.

    Attributes:
        published: content of config.json without our block.
        frame: height and width of a frame after resizing [px]: of the arm's cameras, or of a square one if the folder
            names no arm.
        vocabulary: rows of the language model's vocabulary.
        codec: how actions are said.
        num_images: cameras of an observation.
        proprio_dim: numbers of the arm's state, or None for a policy without proprioception.
        chunk: K, consecutive actions of one answer.
        pad_token_id: id that pads text at the right.
        norm_stats: dataset name -> statistics.
        head: gives actions as numbers; None for a policy of tokens.
    """

    published: Mapping[str, Any] = field(repr=False)
    frame: tuple[int, int]
    vocabulary: int
    codec: ActionCodec
    num_images: int = 1
    proprio_dim: int | None = None
    chunk: int = 1
    pad_token_id: int = 0
    norm_stats: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    head: HeadSizes | None = None

    @property
    def inputs(self) -> InputSizes:
        """The sizes of what the model reads."""
        return InputSizes(max(self.frame), self.num_images, self.proprio_dim, self.vocabulary)

    @property
    def num_words(self) -> int:
        """Rows that a text may consist of; those that a codec reserves are never words."""
        return self.vocabulary

    @property
    def block(self) -> dict[str, Any]:
        """Our block of config.json."""
        return {
            **codec_block(self.codec),
            "num_images": self.num_images,
            "proprio_dim": self.proprio_dim,
            "chunk": self.chunk,
            **head_block(self.head),
        }

    def with_block(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of config.json, given what transformers writes."""
        return {**published, OUR_BLOCK: self.block}


def require_plain(source: str, data: Mapping[str, Any], sub_types: Mapping[str, Collection[str]]) -> None:
    """Raise CheckpointError unless a config.json describes a model of the library's own code and of sane size.

    Args:
        source: path of the file, for the message.
        data: its content.
        sub_types: key of a part ("text_config") -> `model_type` values that it may have.
    """
    for key in CODE:
        if data.get(key):
            raise CheckpointError(f"{source}: {key} asks for code or weights that are not read here; save it without.")
    for key, types in sub_types.items():
        found = table_of(source, data, key).get("model_type")
        if found is not None and found not in types:
            raise CheckpointError(f"{source}: {key} has model_type {found!r}; supported: {', '.join(types)}.")
    for path, number in _numbers(data, ()):
        largest = MAX_LAYERS if path[-1] in LAYER_KEYS else MAX_NUMBER
        if not abs(number) <= largest:
            raise CheckpointError(f"{source}: {'.'.join(path)} is {number!r:.40}; expected at most {largest}.")


def without_implementation(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without the keys that choose an implementation, at every depth, and without our block."""
    return {
        key: without_implementation(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key not in (*IMPLEMENTATION, OUR_BLOCK)
    }


def block_of(folder: Path, data: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return our block of a folder's config.json as arguments of `VLMConfig`, with the codec that it names.

    Raises:
        CheckpointError: the block is missing, so that no action has a token, or names no codec, or one of its numbers
            is impossible.
    """
    source = str(folder / "config.json")
    block = table_of(source, data, OUR_BLOCK)
    if not block:
        raise CheckpointError(
            f"{source} has no '{OUR_BLOCK}' block: this is a vision-language model without action tokens. "
            "`vla finetune --policy FOLDER --data DEMOS` makes a policy of it."
        )
    proprio = block.get("proprio_dim")
    chunk = whole(source, "chunk", block.get("chunk", 1), 1000)
    return {
        "codec": codec_of(source, block, folder, chunk, vocabulary),
        "num_images": whole(source, "num_images", block.get("num_images", 1), 16),
        "proprio_dim": None if proprio is None else whole(source, "proprio_dim", proprio, 1024),
        "chunk": chunk,
        "head": head_of(source, block),
    }


def _numbers(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield each number of a nested JSON value with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path or ("?",), value
