"""SmolVLM's perceive and align; everything is causal.

Source: transformers 5.23, models/smolvlm and models/idefics3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vlm.layout import Place
from vla_robot.policy.vlm.model import TransformersModel


class SmolVLM(TransformersModel):
    """One model. A frame is one image or several: its parts, then the whole."""

    perceives_by_shape = False  # the library makes the positions of patches in main memory

    PARTS: ClassVar = {
        "vision": ("vlm.model.vision_model.",),
        "projector": ("vlm.model.connector.", "proprio_projector."),
        "decoder": ("vlm.model.text_model.", "vlm.lm_head."),
    }

    def perceive(self, pixels: Tensor) -> Tensor:
        images = pixels.unflatten(2, (-1, 3)).flatten(0, 2)  # (B * images, 3, edge, edge)
        features = self.vlm.model.vision_model(images).last_hidden_state  # (B * images, P, Dv)
        return features.reshape(len(pixels), -1, features.shape[-1])

    def connect(self, features: Tensor) -> list[Tensor]:
        by_image = features.unflatten(1, (self._images, -1))  # (B, images, P, Dv)
        tokens = self.vlm.model.connector(by_image.flatten(0, 1)).unflatten(0, by_image.shape[:2])
        return list(tokens.unbind(1))

    def mask_rule(self) -> MaskRule:
        return MaskRule()

    def tower_layers(self) -> Sequence[nn.Module]:
        return list(self.vlm.model.vision_model.encoder.layers)

    def pixel_shape(self) -> tuple[int, ...]:
        cameras, edge = self.config.num_images, self.vlm.config.vision_config.image_size
        return cameras, 3 * self._images // cameras, edge, edge

    def tokens_of(self, height: int, width: int) -> int:
        """See `TransformersModel`. A part or a whole has one size, whatever the frame's is."""
        vision = self.vlm.config.vision_config
        return (vision.image_size // vision.patch_size // self.vlm.config.scale_factor) ** 2

    @property
    def _images(self) -> int:
        """Images of all cameras."""
        return self.layout.parts.count(Place.IMAGE)

    @property
    def _text(self) -> Any:
        return self.vlm.model.text_model
