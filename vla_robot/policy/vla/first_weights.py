"""First weights of a new model."""

from __future__ import annotations

import torch
from torch import nn

from vla_robot.recipe.finetune import Architecture

MATRICES = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)


def stated_range(architecture: Architecture) -> dict[str, float]:
    """Return what a decoder's configuration says of its first weights: nothing, if they are drawn here."""
    stated = architecture.initializer_range
    return {"initializer_range": stated} if stated else {}


@torch.no_grad()
def draw_first_weights(part: nn.Module, architecture: Architecture) -> None:
    """Draw every matrix of a part with 1 / sqrt(inputs) as standard deviation, unless the architecture states another.

    Outputs then vary as much as inputs (LeCun et al. 1998, "Efficient BackProp"). Libraries draw those of large models,
    with 0.02, in which attention and signal of a small one vanish: it learns nothing in its first hundreds of steps.
    Rows of a table have a length of about 1. Biases, norms and whatever lies in no such layer stay.
    """
    if architecture.initializer_range:
        return
    for layer in part.modules():
        if isinstance(layer, MATRICES):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
