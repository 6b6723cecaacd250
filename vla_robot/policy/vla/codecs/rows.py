"""Rows: the ids of a vocabulary that a codec uses, and what is checked of every codec's numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.ports import ActionCodec

BEHIND = -1
"""Fills a row of ids behind the end of its answer."""

NOT_FINITE = "the policy's logits are not finite: the checkpoint or its input is damaged."
ACTIONS_NOT_FINITE = "the policy's actions are not finite: the checkpoint or its input is damaged."


def finite_actions[A: np.floating](actions: NDArray[A], clip: bool = False) -> NDArray[A]:
    """Return a model's normalised actions, with `clip` cut to [-1, 1]. Raises PolicyError if a number is not finite."""
    if not np.isfinite(actions).all():
        raise PolicyError(ACTIONS_NOT_FINITE)
    return actions.clip(-1.0, 1.0) if clip else actions


class VocabularyRows:
    """Some distinct ids, each known by its place among them.

    Attributes:
        ids: (A,) int64.
    """

    def __init__(self, ids: ArrayLike) -> None:
        """Raises ContractError if there is none, or one is negative or there twice."""
        self.ids = np.asarray(ids, dtype=np.int64)
        self.ids.setflags(write=False)
        self._order = np.argsort(self.ids)
        self._sorted = self.ids[self._order]
        if len(self.ids) == 0 or self._sorted[0] < 0 or (np.diff(self._sorted) == 0).any():
            raise ContractError("the ids of action tokens must be distinct and not negative.")

    def rows(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the (...) rows of (...) ids.

        Raises:
            ContractError: an id is not one of them. OpenVLA's own code silently decodes it to an extreme.
        """
        asked = np.asarray(ids, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._sorted, asked), len(self._sorted) - 1)
        if (self._sorted[place] != asked).any():
            strange = asked[self._sorted[place] != asked].ravel()
            raise ContractError(
                f"ids {strange[:5].tolist()} are no action tokens; those lie in "
                f"[{self._sorted[0]}, {self._sorted[-1] + 1})."
            )
        return self._order[place]


def decoded(codec: ActionCodec, ids: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
    """Return the (K, dim) actions in [-1, 1] of an answer's (n,) ids, which -1 or tokens of no use may follow.

    Raises:
        ContractError: the ids are no whole answer, or the codec was made for another number.
    """
    said = ids[: codec.tokens(dim)]
    return codec.decode(said[said >= 0], dim)


def finite(actions: ArrayLike) -> NDArray[np.float64]:
    """Return actions as float64. Raises ContractError if a number is not finite."""
    x = np.asarray(actions, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ContractError("an action that is not finite has no token.")
    return x


def require_dimension(trained: int | None, dim: int) -> None:
    """Raise ContractError unless a codec made for actions of `trained` numbers, None for any, is asked for them."""
    if trained is not None and trained != dim:
        raise ContractError(
            f"the policy's action tokens are for actions of {trained} numbers, but {dim} are asked for; "
            "a policy answers only the size that it was trained with."
        )


def require_shape(chunk: int, dimension: int, actions: NDArray[np.float64]) -> None:
    """Raise ContractError unless actions are (chunk, dimension)."""
    if actions.shape != (chunk, dimension):
        raise ContractError(
            f"the policy's action tokens are for {chunk} actions of {dimension} numbers, got an array of shape "
            f"{actions.shape}."
        )
