"""Rows of embedded tokens of different lengths, with the blocks and positions for attention.

padded at the right     [BOS][image][text]       as perceive and align make them
                        [BOS][image][text][text]
padded at the left            [BOS][image][text] as they are read: all rows end in one slot, and answer together
                        [BOS][image][text][text]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vla_robot.policy.vla.sequence.columns import put_at


@dataclass(frozen=True)
class RaggedSequence:
    """Rows padded at the right.

    Attributes:
        embeds: (B, S, D).
        lengths: (B,) int64 tokens per row, in main memory, so that reading them waits for no device.
        blocks: (B, S) int64: tokens of one row with the same number above 0 attend to each other in both directions;
            0 is a causal token. Rows of one length have the same blocks. None: all are causal.
        positions: (B, 3, S) int64 rotary positions by time, height and width; None counts tokens.
        constant: number of columns at the beginning that are the same in each row of each batch, and attend to nothing
            behind them: the words before the first image. Keys and values of them are computed once.
    """

    embeds: Tensor
    lengths: Tensor
    blocks: Tensor | None = None
    positions: Tensor | None = None
    constant: int = 0

    def followed_by(self, more: Sequence[Tensor]) -> RaggedSequence:
        """Return the rows with B of (n, D) causal tokens after them, any n."""
        counts = [len(row) for row in more]
        wide = self.widened(self.embeds.shape[1] + max(counts))
        for index, (row, end) in enumerate(zip(more, self.lengths.tolist(), strict=True)):
            wide.embeds[index, end : end + len(row)] = row
        return replace(wide, lengths=self.lengths + torch.tensor(counts))

    def _counted_on(self, positions: Tensor, added: int) -> Tensor:
        """Return `positions` with `added` more columns, which count on from each row's largest position."""
        lengths = self.lengths.to(positions.device)[:, None, None]
        column = torch.arange(positions.shape[-1] + added, device=positions.device)
        longer = pad(positions, (0, added))
        after = next_position(longer.masked_fill(column >= lengths, -1))[:, None, None]
        return torch.where(column < lengths, longer, after + column - lengths)

    def widened(self, columns: int) -> RaggedSequence:
        """Return the rows in a block of `columns` columns; positions of what may follow them count on."""
        added = columns - self.embeds.shape[1]
        embeds = pad(self.embeds, (0, 0, 0, added))
        blocks = None if self.blocks is None else pad(self.blocks, (0, added))
        positions = None if self.positions is None else self._counted_on(self.positions, added)
        return RaggedSequence(embeds, self.lengths, blocks, positions, self.constant)

    def unpadded(self) -> PaddedSequence:
        """Return rows that all have the length of the block."""
        blocks = None if self.blocks is None else self.blocks[:1]
        return PaddedSequence(self.embeds, None, blocks, self.positions, self.constant)

    def padded_left(self) -> PaddedSequence:
        """Return the same rows, all ending in the last slot."""
        S = self.embeds.shape[1]
        padding = S - self.lengths
        if not padding.any():
            return self.unpadded()
        padding = padding.to(self.embeds.device)
        source = (torch.arange(S, device=self.embeds.device) - padding[:, None]).clamp(min=0)  # (B, S)
        rows = torch.arange(len(source), device=self.embeds.device)[:, None]
        return PaddedSequence(
            self.embeds[rows, source],
            padding,
            None if self.blocks is None else self.blocks[rows, source],
            None if self.positions is None else self.positions.gather(2, source[:, None].expand_as(self.positions)),
        )


def with_given(rows: RaggedSequence, given: Tensor, counts: Tensor) -> RaggedSequence:
    """Return widened rows followed by given tokens, which are written in place; no size depends on a number.

    Args:
        rows: B rows with room for all G tokens; their lengths are on the device of the embeddings.
        given: (B, G, D) embeddings. All are written, also those behind `counts`: a guess or padding replaces them.
        counts: (B,) int64 given tokens of each row.
    """
    columns = rows.lengths[:, None] + torch.arange(given.shape[1], device=rows.lengths.device)
    put_at(rows.embeds, columns, given)
    return replace(rows, lengths=rows.lengths + counts)


@dataclass(frozen=True)
class PaddedSequence:
    """Rows padded at the left, as a reasoner reads them.

    Attributes:
        embeds: (B, S, D) embeddings; those in padding are not used.
        padding: (B,) int64 number of slots at the left of each row without a token; None: no row is padded.
        blocks: (B or 1, S) int64 as in `RaggedSequence`; not used in padding.
        positions: (B, 3, S) int64 as in `RaggedSequence`; padding has those of the row's first token.
        constant: as in `RaggedSequence`; 0 if a row is padded, since its first column is then another one.
    """

    embeds: Tensor
    padding: Tensor | None = None
    blocks: Tensor | None = None
    positions: Tensor | None = None
    constant: int = 0


def next_position(positions: Tensor) -> Tensor:
    """Return (...) the position after (..., 3, S) positions: one more than the largest of any axis."""
    return positions.amax(dim=(-2, -1)) + 1
