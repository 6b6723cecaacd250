"""PaliGemma as a family: its folder, its prompt, and a small one."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vla_robot.policy.paligemma.model import PaliGemma
from vla_robot.policy.paligemma.resolution import resized
from vla_robot.policy.vlm.config import text_sizes, tower_sizes
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.prompts import Template
from vla_robot.policy.vlm.square_images import read_square, siglip_processor
from vla_robot.recipe.finetune import Architecture


def _nano(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "image_token_index": tokenizer.token_to_id("<image>"),
        "projection_dim": a.llm_dim,
        "text_config": {
            "model_type": "gemma",
            **text_sizes(a, vocabulary),
            "num_key_value_heads": 1,
            "head_dim": a.llm_dim // a.llm_heads,
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            "bos_token_id": tokenizer.token_to_id("<bos>"),
            "eos_token_id": tokenizer.token_to_id("<eos>"),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **tower_sizes(a),
            "image_size": a.image_size,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


PALIGEMMA = TransformersFamily(
    model_type="paligemma",
    vlm="PaliGemmaForConditionalGeneration",
    model=PaliGemma,
    sub_types={"text_config": ("gemma", "gemma2"), "vision_config": ("siglip_vision_model",)},
    template=Template(after="<bos>", text="{text}\n", end="<eos>"),
    preprocessor=read_square,
    nano=_nano,
    control_tokens=("<pad>", "<eos>", "<bos>", "<unk>", "<image>"),
    processor=siglip_processor,
    resized=resized,
)
