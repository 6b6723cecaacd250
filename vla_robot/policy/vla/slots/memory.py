"""Blocks that are kept, each with the memory of its size, and how a batch is copied into one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from torch import Tensor

from vla_robot.core.errors import ContractError

BLOCKS = 8
"""Blocks that are kept, each with its keys and values; the one that was not used for longest makes room."""


class Kept[S: Hashable, B]:
    """Blocks by their sizes."""

    def __init__(self, make: Callable[[S], B]) -> None:
        self._make = make
        self._blocks: OrderedDict[S, B] = OrderedDict()

    def of(self, size: S) -> B:
        """Return the block of a size, made if there is none. Raises what making it raises."""
        if size not in self._blocks:
            made = self._make(size)
            if len(self._blocks) == BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[size] = made
        self._blocks.move_to_end(size)
        return self._blocks[size]

    def of_rounded(self, rounded: S, exact: S) -> B:
        """Return the block of a rounded size, or of the exact one if the model has no positions for the rounding.

        Raises:
            ContractError: the model has too few positions for the exact size, too.
        """
        try:
            return self.of(rounded)
        except ContractError:
            return self.of(exact)

    @property
    def sizes(self) -> list[S]:
        """Sizes of the blocks that are kept, the one used last at the end."""
        return list(self._blocks)


class Inputs(Protocol):
    """The tensors of a block that hold a batch; see `Block`."""

    pixels: Tensor
    ids: Tensor
    state: Tensor | None
    lengths: Tensor


def put_inputs(block: Inputs, pixels: Tensor, ids: Tensor, state: Tensor | None, lengths: Tensor) -> None:
    """Copy a batch into a block; rows that are missing repeat the first one."""
    put_rows(block.pixels, pixels)
    put_rows(block.ids[:, : ids.shape[1]], ids)
    put_rows(block.lengths, lengths)
    if block.state is not None and state is not None:
        put_rows(block.state, state)


def put_rows(target: Tensor, rows: Tensor) -> None:
    """Copy (n, ...) into the first rows of (B, ...), and the first one into the others."""
    target[: len(rows)].copy_(rows, non_blocking=True)
    if len(rows) < len(target):
        target[len(rows) :].copy_(target[:1].expand_as(target[len(rows) :]))
