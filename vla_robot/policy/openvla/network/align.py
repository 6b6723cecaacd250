"""Align: maps patch features to the language model's space."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class Projector(nn.Module):
    """Maps fused features to the language model's space: three layers with exact GELU, or two for a single tower.

    Source: openvla/openvla @c8f03f48, prismatic/extern/hf/modeling_prismatic.py (PrismaticProjector).
    """

    def __init__(self, vision_dim: int, llm_dim: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_dim if fused else llm_dim
        self.fc1 = nn.Linear(vision_dim, hidden)
        self.fc2 = nn.Linear(hidden, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, P, vision_dim) to (B, P, llm_dim)."""
        x = self.fc2(gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(gelu(x))
