"""OpenVLA as one torch module, for training and for acting.

Submodule names are those of the published files; `weights.py` only has to rename LayerScale.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_robot.policy.openvla.network.align import Projector
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.perceive import Tower, VisionBackbone
from vla_robot.policy.openvla.network.reason import Decoder, build_text
from vla_robot.policy.vla.heads.build import new_head
from vla_robot.policy.vla.heads.prompted import KeysValues
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.policy.vla.reason.text_reasoner import TextReasoner
from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.ragged import RaggedSequence


class OpenVLA(VLAModel[OpenVLAConfig]):
    """The model: maps pixels and a prompt to logits. The sequence is BOS, patches, state and the rest of the text."""

    PARTS: ClassVar = {
        "vision": ("vision_backbone.",),
        "projector": ("projector.", "proprio_projector."),
        "decoder": ("language_model.",),
    }
    HEAD = "language_model.lm_head"
    prompt_sees_answer = True  # as in OpenVLA-OFT

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.language_model = build_text(config)
        llm_dim = self.language_model.config.hidden_size
        self.projector = Projector(self.vision_backbone.dim, llm_dim, fused=len(config.timm_model_ids) == 2)
        self.proprio_projector = ProprioProjector(config.proprio_dim, llm_dim) if config.proprio_dim else None
        self.action_head = new_head(config.head, config.chunk, self.language_model.config)

    @property
    def weight(self) -> Tensor:
        return self.projector.fc1.weight

    def pixel_shape(self) -> tuple[int, ...]:
        c = self.config
        return c.num_images, 3 * len(c.timm_model_ids), c.image_size, c.image_size

    @property
    def image_tokens(self) -> int:
        return self.config.num_images * self.vision_backbone.featurizer.patch_embed.num_patches

    def perceive(self, pixels: Tensor) -> Tensor:
        return self.vision_backbone(pixels)

    def align(self, features: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        text = self.look_up(input_ids)
        seen = [self.projector(features)]
        if self.proprio_projector is not None:
            assert state is not None
            seen.append(self.proprio_projector(state))
        return torch.cat([text[:, :1], *seen, text[:, 1:]], dim=1)

    def hidden(self, rows: RaggedSequence) -> Tensor:
        if rows.blocks is not None:
            return TextReasoner(self.language_model.model, MaskRule()).whole(rows)
        return self.language_model.model(inputs_embeds=rows.embeds, use_cache=False).last_hidden_state

    def memory(self, rows: RaggedSequence) -> KeysValues:
        return TextReasoner(self.language_model.model, MaskRule()).keys_values(rows)

    def reasoner(self) -> Decoder | TextReasoner:
        """See `VLAModel`. A Llama is read by our own decoder."""
        if self.config.text_type == "llama":
            return Decoder(self.language_model)
        return TextReasoner(self.language_model.model, MaskRule())

    def fuse(self, on: bool = True) -> None:
        """Compile the work between the towers' matrix products; `Decoder.fuse` does the decoder's."""
        for tower in (self.vision_backbone.featurizer, self.vision_backbone.fused_featurizer):
            if tower is not None:
                tower.fuse(on)

    def look_up(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    @property
    def head(self) -> Tensor:
        return self.language_model.lm_head.weight.detach()

    def layers(self) -> list[nn.Module]:
        towers = [module for module in self.vision_backbone.children() if isinstance(module, Tower)]
        return [block for tower in towers for block in tower.blocks] + list(self.language_model.model.layers)
