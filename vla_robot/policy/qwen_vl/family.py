"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as families: their folders, their prompts, and small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.qwen_vl.model import Qwen3VL, QwenVL
from vla_robot.policy.vla.json_files import shown, whole
from vla_robot.policy.vlm.config import text_sizes
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.native_images import Budget, NativePreprocessor, within
from vla_robot.policy.vlm.prompts import Template
from vla_robot.policy.vlm.square_images import image_processor_of, mean_and_std
from vla_robot.recipe.finetune import Architecture

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
MERGE = 2
MOST_PIXELS = 16384 * 28 * 28
"""Largest budget of a frame [px]: 16,384 tokens, the default of Qwen2-VL's published folders."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHAT = Template(
    begin="<|im_start|>user\n",
    image="<|vision_start|>{image}<|vision_end|>",
    text="{text}<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)
CONTROL = ("<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


def read_preprocessor(folder: Path, config: Mapping[str, Any]) -> NativePreprocessor:
    """Read how frames become pixels from preprocessor_config.json.

    Raises:
        CheckpointError: the file is missing or damaged, asks for other patches than the model reads, or for a budget
            that no frame fits.
    """
    source, data = image_processor_of(folder)
    vision = config["vision_config"]
    for key, default in (("patch_size", 14), ("merge_size", MERGE)):
        model = vision.get({"merge_size": "spatial_merge_size"}.get(key, key), default)
        if data.get(key, default) != model:
            raise CheckpointError(f"{source}: {key} is {shown(data.get(key))}, but the model reads {model}.")
    size = data.get("size") or {}
    cell = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", MERGE))
    largest = size.get("longest_edge", data.get("max_pixels", 1280 * 28 * 28))
    smallest = size.get("shortest_edge", data.get("min_pixels", 56 * 56))
    budget = Budget(
        cell,
        whole(source, "min_pixels", smallest, MOST_PIXELS),
        whole(source, "max_pixels", largest, MOST_PIXELS, cell * cell),
    )
    if budget.smallest > budget.largest:
        raise CheckpointError(f"{source}: min_pixels {budget.smallest} is above max_pixels {budget.largest}.")
    return NativePreprocessor(budget, within, *mean_and_std(source, data, CLIP_MEAN, CLIP_STD))


def _processor(cell: int) -> Callable[[int], dict[str, Any]]:
    def described(size: int) -> dict[str, Any]:
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "merge_size": MERGE,
            "patch_size": cell // MERGE,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": size * size, "longest_edge": size * size},
        }

    return described


def _nano(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    pairs = a.llm_dim // a.llm_heads // 2
    text = {
        **text_sizes(a, vocabulary),
        "num_key_value_heads": max(1, a.llm_heads // 2),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8],
        },
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    vision = {"patch_size": 14, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "depth": a.tower_depth - 1}
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {
        "tie_word_embeddings": True,
        **{key: tokenizer.token_to_id(token) for key, token in ids.items()},
        "text_config": text,
        "vision_config": vision | {"num_heads": a.tower_heads},
    }


def _nano2(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    data = _nano(a, vocabulary, tokenizer)
    data["vision_config"] |= {"embed_dim": a.tower_dim, "hidden_size": a.llm_dim, "mlp_ratio": 4}
    return {"model_type": "qwen2_vl", **data}


def _nano25(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    data = _nano(a, vocabulary, tokenizer)
    data["vision_config"] |= {
        "hidden_size": a.tower_dim,
        "out_hidden_size": a.llm_dim,
        "intermediate_size": 3 * a.tower_dim,
        "window_size": 56,
        "fullatt_block_indexes": [a.tower_depth - 2],
    }
    return {"model_type": "qwen2_5_vl", **data}


def _nano3(a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    data = _nano(a, vocabulary, tokenizer)
    data["text_config"] |= {"head_dim": a.llm_dim // a.llm_heads}
    data["text_config"]["rope_parameters"] |= {"mrope_interleaved": True}
    data["vision_config"] |= {
        "hidden_size": a.tower_dim,
        "out_hidden_size": a.llm_dim,
        "intermediate_size": 4 * a.tower_dim,
        "num_position_embeddings": (a.image_size // 14) ** 2,
        "deepstack_visual_indexes": [0],
    }
    return {"model_type": "qwen3_vl", **data}


QWEN2_VL = TransformersFamily(
    model_type="qwen2_vl",
    vlm="Qwen2VLForConditionalGeneration",
    model=QwenVL,
    sub_types={"text_config": ("qwen2_vl_text",), "vision_config": ("qwen2_vl", "qwen2_vl_vision")},
    template=replace(CHAT, begin=SYSTEM + CHAT.begin),
    preprocessor=read_preprocessor,
    nano=_nano2,
    control_tokens=(*CONTROL, *PLACEHOLDERS),
    processor=_processor(28),
)
QWEN2_5_VL = replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    vlm="Qwen2_5_VLForConditionalGeneration",
    sub_types={"text_config": ("qwen2_5_vl_text",), "vision_config": ("qwen2_5_vl", "qwen2_5_vl_vision")},
    nano=_nano25,
)
QWEN3_VL = replace(
    QWEN2_VL,
    model_type="qwen3_vl",
    vlm="Qwen3VLForConditionalGeneration",
    model=Qwen3VL,
    sub_types={"text_config": ("qwen3_vl_text",), "vision_config": ("qwen3_vl", "qwen3_vl_vision")},
    template=CHAT,
    nano=_nano3,
)
