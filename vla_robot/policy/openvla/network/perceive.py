"""Perceive: maps frames to patch features.

    pixels (B, 3 per tower, S, S) --DINOv2--> (B, P, 1024) --+
                                  --SigLIP--> (B, P, 1152) --+--concat--> (B, P, 2176)

Features are the output of the second-to-last block, without the final norm and without class and register tokens. The
last block, the final norm and SigLIP's pooling head are unused, so they are neither built nor held in memory.

Source: openvla/openvla @c8f03f48, prismatic/extern/hf/modeling_prismatic.py (PrismaticVisionBackbone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.pointwise import scaled_add_norm
from vla_robot.policy.vla.engine.compiler import fused


class Tower(nn.Module):
    """One vision transformer, cut after its second-to-last block.

    Parameter names are timm's own, so that they match the published files.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.pos_embed = vit.pos_embed
        self.patch_embed = vit.patch_embed
        self.blocks = vit.blocks[:-1]
        self.dim: int = vit.embed_dim
        self._no_embed_class: bool = vit.no_embed_class
        self._add_norm: Callable[..., tuple[Tensor, Tensor]] | None = None

    def fuse(self, on: bool = True) -> None:
        """Compile the work between matrix products: the addition of each half of a block, and the norm after it."""
        self._add_norm = fused(scaled_add_norm) if on else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, P, dim)."""
        x = self._embed_patches(pixels)
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self._no_embed_class:  # DINOv2 with registers, SigLIP: only patches have a position
            x = torch.cat([*prefix, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + self.pos_embed
        x = self.blocks(x) if self._add_norm is None else self._fused_blocks(x, self._add_norm)
        return x[:, sum(t.shape[1] for t in prefix) :]

    def _fused_blocks(self, x: Tensor, add_norm: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        """Run the blocks, timm's pre-norm transformer layers, as one chain of halves."""
        blocks: list[Any] = list(self.blocks)
        normed = blocks[0].norm1(x)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            x, normed = add_norm(x, block.attn(normed), *_scale_and_norm(block.ls1, block.norm2))
            more = block.mlp(normed)
            if following is None:  # the features are not normed
                x = x + block.ls2(more)
            else:
                x, normed = add_norm(x, more, *_scale_and_norm(block.ls2, following.norm1))
        return x

    def _embed_patches(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, P, dim) as a matrix product, faster than a convolution whose stride is its kernel."""
        weight, bias = self.patch_embed.proj.weight, self.patch_embed.proj.bias  # (dim, 3, p, p), (dim,)
        B, _, S, _ = pixels.shape
        p = weight.shape[-1]
        patches = pixels.reshape(B, 3, S // p, p, S // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B, (S // p) ** 2, -1)
        return linear(patches, weight.flatten(1), bias)


def _scale_and_norm(scale: Any, norm: Any) -> tuple[Tensor | None, Tensor, Tensor, float]:
    """Return what `scaled_add_norm` needs of a LayerScale, or an identity, and of a layer norm."""
    return getattr(scale, "gamma", None), norm.weight, norm.bias, norm.eps


class VisionBackbone(nn.Module):
    """One tower, or two fused by channel. Submodule names are those of the published files."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        towers = [Tower(build_vit(config, i)) for i in range(len(config.timm_model_ids))]
        self.featurizer = towers[0]
        self.fused_featurizer = towers[1] if len(towers) == 2 else None
        self.dim = sum(t.dim for t in towers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map frames to fused patch features.

        Args:
            pixels: (B, N, 3 * towers, S, S): N cameras, channels stacked by tower.

        Returns:
            (B, N * P, dim): the patches of camera 0, then of camera 1, ...
        """
        B, N = pixels.shape[:2]
        frames = pixels.flatten(0, 1)  # (B*N, 3 * towers, S, S)
        if self.fused_featurizer is None:
            features = self.featurizer(frames)
        else:
            features = torch.cat([self.featurizer(frames[:, :3]), self.fused_featurizer(frames[:, 3:])], dim=2)
        return features.reshape(B, N * features.shape[1], self.dim)


def build_vit(config: OpenVLAConfig, index: int) -> Any:
    """Build timm's VisionTransformer of one tower, randomly initialised; untyped, since timm's attributes are unions.

    On the meta device there is nothing to initialise, and timm would take longer for that than for all the rest.

    Raises:
        CheckpointError: timm does not know the name or the overrides.
    """
    overrides: Mapping[str, Any] = config.tower_overrides[index] if config.tower_overrides else {}  # only sizes
    act_layer = config.timm_override_act_layers[index]
    extra = {"act_layer": act_layer} if act_layer else {}
    if torch.get_default_device().type == "meta":
        extra["weight_init"] = "skip"
    name = config.timm_model_ids[index]
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=config.image_size, **extra, **overrides)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm cannot build the tower '{name}' with {dict(overrides)}: {error}.") from error
    if not isinstance(vit, VisionTransformer):
        raise CheckpointError(f"the tower '{name}' is a {type(vit).__name__}, expected a vision transformer.")
    return vit
