"""Gemma 4 with and without a tower as families: their folders, their prompt, and small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.gemma4.model import Gemma4, Gemma4Unified
from vla_robot.policy.vla.json_files import shown, whole
from vla_robot.policy.vlm.config import text_sizes, tower_sizes
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.native_images import Budget, NativePreprocessor, filling
from vla_robot.policy.vlm.prompts import Template
from vla_robot.policy.vlm.square_images import image_processor_of
from vla_robot.recipe.finetune import Architecture

MAX_TOKENS = 1120
"""Largest of the five budgets of the published processors."""

NANO_PATCH, NANO_POOLING = 14, 2
NANO_PLACES = 128
"""Tokens of a frame for which a small model without a tower has places."""


def read_preprocessor(folder: Path, config: Mapping[str, Any]) -> NativePreprocessor:
    """Read the budget of tokens of a frame from the folder.

    Raises:
        CheckpointError: the file is missing or damaged, asks for other patches than the model reads, or for more
            patches along a side than the model has positions.
    """
    vision = config["vision_config"]
    known = vision.get("position_embedding_size", 10240)
    return _within_places(folder, vision, known, vision.get("pooling_kernel_size", 3))


def read_unified(folder: Path, config: Mapping[str, Any]) -> NativePreprocessor:
    """Do the same as `read_preprocessor` for a model without a tower, whose positions are those of tokens."""
    vision = config["vision_config"]
    return _within_places(folder, vision, vision.get("mm_posemb_size", 1120), 1)


def _within_places(folder: Path, vision: Mapping[str, Any], known: int, per_token: int) -> NativePreprocessor:
    """Read the budget of a model that has `known` positions along a side, `per_token` of them along a token's side."""
    source, data = image_processor_of(folder)
    patch, pooling = vision.get("patch_size", 16), vision.get("pooling_kernel_size", 3)
    for key, model in (("patch_size", patch), ("pooling_kernel_size", pooling)):
        if data.get(key, model) != model:
            raise CheckpointError(f"{source}: {key} is {shown(data.get(key))}, but the model reads {model}.")
    tokens = whole(source, "max_soft_tokens", data.get("max_soft_tokens", 280), MAX_TOKENS)
    if tokens * per_token > known:  # a frame of one row of tokens
        raise CheckpointError(
            f"{source}: max_soft_tokens is {tokens}, so that a narrow frame has {tokens * per_token} patches along a "
            f"side, but the model has {known} positions."
        )
    cell = patch * pooling
    return NativePreprocessor(Budget(cell, 0, tokens * cell * cell), filling, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": NANO_PATCH,
        "pooling_kernel_size": NANO_POOLING,
        "max_soft_tokens": (size // (NANO_PATCH * NANO_POOLING)) ** 2,
    }


def _nano(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    data = _nano_text("gemma4", a, vocabulary, tokenizer)
    data["text_config"] |= {"hidden_size_per_layer_input": 0}
    data["vision_config"] = {
        "model_type": "gemma4_vision",
        **tower_sizes(a),
        "num_key_value_heads": a.tower_heads,
        "head_dim": a.tower_dim // a.tower_heads,
        "patch_size": NANO_PATCH,
        "pooling_kernel_size": NANO_POOLING,
        "position_embedding_size": 1024,
    }
    return data


def _nano_unified(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A model without a tower; `tower_dim` and the like are not used."""
    data = _nano_text("gemma4_unified", a, vocabulary, tokenizer)
    data["vision_config"] = {
        "model_type": "gemma4_unified_vision",
        "patch_size": NANO_PATCH,
        "pooling_kernel_size": NANO_POOLING,
        "mm_embed_dim": a.llm_dim,
        "output_proj_dims": a.llm_dim,
        "mm_posemb_size": NANO_PLACES,
    }
    return data


def _nano_text(model_type: str, a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    head = a.llm_dim // a.llm_heads
    ids = {
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "video_token_id": "<|video|>",
        "audio_token_id": "<|audio|>",
    }
    return {
        "model_type": model_type,
        "audio_config": None,
        **{key: tokenizer.token_to_id(token) for key, token in ids.items()},
        "text_config": {
            "model_type": f"{model_type}_text",
            **text_sizes(a, vocabulary),
            "num_key_value_heads": max(1, a.llm_heads // 2),
            "head_dim": head,
            "global_head_dim": head,
            "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(a.llm_layers - 1)]
            + ["full_attention"],
            "sliding_window": 64,
            "num_kv_shared_layers": 0,
            "use_bidirectional_attention": "vision",
            "final_logit_softcapping": 30.0,
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            "bos_token_id": tokenizer.token_to_id("<bos>"),
            "eos_token_id": tokenizer.token_to_id("<eos>"),
        },
    }


GEMMA4 = TransformersFamily(
    model_type="gemma4",
    vlm="Gemma4ForConditionalGeneration",
    model=Gemma4,
    sub_types={"text_config": ("gemma4_text",), "vision_config": ("gemma4_vision",)},
    template=Template(
        begin="<bos><|turn>user\n",
        image="<|image>{image}<image|>",
        text="{text}<turn|>\n<|turn>model\n",
        end="<turn|>",
    ),
    preprocessor=read_preprocessor,
    nano=_nano,
    control_tokens=(
        "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|video|>",
        "<|audio|>",
    ),
    processor=_processor,
)  # fmt: skip
GEMMA4_UNIFIED = replace(
    GEMMA4,
    model_type="gemma4_unified",
    vlm="Gemma4UnifiedForConditionalGeneration",
    model=Gemma4Unified,
    sub_types={"text_config": ("gemma4_unified_text",), "vision_config": ("gemma4_unified_vision",)},
    preprocessor=read_unified,
    nano=_nano_unified,
    processor=lambda size: _processor(size) | {"image_processor_type": "Gemma4UnifiedImageProcessor"},
)
