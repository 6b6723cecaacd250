"""What of a model decides how long it takes and what memory it needs, counted on torch's meta device, without weights.

An operation is a multiplication or an addition, so a matrix product (m, k) x (k, n) counts 2 m k n. Norms, activations
and softmax are left out, since they are below one per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vlm.model import TransformersModel


@dataclass(frozen=True)
class SeenBy:
    """One vision tower.

    Attributes:
        weights: weights of its matrices.
        tokens: tokens of a frame that it reads.
        attention: its width, times its depth.
        embedding: those of the weights with which patches are multiplied once, to become tokens.
        patches: patches of a frame; the other tokens are the tower's own.
    """

    weights: int
    tokens: int
    attention: int
    embedding: int = 0
    patches: int = 0

    def flops(self) -> float:
        """Return the operations of one frame."""
        by_token = 2.0 * (self.weights - self.embedding) * self.tokens
        return by_token + 2.0 * self.embedding * self.patches + 4.0 * self.attention * self.tokens**2


@dataclass(frozen=True)
class Outline:
    """Numbers of weights count those of matrices that tokens are multiplied with.

    Attributes:
        towers: the vision towers.
        projector: weights between towers and language model.
        layers: weights of the language model's layers.
        attention: numbers of the queries of one token, over all layers.
        cached: numbers that one token leaves in the cache of keys and values.
        head: weights of the rows of the action tokens.
        frames: frames of an observation.
        image_tokens: their tokens in the sequence, with the state's.
        other: weights that no stage reads whole: embeddings, norms, biases, the other rows of the vocabulary, a head.
        state: weights of the projector of the arm's state, which is one token.
    """

    towers: tuple[SeenBy, ...]
    projector: int
    layers: int
    attention: int
    cached: int
    head: int
    frames: int
    image_tokens: int
    other: int
    state: int = 0

    @property
    def matrices(self) -> int:
        """Weights that a quantisation stores in fewer bits."""
        return sum(tower.weights for tower in self.towers) + self.projector + self.state + self.layers


def outline_of(model: AnyVLAModel) -> Outline:
    """Return the outline of a model of any family, which may be on the meta device."""
    towers, blocks = _towers(model)
    decoder = model.layers()[blocks:]
    in_towers, in_layers = sum(tower.weights for tower in towers), _weights(decoder)
    config, inputs = _text_config(model), model.config.inputs
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    apart = [model.get_submodule(model.HEAD), *([] if model.action_head is None else [model.action_head])]
    matrices = _weights([model]) - _weights(apart)
    state = _weights(part for name, part in model.named_children() if name == "proprio_projector")
    return Outline(
        towers,
        projector=matrices - in_towers - in_layers - state,
        layers=in_layers,
        attention=len(decoder) * config.num_attention_heads * head_dim,
        cached=2 * len(decoder) * config.num_key_value_heads * head_dim,
        head=len(model.config.codec.ids) * config.hidden_size,
        frames=inputs.num_images,
        image_tokens=model.image_tokens + (inputs.proprio_dim is not None),
        other=sum(p.numel() for p in model.parameters()) - matrices,
        state=state,
    )


def oft_outline(folder: Path, cameras: int, proprio_dim: int | None) -> Outline:
    """Return the outline of an OpenVLA-OFT folder, which does not say its cameras and state."""
    config = replace(OpenVLAConfig.read(folder), num_images=cameras, proprio_dim=proprio_dim)
    with torch.device("meta"):
        return outline_of(OpenVLA(config))


def _text_config(model: AnyVLAModel) -> Any:
    if isinstance(model, OpenVLA):
        return model.language_model.config
    assert isinstance(model, TransformersModel)
    return model.vlm.config.get_text_config()


def _towers(model: AnyVLAModel) -> tuple[tuple[SeenBy, ...], int]:
    """Return a model's towers, and how many blocks they have."""
    if isinstance(model, OpenVLA):
        backbone = model.vision_backbone
        found = [tower for tower in (backbone.featurizer, backbone.fused_featurizer) if tower is not None]
        return tuple(map(_tower, found)), sum(len(tower.blocks) for tower in found)
    assert isinstance(model, TransformersModel)
    blocks, vision = list(model.tower_layers()), model.vlm.config.vision_config
    if not blocks:  # a family without a tower projects its patches
        return (), 0
    tokens = math.prod(side // vision.patch_size for side in model.config.frame)
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    return (SeenBy(_weights(blocks), tokens, width * len(blocks)),), len(blocks)


def _tower(tower: Tower) -> SeenBy:
    patches = tower.patch_embed.num_patches
    tokens = patches + sum(t.shape[1] for t in (tower.cls_token, tower.reg_token) if t is not None)
    embedding = _weights([tower.patch_embed])
    return SeenBy(_weights([tower]), tokens, tower.dim * len(tower.blocks), embedding, patches)


def _weights(parts: Iterable[nn.Module]) -> int:
    """Return how many weights the linear layers and convolutions of some modules have; shared ones count once."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = {id(m.weight): m.weight.numel() for part in parts for m in part.modules() if isinstance(m, kinds)}
    return sum(found.values())
