"""Tiny random models of transformers, a ragged batch for each, and what the library's own `generate` says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.distributions import Categorical
from transformers import LogitsProcessorList

from benchmarks.models.plain_vlm import OnlyRows
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.reason.generate import Generator
from vla_robot.policy.vla.reason.text_reasoner import TextReasoner
from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.positions import ImageSpan, mrope
from vla_robot.policy.vla.sequence.ragged import RaggedSequence

VOCAB, FIRST, END = 320, 40, 296
IMAGE, PAD, BOS, VISION_END = 300, 0, 2, 301
TOKENS = 7
TEXTS = ((5, 6, 7, 8, 9), (11, 12))
"""Two prompts of different length, each after one image."""

SHARP = 30
"""Factor on the output rows of the actions: logits lie far enough apart that their order is no accident of a sum."""


@dataclass(frozen=True)
class Family:
    """A family of the library, in small.

    Attributes:
        model: randomly initialised, in evaluation mode.
        rule: what its layers see.
        inputs: keyword arguments of the model for both rows, padded at the left.
        sequence: the same rows as ours.
        first_position: of a row's first token.
        embedding_scale: factor on looked-up embeddings.
    """

    model: Any
    rule: MaskRule
    inputs: dict[str, Tensor]
    sequence: RaggedSequence
    first_position: int = 0
    embedding_scale: float = 1.0

    def generator(self) -> Generator:
        text = self.model.model.language_model
        reasoner = TextReasoner(text, self.rule, self.first_position)
        embeddings = text.embed_tokens.weight * self.embedding_scale
        cap = getattr(text.config, "final_logit_softcapping", None)
        codec = openvla_bins(END, END - FIRST)
        return Generator(reasoner, embeddings[FIRST:END], self.model.lm_head.weight[FIRST:END], codec, soft_cap=cap)

    @torch.inference_mode()
    def generate(self, rows: slice = slice(None)) -> tuple[list[list[int]], Tensor, Tensor]:
        """The library's tokens, (B, 256) logits of the first one, and (B, TOKENS) entropy of all."""
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        out = self.model.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=PAD, return_dict_in_generate=True, output_logits=True,
            logits_processor=LogitsProcessorList([OnlyRows(slice(FIRST, END))]),
        )  # fmt: skip
        logits = torch.stack(out.logits, dim=1)[..., FIRST:END]
        return out.sequences[:, -TOKENS:].tolist(), logits[:, 0], Categorical(logits=logits).entropy()

    def row(self, index: int) -> RaggedSequence:
        """One row of our sequence, without padding."""
        length, s = int(self.sequence.lengths[index]), self.sequence
        this = slice(index, index + 1)
        return RaggedSequence(
            s.embeds[this, :length],
            s.lengths[this],
            None if s.blocks is None else s.blocks[this, :length],
            None if s.positions is None else s.positions[this, :, :length],
        )


def _text_config(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": 1, **more,
    }  # fmt: skip


