"""Actions as tokens: 256 bins per dimension over the least-used rows of the vocabulary. OpenVLA's arithmetic, exactly.

`linspace(-1, 1, 256)` gives 256 *edges* and therefore 255 bins, each 2/255 wide:

    value     -1.0            ...            0.0            ...            +1.0
    id     vocab_end - 1      ...      vocab_end - 128      ...      vocab_end - 256 (and - 255: they decode alike)

so a value inside [-0.996, 0.996] comes back at most half a bin (0.0039) away, and the two ends come back as +-0.996.

Octo uses `n_bins + 1` edges; its tokens are not interchangeable with these.

Source: openvla/openvla @c8f03f48, prismatic/vla/action_tokenizer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.errors import ContractError

NOT_FINITE = "the policy's logits are not finite: the checkpoint or its input is damaged."


@dataclass(frozen=True)
class ActionTokenizer:
    """Converts between numbers in [-1, 1] and token ids.

    Attributes:
        vocab_end: one past the last action id; 32000 for OpenVLA (the vocabulary without its padding rows).
        bins: number of edges and of ids, 256.
    """

    vocab_end: int
    bins: int = 256

    def __post_init__(self) -> None:
        if self.bins < 2 or self.vocab_end < self.bins:
            raise ContractError(f"{self.bins} action bins do not fit a vocabulary of {self.vocab_end} rows.")

    @property
    def first_id(self) -> int:
        """The smallest action id."""
        return self.vocab_end - self.bins

    @property
    def centres(self) -> NDArray[np.float64]:
        """(bins - 1,) values that ids decode to, ascending."""
        edges = np.linspace(-1, 1, self.bins)
        return (edges[:-1] + edges[1:]) / 2

    def encode(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return the (...) int64 token ids of (...) values, which are clipped to [-1, 1].

        Raises:
            ContractError: a value is not finite.
        """
        x = np.asarray(values, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ContractError("an action that is not finite has no token.")
        edges = np.linspace(-1, 1, self.bins)
        return self.vocab_end - np.digitize(np.clip(x, -1, 1), edges).astype(np.int64)

    def decode(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Return the (...) bin centres in [-1, 1] of (...) token ids.

        Raises:
            ContractError: an id is not an action token. The reference silently decodes it to an extreme.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if ((tokens < self.first_id) | (tokens >= self.vocab_end)).any():
            raise ContractError(f"ids must lie in [{self.first_id}, {self.vocab_end}), got {tokens.tolist()}.")
        return self.centres[np.clip(self.vocab_end - tokens - 1, 0, self.bins - 2)]
