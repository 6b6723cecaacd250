"""Losses of B pictures and B captions, of which the k-th belong together.

    logits[i, j] = scale * caption_i . picture_j + bias          scale > 0; both vectors have length 1
    sigmoid      - sum over all i, j of log sigmoid(z logits[i, j]), z = 1 if i = j else -1, divided by B
    softmax      mean cross-entropy of the right picture of each caption, and of the right caption of each picture

A term of the sigmoid loss depends on its own pair alone; a row of the softmax depends on all pairs of its batch. SigLIP
begins with a scale of 10 and a bias of -10, so that the many pairs that do not belong together cost little at first.

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; Radford et al. 2021 (CLIP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

FIRST_SCALE, FIRST_BIAS = 10.0, -10.0


def pair_terms(logits: Tensor) -> Tensor:
    """Return the (B, B) terms of the sigmoid loss of (B, B) logits, before they are added."""
    z = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -logsigmoid(z * logits)


def sigmoid_loss(logits: Tensor) -> Tensor:
    """Return SigLIP's () loss of (B, B) logits."""
    return pair_terms(logits).sum() / len(logits)


def softmax_loss(logits: Tensor) -> Tensor:
    """Return CLIP's () loss of (B, B) logits."""
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


LOSSES: Mapping[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
"""Value of a recipe's `loss` -> function."""
