"""Columns that differ by row: tokens, keys and masks of rows whose tokens stand in different slots."""

from __future__ import annotations

from torch import Tensor


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Return (B, ..., n, D) of (B, ..., S, D) at the (B, n) int64 columns of each row."""
    index = columns.view(len(columns), *(1,) * (x.dim() - 3), -1, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


def put_at(x: Tensor, columns: Tensor, new: Tensor) -> None:
    """Write (B, ..., n, D) into (B, ..., S, D) at the (B, n) int64 columns of each row, in place."""
    index = columns.view(len(columns), *(1,) * (x.dim() - 3), -1, 1)
    x.scatter_(-2, index.expand_as(new), new)
