"""Generate: exactly as many tokens as an answer has, greedy, over the action rows of the vocabulary only.

The reference decodes over the whole vocabulary and turns a word into an extreme action without noticing; here a word
cannot be said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from vla_robot.core.errors import PolicyError
from vla_robot.policy.openvla.inputs import Stages
from vla_robot.policy.openvla.model import OpenVLA
from vla_robot.policy.openvla.reason import Decoder


class Generator:
    """Greedy decoding of action tokens."""

    def __init__(self, decoder: Decoder, embeddings: Tensor, head: Tensor, first_id: int, vocab_end: int) -> None:
        """
        Args:
            decoder: the language model.
            embeddings: (V, D) token embeddings.
            head: (V, D) output rows.
            first_id: smallest action id.
            vocab_end: one past the largest action id.
        """
        self._decoder = decoder
        self._first_id = first_id
        self._embeddings = embeddings[first_id:vocab_end]
        self._head = head[first_id:vocab_end]

    def tokens(self, embeds: Tensor, lengths: Tensor, action_dim: int, stages: Stages | None = None) -> Tensor:
        """(B, S, D) prompt embeddings, (B,) lengths -> (B, action_dim) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        tokens, finite = self.greedy(embeds, lengths, action_dim, stages or Stages())
        require_finite(finite)
        return tokens

    def continued(
        self, embeds: Tensor, lengths: Tensor, prefixes: Sequence[Tensor], action_dim: int, stages: Stages | None = None
    ) -> Tensor:
        """`tokens` of answers that must begin with given ids, each row with its own.

        The ids are read with the prompt, in one pass; what follows them is what greedy decoding says after them.

        Args:
            embeds: (B, S, D) prompt embeddings.
            lengths: (B,) int64 real tokens per row.
            prefixes: B of (P,) int64 action ids, P from 0 to `action_dim` - 1.
            action_dim: tokens of an answer, those of the prefix included.
            stages: booked like `tokens`.

        Returns:
            (B, action_dim) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        counts = torch.tensor([len(prefix) for prefix in prefixes], device=embeds.device)
        longer = pad(embeds, (0, 0, 0, int(counts.max())))  # (B, S + P, D)
        for row, prefix in enumerate(prefixes):
            end = int(lengths[row])
            longer[row, end : end + len(prefix)] = self._embeddings[prefix - self._first_id]
        left = action_dim - int(counts.min())
        said = self.tokens(longer, lengths + counts, left, stages)
        # A row whose prefix is longer says more than it needs to.
        return torch.stack([torch.cat([p, row])[:action_dim] for p, row in zip(prefixes, said, strict=True)])

    def greedy(
        self, embeds: Tensor, lengths: Tensor | None, action_dim: int, stages: Stages | None
    ) -> tuple[Tensor, Tensor]:
        """`tokens` without a look at any value, so that a device never waits and a compiler sees one graph.

        Returns:
            (B, action_dim) int64 token ids, () bool whether every logit was finite.
        """
        hidden, cache = self._decoder.prefill(embeds, lengths, action_dim - 1)
        logits = linear(hidden, self._head)  # (B, 256)
        finite, rows = torch.isfinite(logits).all(), [logits.argmax(dim=-1)]  # ids counted from the first action row
        if stages:
            stages.done("prefill")
        while len(rows) < action_dim:
            logits = linear(self._decoder.step(self._embeddings[rows[-1]], cache), self._head)
            finite &= torch.isfinite(logits).all()
            rows.append(logits.argmax(dim=-1))
        if stages:
            stages.done("decode")
        return torch.stack(rows, dim=1) + self._first_id, finite

    def first_logits(self, embeds: Tensor, lengths: Tensor) -> Tensor:
        """(B, 256) logits of the first generated position over the action rows. Raises PolicyError like `tokens`."""
        hidden, _ = self._decoder.prefill(embeds, lengths, 0)
        logits = linear(hidden, self._head)
        require_finite(torch.isfinite(logits).all())
        return logits


def say(decoder: Decoder, model: OpenVLA, embeds: Tensor, end: int, max_tokens: int) -> Tensor:
    """Greedy decoding of one text over the words of the vocabulary, all rows before the first action.

    Args:
        decoder: the language model.
        model: whose embeddings and output rows those are.
        embeds: (1, S, D) prompt embeddings.
        end: id after which nothing is said.
        max_tokens: after so many ids the text is cut off.

    Returns:
        (L,) int64 ids, the end included.

    Raises:
        PolicyError: a logit is not finite.
        ContractError: the sequence is longer than the positions that the model knows.
    """
    words = model.config.num_words
    embeddings, head = (
        model.language_model.model.embed_tokens.weight[:words],
        model.language_model.lm_head.weight[:words],
    )
    hidden, cache = decoder.prefill(embeds, None, max_tokens - 1)
    said: list[Tensor] = []
    while True:
        logits = linear(hidden, head)  # (1, words)
        require_finite(torch.isfinite(logits).all())
        said.append(logits.argmax(dim=-1))
        if len(said) == max_tokens or int(said[-1]) == end:
            return torch.cat(said)
        hidden = decoder.step(embeddings[said[-1]], cache)


def require_finite(finite: Tensor) -> None:
    """Raise PolicyError unless () bool is true."""
    if not finite:
        raise PolicyError("the policy's logits are not finite: the checkpoint or its input is damaged.")
