"""Activation checkpointing: a block keeps only its input and recomputes the rest in the backward pass.

Activations then take the memory of one block plus the input of each other block; a step takes about a third longer.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower


def blocks(model: OpenVLA) -> list[nn.Module]:
    """Return the blocks of the towers, then the layers of the decoder, in the order of the forward pass."""
    towers = [module for module in model.vision_backbone.children() if isinstance(module, Tower)]
    return [block for tower in towers for block in tower.blocks] + list(model.language_model.model.layers)


def checkpointed(model: OpenVLA) -> list[nn.Module]:
    """Return the blocks to checkpoint: all but the decoder's last layer, which computes few positions.

    See sparse_last_layer.py.
    """
    return blocks(model)[:-1]


def checkpoint_activations(model: OpenVLA) -> None:
    """Checkpoint the blocks of a model. Parameter names stay, and results are the same bit for bit."""
    for block in checkpointed(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
