"""The library's root mean square norms as one call each, for a model that acts in fp32 on a CPU.

transformers writes such a norm as up to eight operations, each a call from Python; a layer of Gemma 4 has seven norms.
torch's own function computes the same. Weights and their names stay.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import rms_norm

FROM_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm")
"""Classes of transformers whose weight is counted from 1."""
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


class _Plain(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, hidden_states.shape[-1:], getattr(self, "weight", None), _eps(self))


class _FromOne(nn.Module):
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, hidden_states.shape[-1:], 1.0 + self.weight, _eps(self))


def _eps(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
