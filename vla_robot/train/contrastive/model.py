"""A family's vision tower beside a small text tower, as the trainer trains them.

    pixels (B, N, 3, S, S) --perceive--> (B, N * P, Dv) --attention pooling, linear--> (B, E), length 1
    caption ids (B, L) ----------------- transformers' SigLIP text tower ------------> (B, E), length 1

Pooling and text tower are transformers' own, of SigLIP. Only the part "vision" of the family's model learns; features
of families whose `perceive` also connects pass through a connector that stays random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from vla_robot.core.errors import RecipeError
from vla_robot.policy.vla.model import AnyVLAModel, TrainingOutput
from vla_robot.recipe.trainings.pretrain import TextTower
from vla_robot.train.contrastive.loss import FIRST_BIAS, FIRST_SCALE, LOSSES

MOST_HEADS = 4
"""Attention heads of the pooling, fewer where the features' width is no multiple."""


class ContrastiveModel(nn.Module):
    """Maps pictures and captions to logits of all pairs.

    Attributes:
        policy: the family's model, of which the part "vision" has `requires_grad`.
        log_scale: () logarithm of the scale.
        bias: () bias, which the softmax does not see.
        action_head: none, as a policy of tokens has none.
    """

    action_head = None

    def __init__(self, policy: AnyVLAModel, text: TextTower, vocabulary: int, length: int, loss: str) -> None:
        """
        Args:
            policy: a family's model.
            text: size of the text tower.
            vocabulary: ids of captions are smaller.
            length: L, ids of each caption, padding included.
            loss: "sigmoid" or "softmax".

        Raises:
            RecipeError: the model has no vision tower.
        """
        super().__init__()
        self.policy = policy.requires_grad_(False)
        for parameter in vision_parameters(policy).values():
            parameter.requires_grad_(True)
        with torch.no_grad():
            width = policy.perceive(torch.zeros(1, *policy.pixel_shape())).shape[-1]
        pooling = SiglipVisionConfig(
            hidden_size=width, intermediate_size=2 * width, num_attention_heads=math.gcd(MOST_HEADS, width)
        )
        self.pool = SiglipMultiheadAttentionPoolingHead(pooling)
        self.project = nn.Linear(width, text.dim)
        self.text = SiglipTextModel(
            SiglipTextConfig(
                vocab_size=vocabulary, hidden_size=text.dim, intermediate_size=2 * text.dim, projection_size=text.dim,
                num_hidden_layers=text.layers, num_attention_heads=text.heads, max_position_embeddings=length,
                bos_token_id=None, eos_token_id=None, pad_token_id=None,
            )
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS), requires_grad=loss == "sigmoid")
        self._loss = LOSSES[loss]

    def logits(self, pixels: Tensor, caption_ids: Tensor) -> Tensor:
        """Return (B, B) logits of (B, N, C, S, S) pixels and (B, L) int64 ids; a row is a caption."""
        pictures = normalize(self.project(self.pool(self.policy.perceive(pixels))), dim=-1)
        captions = normalize(self.text(caption_ids).pooler_output, dim=-1)
        return captions @ pictures.T * self.log_scale.exp() + self.bias

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        state: Tensor | None,
        smoothing: float = 0.0,
        actions: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> TrainingOutput:
        """Return the loss, and in the place of the token accuracy the share of captions that find their picture.

        Args:
            pixels: (B, N, C, S, S).
            input_ids: (B, L) int64 ids of captions.
            labels: not used; so that the trainer calls every model alike.
            state: not used.
            smoothing: not used.
            actions: not used.
            seeds: not used.
        """
        logits = self.logits(pixels, input_ids)
        own = torch.arange(len(logits), device=logits.device)
        return TrainingOutput(self._loss(logits), (logits.argmax(dim=1) == own).float().mean(), None)


def vision_parameters(model: AnyVLAModel) -> dict[str, nn.Parameter]:
    """Return the parameters of a model's vision tower by name. Raises RecipeError if it has none."""
    prefixes = model.PARTS["vision"]
    found = {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
    if not found:
        raise RecipeError(f"{type(model).__name__} has no vision tower that could be trained.")
    return found
