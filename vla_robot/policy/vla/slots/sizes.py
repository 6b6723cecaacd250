"""Sizes of blocks: batches and prompts are rounded up, so that few sizes occur.

rows   1 2 4 8 16 32 64 ...     a missing row repeats the first one
text   16 32 48 64 ...          a shorter prompt is padded at the right
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT_STEP = 16
"""Lengths of text are rounded up to a multiple of this [tokens]."""


@dataclass(frozen=True)
class BlockSize:
    """Everything that the shapes of an inference depend on.

    Attributes:
        rows: B, observations.
        text: L, tokens of the longest prompt's text.
        frames: shape of one row's pixels, (N, C, H, W).
        action_dim: D, tokens of an action.
        actions: K, actions of an answer.
        given: most tokens with which an answer may be told to begin; 0 where none is.
    """

    rows: int
    text: int
    frames: tuple[int, ...]
    action_dim: int
    actions: int
    given: int

    @property
    def answer(self) -> int:
        """Columns behind a prompt for its answer, whose last token is not read.

        A row that is given more tokens than another still generates as many.
        """
        return self.given + self.actions * self.action_dim - 1


def rounded_rows(rows: int) -> int:
    """Return the next power of two."""
    return 1 << (rows - 1).bit_length()


def rounded_text(tokens: int) -> int:
    """Return the next multiple of TEXT_STEP."""
    return -(-tokens // TEXT_STEP) * TEXT_STEP
