"""Gemma 4 as a family: its folder, its prompt, and a small one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.gemma4.model import Gemma4
from vla_robot.policy.vla.json_files import shown, whole
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.native_images import Budget, NativePreprocessor, filling
from vla_robot.policy.vlm.prompts import Template
from vla_robot.policy.vlm.square_images import image_processor_of
from vla_robot.recipe.finetune import Architecture

MAX_TOKENS = 1120
"""Largest of the five budgets of the published processors."""

NANO_PATCH, NANO_POOLING = 14, 2


def read_preprocessor(folder: Path, config: Mapping[str, Any]) -> NativePreprocessor:
    """Read the budget of tokens of a frame from the folder.

    Raises:
        CheckpointError: the file is missing or damaged, asks for other patches than the model reads, or for more
            patches along a side than the model has positions.
    """
    source, data = image_processor_of(folder)
    vision = config["vision_config"]
    patch, pooling = vision.get("patch_size", 16), vision.get("pooling_kernel_size", 3)
    for key, model in (("patch_size", patch), ("pooling_kernel_size", pooling)):
        if data.get(key, model) != model:
            raise CheckpointError(f"{source}: {key} is {shown(data.get(key))}, but the model reads {model}.")
    tokens = whole(source, "max_soft_tokens", data.get("max_soft_tokens", 280), MAX_TOKENS)
    known = vision.get("position_embedding_size", 10240)
    if tokens * pooling > known:  # a frame of one row of tokens
        raise CheckpointError(
            f"{source}: max_soft_tokens is {tokens}, so that a narrow frame has {tokens * pooling} patches along a "
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
    head = a.llm_dim // a.llm_heads
    ids = {
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "video_token_id": "<|video|>",
        "audio_token_id": "<|audio|>",
    }
    return {
        "model_type": "gemma4",
        "audio_config": None,
        **{key: tokenizer.token_to_id(token) for key, token in ids.items()},
        "text_config": {
            "model_type": "gemma4_text",
            "vocab_size": vocabulary,
            "hidden_size": a.llm_dim,
            "intermediate_size": a.llm_ff_dim,
            "num_hidden_layers": a.llm_layers,
            "num_attention_heads": a.llm_heads,
            "num_key_value_heads": max(1, a.llm_heads // 2),
            "head_dim": head,
            "global_head_dim": head,
            "max_position_embeddings": a.max_positions,
            "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(a.llm_layers - 1)]
            + ["full_attention"],
            "sliding_window": 64,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "use_bidirectional_attention": "vision",
            "final_logit_softcapping": 30.0,
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            "bos_token_id": tokenizer.token_to_id("<bos>"),
            "eos_token_id": tokenizer.token_to_id("<eos>"),
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": a.tower_dim,
            "intermediate_size": 4 * a.tower_dim,
            "num_hidden_layers": a.tower_depth - 1,
            "num_attention_heads": a.tower_heads,
            "num_key_value_heads": a.tower_heads,
            "head_dim": a.tower_dim // a.tower_heads,
            "patch_size": NANO_PATCH,
            "pooling_kernel_size": NANO_POOLING,
            "position_embedding_size": 1024,
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
