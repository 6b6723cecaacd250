"""Activation checkpointing: a block keeps only its input and recomputes the rest in the backward pass.

Activations then take the memory of one block plus the input of each other block; a step takes about a third longer.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from vla_robot.policy.vla.model import AnyVLAModel


def checkpointed(model: AnyVLAModel) -> list[nn.Module]:
    """Return the blocks to checkpoint: all but the decoder's last layer, which computes few positions.

    See sparse_last_layer.py.
    """
    return model.layers()[:-1]


def checkpoint_activations(model: AnyVLAModel) -> None:
    """Checkpoint the blocks of a model. Parameter names stay, and results are the same bit for bit."""
    for block in checkpointed(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
