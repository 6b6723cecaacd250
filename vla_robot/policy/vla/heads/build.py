"""Makes the torch module of an action head from its sizes."""

from __future__ import annotations

from typing import Any

from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.heads.sizes import HeadSizes

PART = "action_head"
"""Name of the head in a model, with which the names of its parameters begin."""

type AnyHead = L1Head
"""An action head of any kind."""


def new_head(head: HeadSizes | None, chunk: int, text: Any) -> AnyHead | None:
    """Return the randomly initialised module of a head.

    Args:
        head: its sizes; None gives None.
        chunk: K, actions of an answer.
        text: transformers' configuration of the language model.
    """
    return None if head is None else L1Head(text.hidden_size, head.dimension, chunk)
