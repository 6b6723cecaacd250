"""Restricts the decoder's last layer to the positions that the loss reads.

    sequence       [BOS][patches][state][instruction      ] | a0 a1 ... a6 [EOS]   padding
    keys, values     *    *  *  *   *      *   *   *   *      *  *  ...  *   *        *
    the rest         -    -  -  -   -      -   -   -   *      *  *  ...  *   -        -

The loss reads eight of a row's hundred tokens; the last layer's output at the others is unused. Positions
from the first one read to the last, over all rows of a batch, are computed; the others are zeros.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half

from vla_robot.policy.vla.inputs.upload import numbers
from vla_robot.policy.vla.model import IGNORE, AnyVLAModel


def only_what_is_read(model: AnyVLAModel) -> None:
    """Restrict a model's last layer whenever it gets labels; loss and gradients stay the same up to rounding.

    Only a causal layer of Llama is restricted; other models, and those with an action head, stay as they are.
    """
    layer: Any = model.layers()[-1]
    if not _is_llama(layer) or model.action_head is not None:
        return
    plain = layer.forward
    read = _Read()
    model.register_forward_pre_hook(read.enter)
    model.register_forward_hook(read.leave, always_call=True)
    layer.forward = partial(_forward, layer, plain, read)


def _is_llama(layer: object) -> bool:
    return type(layer) is LlamaDecoderLayer


class _Read:
    """Positions of the text that the current batch's loss reads: the first, counted from the end, and their number.

    Attributes:
        before_end: tokens from the first one to the end of the sequence; None without labels.
        count: tokens from the first to the last.
    """

    def __init__(self) -> None:
        self.before_end: int | None = None
        self.count = 0

    def enter(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        labels: Tensor = args[2]  # (B, L), in main memory
        columns = np.flatnonzero((numbers(labels)[:, 1:] != IGNORE).any(axis=0))  # a label is read one position earlier
        if len(columns):
            first, last = int(columns[0]), int(columns[-1])
            self.before_end, self.count = labels.shape[1] - first, last - first + 1

    def leave(self, *_: Any) -> None:
        self.before_end = None


def _forward(layer: Any, plain: Any, read: _Read, hidden: Tensor, **others: Any) -> Tensor:
    """Run transformers' layer for some positions: (B, S, D) -> (B, S, D), zeros at the others."""
    if read.before_end is None:
        return plain(hidden, **others)
    S = hidden.shape[1]
    start = S - read.before_end
    stop = start + read.count
    x = hidden[:, start:stop]
    x = x + _attend(layer.self_attn, layer.input_layernorm(hidden), start, stop, *others["position_embeddings"])
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return pad(x, (0, 0, start, S - stop))


def _attend(attention: Any, normed: Tensor, start: int, stop: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Attend from positions start to stop to themselves and all before them: (B, S, D) -> (B, stop - start, D)."""
    B = len(normed)
    q = _heads(attention.q_proj(normed[:, start:stop]), attention.head_dim)
    k, v = (_heads(project(normed[:, :stop]), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
    q, k = _rotated(q, cos[:, start:stop], sin[:, start:stop]), _rotated(k, cos[:, :stop], sin[:, :stop])
    positions = torch.arange(stop, device=normed.device)
    visible = positions <= positions[start:, None]  # (K, stop)
    dropout = attention.attention_dropout if attention.training else 0.0
    is_grouped = attention.num_key_value_groups > 1
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=visible, dropout_p=dropout, scale=attention.scaling, enable_gqa=is_grouped
    )
    return attention.o_proj(out.transpose(1, 2).reshape(B, stop - start, -1))


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """Split heads: (B, S, H * hd) -> (B, H, S, hd)."""
    return x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding (1, S, hd) to (B, H, S, hd)."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]
