"""Activation checkpointing: a block keeps its input alone, and computes the rest again when its gradient is due.

Memory of activations falls to one block's and an input for each of the others; a step takes about a third longer.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower


def blocks(model: OpenVLA) -> list[nn.Module]:
    """Blocks of the towers and layers of the decoder, in the order in which data go through them."""
    towers = [module for module in model.vision_backbone.children() if isinstance(module, Tower)]
    return [block for tower in towers for block in tower.blocks] + list(model.language_model.model.layers)


def checkpointed(model: OpenVLA) -> list[nn.Module]:
    """Blocks for which that pays: all but the decoder's last layer, which computes few positions (see
    sparse_last_layer.py).
    """
    return blocks(model)[:-1]


def checkpoint_activations(model: OpenVLA) -> None:
    """Have the blocks of a model do so. Names of parameters stay; the results are the same, bit for bit."""
    for block in checkpointed(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
