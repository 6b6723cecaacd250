"""The arm's state as one token of the sequence."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class ProprioProjector(nn.Module):
    """Maps the normalised state to one token.

    Source: moojink/openvla-oft @213c5ff8, prismatic/models/projectors.py (ProprioProjector).
    """

    def __init__(self, proprio_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, state: Tensor) -> Tensor:
        """Map (B, proprio_dim) in [-1, 1] to (B, 1, llm_dim)."""
        return self.fc2(gelu(self.fc1(state))).unsqueeze(1)
