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

    def __init__(
        self, codec: ActionCodec, vocabulary: int, device: torch.device, locations: range | None = None
    ) -> None:
        self._locations = locations
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
        """Return (n, V) target probabilities: one-hot, but Gaussian over neighbours for actions and places.

        Args:
            targets: (n,) int64 ids.
            sigma: standard deviation in rows.
        """
        V = len(self._row)
        soft = (torch.arange(V, device=targets.device)[None] == targets[:, None]).float()
        if self._scale:
            row = self._row[targets][:, None]
            same = self.is_action & (self._row // self._scale == row // self._scale)
            near = _gaussian(self._row[None] - row, sigma) * same
            soft = torch.where(self.is_action[targets][:, None], near, soft)
        if self._locations is not None:
            first, end = self._locations.start, self._locations.stop
            ids = torch.arange(V, device=targets.device)
            near = _gaussian(ids[None] - targets[:, None], sigma) * ((ids >= first) & (ids < end))
            soft = torch.where(((targets >= first) & (targets < end))[:, None], near, soft)
        return soft / soft.sum(dim=1, keepdim=True)

    def distance(self, predicted: Tensor, wanted: Tensor) -> Tensor | None:
        """Return the () mean absolute difference of the numbers that (n,) ids say; None if an id says no number."""
        return None if self._value is None else (self._value[predicted] - self._value[wanted]).abs().mean()


def _gaussian(distance: Tensor, sigma: float) -> Tensor:
    return torch.exp(-0.5 * (distance.float() / sigma) ** 2)


@lru_cache(maxsize=16)
def scores_of(
    codec: ActionCodec, vocabulary: int, device: torch.device, locations: range | None = None
) -> AnswerScores:
    """Return the tables of a codec over a vocabulary on a device, made once; `locations` are the ids of places."""
    return AnswerScores(codec, vocabulary, device, locations)
