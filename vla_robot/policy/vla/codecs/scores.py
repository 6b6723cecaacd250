"""How training measures a codec's tokens among all rows of a vocabulary: which are actions, and how far off one is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vla_robot.core.ports import ActionCodec


class AnswerScores:
    """Tables over a vocabulary of V rows.

    Attributes:
        is_action: (V,) bool.
    """

    def __init__(self, codec: ActionCodec, vocabulary: int, device: torch.device) -> None:
        self.is_action = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.is_action[torch.from_numpy(codec.ids.copy()).to(device)] = True
        row = np.zeros(vocabulary, dtype=np.int64)
        row[codec.ids] = np.arange(len(codec.ids))
        self._row = torch.from_numpy(row).to(device)
        self._scale = codec.scale
        self._value = None
        if codec.scale:
            # As in OpenVLA's own metric, any other id counts as the action id that is next to it in the vocabulary.
            order = np.argsort(codec.ids)
            below = np.searchsorted(codec.ids[order], np.arange(vocabulary), side="right") - 1
            values = codec.values[order][np.maximum(below, 0)]
            self._value = torch.from_numpy(values.astype(np.float32)).to(device)

    def smooth(self, targets: Tensor, sigma: float) -> Tensor:
        """Return (n, V) target probabilities: one-hot, but Gaussian over neighbouring rows of a scale for actions.

        Args:
            targets: (n,) int64 ids.
            sigma: standard deviation in rows.
        """
        is_action = self.is_action[targets][:, None]
        row = self._row[targets][:, None]
        distance = (self._row[None] - row).float()
        same = self.is_action & (self._row // self._scale == row // self._scale)
        weight = torch.exp(-0.5 * (distance / sigma) ** 2) * same
        one_hot = (torch.arange(len(self._row), device=targets.device)[None] == targets[:, None]).float()
        soft = torch.where(is_action, weight, one_hot)
        return soft / soft.sum(dim=1, keepdim=True)

    def distance(self, predicted: Tensor, wanted: Tensor) -> Tensor | None:
        """Return the () mean absolute difference of the numbers that (n,) ids say; None if an id says no number."""
        return None if self._value is None else (self._value[predicted] - self._value[wanted]).abs().mean()


@lru_cache(maxsize=16)
def scores_of(codec: ActionCodec, vocabulary: int, device: torch.device) -> AnswerScores:
    """Return the tables of a codec over a vocabulary on a device, made once."""
    return AnswerScores(codec, vocabulary, device)
