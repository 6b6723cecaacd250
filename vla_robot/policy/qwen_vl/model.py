"""Qwen-VL's perceive and align, and its positions.

Sources: transformers 5.23, models/qwen2_vl, qwen2_5_vl and qwen3_vl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from vla_robot.policy.qwen_vl.tower import read_still_frames, still_arguments
from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.positions import ImageSpan, mrope
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vlm.config import VLMConfig
from vla_robot.policy.vlm.layout import Layout
from vla_robot.policy.vlm.model import TransformersModel


class QwenVL(TransformersModel):
    """Qwen2-VL or Qwen2.5-VL: everything is causal."""

    perceives_by_shape = False  # the library reads the frames' sizes from tensors, or makes positions in main memory

    PARTS: ClassVar = {
        "vision": ("vlm.model.visual.patch_embed.", "vlm.model.visual.pos_embed.", "vlm.model.visual.blocks."),
        "projector": ("vlm.model.visual.merger.", "vlm.model.visual.deepstack_merger_list.", "proprio_projector."),
        "decoder": ("vlm.model.language_model.", "vlm.lm_head."),
    }

    def __init__(self, vlm: PreTrainedModel, config: VLMConfig, layout: Layout) -> None:
        super().__init__(vlm, config, layout)
        read_still_frames(self.vlm.model.visual)

    def perceive(self, pixels: Tensor) -> Tensor:
        return self._see(pixels).pooler_output.unflatten(0, (len(pixels), -1))

    def connect(self, features: Tensor) -> list[Tensor]:
        return list(features.chunk(self.config.num_images, dim=1))  # the ViT's last step is the connector

    def arrange(self, pixels: Tensor, embeds: Tensor, prompts: Tensor) -> RaggedSequence:
        rows, columns = self._grid(pixels)
        begins = self.layout.image_columns(rows * columns)
        positions = mrope(embeds.shape[1], [ImageSpan(begin, rows, columns) for begin in begins], embeds.device)
        return RaggedSequence(embeds, prompts, None, positions.expand(len(embeds), -1, -1), self.constant)

    def mask_rule(self) -> MaskRule:
        return MaskRule()

    def tower_layers(self) -> Sequence[nn.Module]:
        return list(self.vlm.model.visual.blocks)

    def tokens_of(self, height: int, width: int) -> int:
        return (height // self._cell) * (width // self._cell)

    @property
    def _cell(self) -> int:
        vision = self.vlm.config.vision_config
        return vision.patch_size * vision.spatial_merge_size

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of an image's tokens."""
        return pixels.shape[-2] // self._cell, pixels.shape[-1] // self._cell

    def _see(self, pixels: Tensor) -> Any:
        """Return the tower's output of (B, N, 3, H, W) frames; rows of all frames lie behind one another."""
        vision = self.vlm.config.vision_config
        frames = pixels.flatten(0, 1)
        rows, columns = (side // vision.patch_size for side in frames.shape[-2:])
        patches = patches_of(frames, vision.patch_size, vision.spatial_merge_size, 1)
        sizes = still_arguments(len(frames), rows, columns, vision.spatial_merge_size, pixels.device)
        return self.vlm.model.visual(patches, **sizes)


class Qwen3VL(QwenVL):
    """Qwen3-VL: an image token's embedding is followed by what DeepStack adds in the first language layers."""

    reasons_by_shape = False  # the library adds them where a mask is true, whose size it reads

    def perceive(self, pixels: Tensor) -> Tensor:
        seen = self._see(pixels)
        features = torch.cat([seen.pooler_output, *seen.deepstack_features], dim=-1)  # (B * N * P, D + levels * D)
        return features.unflatten(0, (len(pixels), -1))

    def look_up(self, ids: Tensor) -> Tensor:
        words = super().look_up(ids)
        return pad(words, (0, self.width - words.shape[-1]))  # DeepStack adds nothing to words

    @property
    def width(self) -> int:
        return self._text.config.hidden_size * (1 + self._levels)

    def beside(self) -> Callable[[Tensor], Mapping[str, Any]]:
        return self._deepstack

    @property
    def _levels(self) -> int:
        return len(self.vlm.config.vision_config.deepstack_visual_indexes)

    def _deepstack(self, columns: Tensor) -> Mapping[str, Any]:
        """Return the module's arguments of (B, n, levels * D) columns."""
        levels = columns.flatten(0, 1).chunk(self._levels, dim=-1)
        everywhere = torch.ones(columns.shape[:2], dtype=torch.bool, device=columns.device)
        return {"visual_pos_masks": everywhere, "deepstack_visual_embeds": list(levels)}


def patches_of(frames: Tensor, patch: int, merge: int, times: int) -> Tensor:
    """Return (B * P, 3 * times * patch * patch) patches of (B, 3, H, W) frames, in the order in which they are merged.

    A still image is repeated `times` times: the library's patches extend over so many frames of a video.
    """
    B, C, H, W = frames.shape
    cell = patch * merge
    x = frames.view(B, C, H // cell, merge, patch, W // cell, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (B, rows, columns, merge, merge, C, patch, patch)
    x = x.unsqueeze(6).expand(*x.shape[:6], times, patch, patch)
    return x.reshape(-1, C * times * patch * patch)
