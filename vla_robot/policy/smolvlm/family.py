"""SmolVLM as a family: its folder, its prompt, and a small one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from vla_robot.policy.smolvlm.model import SmolVLM
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vlm.config import text_sizes, tower_sizes
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.prompts import Template
from vla_robot.policy.vlm.split_images import LANCZOS, SplitPreprocessor, read_split
from vla_robot.policy.vlm.square_images import HALF
from vla_robot.recipe.finetune import Architecture

PATCH, SCALE = 14, 2
FAKE, WHOLE = "<fake_token_around_image>", "<global-img>{image}"
NANO_GRID = (2, 2)
"""Rows and columns of parts for which a new tokenizer has tokens."""


def image_text(grid: tuple[int, int] | None) -> str:
    """Return one camera's tokens, with a place for each part of its frame and for the whole."""
    whole = f"{FAKE}{WHOLE}{FAKE}"
    if grid is None:
        return whole
    rows = ("".join(f"{FAKE}{part_token(r, c)}{{image}}" for c in range(grid[1])) + "\n" for r in range(grid[0]))
    return "".join(rows) + "\n" + whole


def part_token(row: int, column: int) -> str:
    """Return the control token before a part, both counted from 0."""
    return f"<row_{row + 1}_col_{column + 1}>"


class SmolVLMFamily(TransformersFamily):
    """A family whose prompt names the parts of a frame."""

    def template_of(self, preprocessor: FramePreprocessor) -> Template:
        assert isinstance(preprocessor, SplitPreprocessor)
        return replace(self.template, image=image_text(preprocessor.grid))


def _processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": False,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "max_image_size": {"longest_edge": size},
        "resample": LANCZOS,
        "size": {"longest_edge": size},
    }


def _nano(model_type: str, a: Architecture, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "image_token_id": tokenizer.token_to_id("<image>"),
        "scale_factor": SCALE,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "llama",
            **text_sizes(a, vocabulary),
            "num_key_value_heads": max(1, a.llm_heads // 2),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
            "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"),
        },
        "vision_config": {
            "model_type": f"{model_type}_vision",
            **tower_sizes(a),
            "image_size": a.image_size,
            "patch_size": PATCH,
        },
    }


SMOLVLM = SmolVLMFamily(
    model_type="smolvlm",
    vlm="SmolVLMForConditionalGeneration",
    model=SmolVLM,
    sub_types={"text_config": ("llama",), "vision_config": ("smolvlm_vision",)},
    template=Template(
        begin="<|im_start|>User:",
        image=image_text(None),
        text="{text}<end_of_utterance>\nAssistant:",
        end="<end_of_utterance>",
    ),
    preprocessor=read_split,
    nano=partial(_nano, "smolvlm"),
    control_tokens=(
        "<|endoftext|>", "<unk>", "<|im_start|>", "<end_of_utterance>", FAKE, "<global-img>", "<image>",
        *(part_token(row, column) for row in range(NANO_GRID[0]) for column in range(NANO_GRID[1])),
    ),
    processor=_processor,
)  # fmt: skip
SMOLVLM_1 = replace(
    SMOLVLM,
    model_type="idefics3",
    vlm="Idefics3ForConditionalGeneration",
    sub_types={"text_config": ("llama",), "vision_config": ("idefics3_vision", "idefics3")},
    nano=partial(_nano, "idefics3"),
    processor=lambda size: _processor(size) | {"image_processor_type": "Idefics3ImageProcessor"},
)
"""The first SmolVLM, which names its elder, Idefics3; Idefics3 itself is another prompt and another tokenizer."""
