"""Layout: the tokens with which every row begins, with places for its images and the arm's state.

    Qwen2-VL     <|im_start|> user \\n <|vision_start|> [image] <|vision_end|> [state] | text ...
    PaliGemma    [image] [image] [state] <bos>                                          | text ...

The beginning is the same in every row, so that what follows it can be padded as text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Place(Enum):
    """A place that is filled by what the model perceives."""

    IMAGE = "image"
    STATE = "state"


@dataclass(frozen=True)
class Layout:
    """Parts of the beginning, in order: token ids, or a place.

    Attributes:
        parts: a `Place.IMAGE` for each image of each camera, at most one `Place.STATE`.
    """

    parts: tuple[tuple[int, ...] | Place, ...]

    @property
    def ids(self) -> Tensor:
        """(n,) int64 ids of all parts that are no place, in their order."""
        return torch.tensor(
            [each for part in self.parts if isinstance(part, tuple) for each in part], dtype=torch.int64
        )

    @property
    def beginning(self) -> int:
        """Number of tokens before the first place."""
        first = self.parts[0] if self.parts else Place.IMAGE
        return len(first) if isinstance(first, tuple) else 0

    def assemble(
        self,
        ids: Tensor,
        look_up: Callable[[Tensor], Tensor],
        images: Sequence[Tensor],
        state: Tensor | None,
        text: Tensor,
    ) -> Tensor:
        """Return (B, S, D) rows.

        Args:
            ids: `ids` of this layout, on the device of the others.
            look_up: maps (n,) ids to (n, D) embeddings.
            images: one (B, P, D) for each `Place.IMAGE`.
            state: (B, 1, D), or None without a place for it.
            text: (B, L, D) embeddings of the text.
        """
        B, seen, done = len(text), iter(images), 0
        words = look_up(ids).expand(B, -1, -1)
        rows: list[Tensor] = []
        for part in self.parts:
            if part is Place.IMAGE:
                rows.append(next(seen))
            elif part is Place.STATE:
                assert state is not None
                rows.append(state)
            else:
                rows.append(words[:, done : done + len(part)])
                done += len(part)
        return torch.cat([*rows, text], dim=1)

    def image_columns(self, tokens: int) -> Iterator[int]:
        """Yield the column of each image's first token, for images of `tokens` tokens each."""
        column = 0
        for part in self.parts:
            if part is Place.IMAGE:
                yield column
            column += tokens if part is Place.IMAGE else 1 if part is Place.STATE else len(part)
