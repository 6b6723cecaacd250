"""Makes the torch module of an action head from its sizes."""

from __future__ import annotations

from typing import Any

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.heads.flow import Attention, FlowHead
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.heads.sizes import L1, HeadSizes

PART = "action_head"
"""Name of the head in a model, with which the names of its parameters begin."""

type AnyHead = L1Head | FlowHead
"""An action head of any kind."""


def new_head(head: HeadSizes | None, chunk: int, text: Any) -> AnyHead | None:
    """Return the randomly initialised module of a head.

    Args:
        head: its sizes; None gives None.
        chunk: K, actions of an answer.
        text: transformers' configuration of the language model.

    Raises:
        CheckpointError: a flow head cannot attend to this language model.
    """
    if head is None:
        return None
    if head.kind == L1:
        return L1Head(text.hidden_size, head.dimension, chunk)
    if head.prefix >= chunk:
        raise CheckpointError(f"the flow head's prefix is {head.prefix}; it must be less than chunk, which is {chunk}.")
    return FlowHead(attention_of(text), head.width, head.ff_dim, chunk, head.dimension, head.prefix)


def attention_of(text: Any) -> Attention:
    """Return what an expert's attention has in common with a language model's.

    Raises:
        CheckpointError: its layers differ in their keys, or its positions are not plain rotary ones.
    """
    rope = text.rope_parameters
    if "rope_theta" not in rope or rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"a flow head attends to keys of one shape and one kind of rotary positions, and {text.model_type} has "
            'several or scaled ones. Take the head "l1" or a [codec], or another family.'
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return Attention(text.num_hidden_layers, heads, kv_heads, head_dim, float(rope["rope_theta"]))
