"""A tiny random Llama of transformers, whose vocabulary ends with actions."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

FIRST_ACTION, END_OF_ACTIONS = 100, 356


def tiny_llama(kv_heads: int = 4, seed: int = 0, sharpness: float = 1.0) -> Any:
    """A model of width 64 with 64 positions.

    Args:
        kv_heads: 1, 2 or 4.
        seed: of the weights.
        sharpness: factor on the output rows of actions; with 30, the order of their logits is no accident of a sum.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight[FIRST_ACTION:END_OF_ACTIONS] *= sharpness
    return model