def _ready(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():  # norms of ones and biases of zeros would hide that one is left out
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.lm_head.weight[FIRST:END] *= SHARP
    return model.eval().requires_grad_(False)


def _rows(images: Sequence[Sequence[int]]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """BOS, the image's tokens, the text -> ids of each row, and the library's input padded at the left."""
    rows = [[BOS, *image, *text] for image, text in zip(images, TEXTS, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return rows, {"input_ids": ids, "attention_mask": mask}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


@torch.inference_mode()
def _embedded(model: Any, rows: Sequence[Sequence[int]], features: Tensor) -> Tensor:
    """(B, S, D) padded at the right, with the image's features in the rows of their tokens."""
    ids = _padded(rows, PAD)
    embeds = model.get_input_embeddings()(ids)
    return embeds.masked_scatter((ids == IMAGE)[..., None], features.reshape(-1, features.shape[-1]))


def paligemma(text: str) -> Family:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"model_type": text, **_text_config(num_key_value_heads=1)}
    if text == "gemma2":
        sizes |= {"sliding_window": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0}
        sizes |= {"final_logit_softcapping": 60.0}
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=sizes, projection_dim=32, image_token_index=IMAGE
    )
    model = _ready(transformers.PaliGemmaForConditionalGeneration(config))
    pixels = torch.randn(2, 3, 28, 28)
    rows, inputs = _rows([[IMAGE] * 4] * 2)
    with torch.inference_mode():
        features = model.model.get_image_features(pixels).pooler_output
    lengths = torch.tensor([len(row) for row in rows])
    blocks = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    sequence = RaggedSequence(_embedded(model, rows, features), lengths, blocks)
    inputs |= {"pixel_values": pixels, "token_type_ids": torch.zeros_like(inputs["input_ids"])}
    rule = MaskRule(window=8 if text == "gemma2" else None)
    return Family(model, rule, inputs, sequence, first_position=1, embedding_scale=32**0.5)


def qwen(name: str) -> Family:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = _text_config(rope_parameters=rope)
    vision: dict[str, Any] = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 2}
    if name == "Qwen2VL":
        vision |= {"embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_start_token_id=302,
        vision_end_token_id=VISION_END,
    )  # fmt: skip
    model = _ready(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    grids = torch.tensor([[1, 4, 6], [1, 4, 6]])
    pixels = torch.randn(48, 1176)
    rows, inputs = _rows([[IMAGE] * 6 + [VISION_END]] * 2)
    with torch.inference_mode():
        features = torch.cat(list(model.model.get_image_features(pixels, grids).pooler_output))
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.zeros(2, 3, int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        positions[index, :, : len(row)] = mrope(len(row), [ImageSpan(1, 2, 3)])
    sequence = RaggedSequence(_embedded(model, rows, features), lengths, None, positions)
    inputs |= {"pixel_values": pixels.view(2, 24, 1176), "image_grid_thw": grids}
    inputs |= {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).long()}
    return Family(model, MaskRule(), inputs, sequence)


def _gemma4_text(**more: Any) -> dict[str, Any]:
    return _text_config(
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"], sliding_window=4,
        use_bidirectional_attention="vision", global_head_dim=16, num_kv_shared_layers=0, final_logit_softcapping=30.0,
        **more,
    )  # fmt: skip


def gemma4() -> Family:
    torch.manual_seed(0)
    text = _gemma4_text(hidden_size_per_layer_input=0)
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 32,
    }  # fmt: skip
    config = transformers.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, boi_token_id=302,
        eoi_token_id=VISION_END, video_token_id=303, audio_token_id=304,
    )  # fmt: skip
    rule = MaskRule(window=4, blocks_in_full=False, window_cuts_blocks=True)
    return _gemma4(transformers.Gemma4ForConditionalGeneration(config), torch.rand(2, 24, 48), _places(4, 6), rule)


def gemma4_unified() -> Family:
    torch.manual_seed(0)
    vision = {
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 24,
        "output_proj_dims": 24,
        "mm_posemb_size": 8,
    }
    config = transformers.Gemma4UnifiedConfig(
        text_config=_gemma4_text(), vision_config=vision, audio_config=None, image_token_id=IMAGE, boi_token_id=302,
        eoi_token_id=VISION_END, video_token_id=303, audio_token_id=304,
    )  # fmt: skip
    model = transformers.Gemma4UnifiedForConditionalGeneration(config)
    return _gemma4(model, torch.rand(2, 6, 48), _places(2, 3), MaskRule(window=4))


def _places(rows: int, columns: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(2, -1, -1)


def _gemma4(random: Any, pixels: Tensor, places: Tensor, rule: MaskRule) -> Family:
    model = _ready(random)
    with torch.no_grad():
        for layer in model.model.language_model.layers:  # a buffer: it is in a file, and no parameter
            layer.layer_scalar.fill_(0.8)
    rows, inputs = _rows([[IMAGE] * 6 + [VISION_END]] * 2)
    with torch.inference_mode():
        features = torch.cat(list(model.model.get_image_features(pixels, places).pooler_output))
    ids = _padded(rows, PAD)
    sequence = RaggedSequence(
        _embedded(model, rows, features), torch.tensor([len(row) for row in rows]), (ids == IMAGE).long()
    )
    inputs |= {"pixel_values": pixels, "image_position_ids": places}
    inputs |= {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).long()}
    return Family(model, rule, inputs, sequence, embedding_scale=32**0.5)


FAMILIES: dict[str, Callable[[], Family]] = {
    "PaliGemma": lambda: paligemma("gemma"),
    "PaliGemma2": lambda: paligemma("gemma2"),
    "Qwen2VL": lambda: qwen("Qwen2VL"),
    "Qwen2_5_VL": lambda: qwen("Qwen2_5_VL"),
    "Gemma4": gemma4,
    "Gemma4Unified": gemma4_unified,
}


@pytest.fixture(scope="session")
def families() -> Callable[[str], Family]:
    """A family by its name, made once."""
    return lru_cache(lambda name: FAMILIES[name]())


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Family:
    return families(request.param)
