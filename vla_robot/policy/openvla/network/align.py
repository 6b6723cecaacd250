"""Align: patch features and the arm's state -> the language model's space."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class Projector(nn.Module):
    """Fused features to language space: three layers with exact GELU between them; two for a single tower.

    Source: openvla/openvla @c8f03f48, prismatic/extern/hf/modeling_prismatic.py (PrismaticProjector).
    """

    def __init__(self, vision_dim: int, llm_dim: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_dim if fused else llm_dim
        self.fc1 = nn.Linear(vision_dim, hidden)
        self.fc2 = nn.Linear(hidden, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, vision_dim) -> (B, P, llm_dim)."""
        x = self.fc2(gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(gelu(x))


class ProprioProjector(nn.Module):
    """The normalised state as one token.

    Source: moojink/openvla-oft @213c5ff8, prismatic/models/projectors.py (ProprioProjector).
    """

    def __init__(self, proprio_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, state: Tensor) -> Tensor:
        """(B, proprio_dim) in [-1, 1] -> (B, 1, llm_dim)."""
        return self.fc2(gelu(self.fc1(state))).unsqueeze(1)
