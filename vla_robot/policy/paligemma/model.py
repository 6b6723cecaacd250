"""PaliGemma's perceive and align, its mask and its positions.

Source: transformers 5.23, models/paligemma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vlm.model import TransformersModel


class PaliGemma(TransformersModel):
    """One model: images, state and prompt attend to each other; the answer is causal."""

    PARTS: ClassVar = {
        "vision": ("vlm.model.vision_tower.",),
        "projector": ("vlm.model.multi_modal_projector.", "proprio_projector."),
        "decoder": ("vlm.model.language_model.", "vlm.lm_head."),
    }
    first_position = 1

    def perceive(self, pixels: Tensor) -> Tensor:
        B, N = pixels.shape[:2]
        features = self.vlm.model.vision_tower(pixels.flatten(0, 1)).last_hidden_state  # (B * N, P, Dv)
        return features.reshape(B, N * features.shape[1], -1)

    def connect(self, features: Tensor) -> list[Tensor]:
        return list(self.vlm.model.multi_modal_projector(features).chunk(self.config.num_images, dim=1))

    def arrange(self, pixels: Tensor, embeds: Tensor, prompts: Tensor) -> RaggedSequence:
        columns = torch.arange(embeds.shape[1], device=embeds.device)
        return RaggedSequence(embeds, prompts, (columns < prompts.to(embeds.device)[:, None]).long())

    def mask_rule(self) -> MaskRule:
        return MaskRule(window=getattr(self._text.config, "sliding_window", None))

    def tower_layers(self) -> Sequence[nn.Module]:
        return list(self.vlm.model.vision_tower.encoder.layers)

    def tokens_of(self, height: int, width: int) -> int:
        patch = self.vlm.config.vision_config.patch_size
        return (height // patch) * (width // patch)
