"""The library's root mean square norms and gates as one call or one kernel each, for a model that acts.

transformers writes such a norm as up to eight operations, each a call from Python and a kernel of a GPU; a layer of
Gemma 4 has seven norms. In fp32 on a CPU torch's own function computes the same. On a GPU torch.compile joins what the
library wrote, in any precision. Weights and their names stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import rms_norm

from vla_robot.policy.vla.engine.compiler import fused

FROM_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm")
"""Norms of transformers whose weight is counted from 1."""
PLAIN = (
    "Gemma4RMSNorm", "Gemma4UnifiedRMSNorm", "LlamaRMSNorm", "Qwen2RMSNorm", "Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm",
    "Qwen3VLTextRMSNorm",
)  # fmt: skip


def join_norms(model: nn.Module) -> None:
    """Make the norms of a model one call each, in place; classes that are not known stay."""
    for module in model.modules():
        name = type(module).__name__
        if name in FROM_ONE:
            module.__class__ = _FromOne
        elif name in PLAIN:
            module.__class__ = _Plain


GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Attributes of every gated MLP of transformers."""


def fuse_pointwise(model: nn.Module) -> None:
    """Make the norms and gates of a model one kernel each, in place; what is not known stays."""
    gate, norms = fused(_gate), dict[type[nn.Module], type[nn.Module]]()

    def gated(mlp: Any, x: Tensor) -> Tensor:
        return mlp.down_proj(gate(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x)))

    for module in list(model.modules()):
        kind = type(module)
        if kind.__name__ in (*FROM_ONE, *PLAIN):
            norms[kind] = norms.get(kind) or _with_forward(kind, fused(kind.forward))
            module.__class__ = norms[kind]
        elif all(hasattr(module, name) for name in GATED):
            module.__class__ = _with_forward(kind, gated)


def _gate(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


def _with_forward(kind: type[nn.Module], forward: Callable[..., Tensor]) -> type[nn.Module]:
    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward})


class _Plain(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, hidden_states.shape[-1:], getattr(self, "weight", None), _eps(self))


class _FromOne(nn.Module):
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, hidden_states.shape[-1:], 1.0 + self.weight, _eps(self))


def _eps(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
