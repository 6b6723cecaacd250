"""A codec's grammar on the model's device, applied to whole batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_robot.core.ports.answer_grammar import Grammar


class GrammarSteps:
    """Follows the states of many answers at once.

    Attributes:
        allowed: (S, A) bool: whether a row may be said in a state.
        done: the state behind a whole answer.
    """

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self.allowed = torch.from_numpy(grammar.allowed).to(device)
        self.done = grammar.done
        self._following = torch.from_numpy(grammar.following).to(device)
        self._grammar = grammar

    def begin(self, rows: int) -> Tensor:
        """Return the (rows,) int64 states before an answer."""
        return torch.zeros(rows, dtype=torch.int64, device=self.allowed.device)

    def after(self, given: Sequence[Tensor]) -> Tensor:
        """Return the (B,) states after B of (n,) rows, any n. Raises ContractError if a row is not allowed."""
        states = [self._grammar.after(rows.cpu().numpy()) for rows in given]
        return torch.tensor(states, device=self.allowed.device)

    def along(self, state: Tensor, guess: Tensor) -> Tensor:
        """Return the (B, n + 1) states before and after each of (B, n) rows, from the (B,) states before them.

        A row that is not allowed leads anywhere: it is a wrong guess, so that what follows it is corrected.
        """
        states = [state]
        for rows in guess.unbind(dim=1):
            states.append(self._following[states[-1], rows].long())
        return torch.stack(states, dim=1)
