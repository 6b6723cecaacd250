"""Gemma 4's perceive and align, its masks, and its embeddings by layer.

Source: transformers 5.23, models/gemma4 and models/gemma4_unified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vlm.model import TransformersModel


class Gemma4(TransformersModel):
    """One model. With embeddings by layer, a token's own embedding is followed by them."""

    perceives_by_shape = False  # the library reads the frames' sizes from tensors

    PARTS: ClassVar = {
        "vision": ("vlm.model.vision_tower.",),
        "projector": ("vlm.model.embed_vision.", "proprio_projector."),
        "decoder": ("vlm.model.language_model.", "vlm.lm_head."),
    }

    def perceive(self, pixels: Tensor) -> Tensor:
        B, N = pixels.shape[:2]
        frames = pixels.flatten(0, 1)
        p = self.vlm.config.vision_config.patch_size
        places = places_of(frames.shape[-2] // p, frames.shape[-1] // p).to(pixels.device)
        seen = self.vlm.model.get_image_features(patches_of(frames, p), places.expand(len(frames), -1, -1))
        features = torch.stack(list(seen.pooler_output))  # (B * N, P, D)
        return features.reshape(B, N * features.shape[1], -1)

    def connect(self, features: Tensor) -> list[Tensor]:
        if self._by_layer:
            pads = torch.full(features.shape[:2], self._text.config.pad_token_id, device=features.device)
            features = torch.cat([features, self._layer_embeddings(pads)], dim=-1)
        return list(features.chunk(self.config.num_images, dim=1))

    @property
    def width(self) -> int:
        text = self._text.config
        return text.hidden_size + text.num_hidden_layers * self._by_layer

    def arrange(self, pixels: Tensor, embeds: Tensor, prompts: Tensor) -> RaggedSequence:
        if not self._sees_images_whole:
            return super().arrange(pixels, embeds, prompts)
        rows, columns = (side // self._cell for side in pixels.shape[-2:])
        blocks = torch.zeros(1, embeds.shape[1], dtype=torch.int64, device=embeds.device)
        for number, begin in enumerate(self.layout.image_columns(rows * columns), start=1):
            blocks[:, begin : begin + rows * columns] = number
        return RaggedSequence(embeds, prompts, blocks.expand(len(embeds), -1), constant=self.constant)

    def mask_rule(self) -> MaskRule:
        return MaskRule(self._text.config.sliding_window, blocks_in_full=False, window_cuts_blocks=True)

    def tower_layers(self) -> Sequence[nn.Module]:
        return list(self.vlm.model.vision_tower.encoder.layers)

    def look_up(self, ids: Tensor) -> Tensor:
        words = super().look_up(ids)
        return torch.cat([words, self._layer_embeddings(ids)], dim=-1) if self._by_layer else words

    def beside(self) -> Callable[[Tensor], Mapping[str, Any]] | None:
        return self._per_layer_inputs if self._by_layer else None

    def tokens_of(self, height: int, width: int) -> int:
        return (height // self._cell) * (width // self._cell)

    @property
    def _cell(self) -> int:
        vision = self.vlm.config.vision_config
        return vision.patch_size * vision.pooling_kernel_size

    @property
    def _by_layer(self) -> int:
        """Width of a token's embedding for each layer; 0 without."""
        return getattr(self._text.config, "hidden_size_per_layer_input", None) or 0

    @property
    def _sees_images_whole(self) -> bool:
        return self._text.config.use_bidirectional_attention == "vision"

    def _layer_embeddings(self, ids: Tensor) -> Tensor:
        """Return (..., layers * width) embeddings by layer of (...) ids."""
        flat = self._text.get_per_layer_inputs(ids.reshape(1, -1))  # (1, n, layers, width)
        return flat.flatten(-2).reshape(*ids.shape, -1)

    def _per_layer_inputs(self, columns: Tensor) -> Mapping[str, Any]:
        layers = self._text.config.num_hidden_layers
        return {"per_layer_inputs": columns.unflatten(-1, (layers, -1))}


class Gemma4Unified(Gemma4):
    """Gemma 4 without a tower: pixels are embedded as words are. Tokens of one image see each other in all layers."""

    PARTS: ClassVar = {
        "vision": ("vlm.model.embed_vision.patch_", "vlm.model.embed_vision.pos_"),
        "projector": ("vlm.model.embed_vision.multimodal_embedder.", "proprio_projector."),
        "decoder": ("vlm.model.language_model.", "vlm.lm_head."),
    }

    def perceive(self, pixels: Tensor) -> Tensor:
        B = len(pixels)
        frames = pixels.flatten(0, 1)
        places = places_of(frames.shape[-2] // self._cell, frames.shape[-1] // self._cell).to(pixels.device)
        features = self.vlm.model.embed_vision(patches_of(frames, self._cell), places.expand(len(frames), -1, -1))
        return features.pooler_output.reshape(B, -1, features.pooler_output.shape[-1])

    def mask_rule(self) -> MaskRule:
        return MaskRule(self._text.config.sliding_window)

    def tower_layers(self) -> Sequence[nn.Module]:
        return []


def patches_of(frames: Tensor, patch: int) -> Tensor:
    """Return (B, P, patch * patch * 3) patches of (B, 3, H, W) frames, row by row, channels last."""
    B, C, H, W = frames.shape
    x = frames.view(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(B, -1, patch * patch * C)


def places_of(rows: int, columns: int) -> Tensor:
    """Return (1, rows * columns, 2) places of patches as (x, y), row by row."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(1, -1, 2)
