"""Generate: greedy decoding of as many tokens as an answer has, over the action rows of the vocabulary only.

The reference decodes over the whole vocabulary and silently turns a word into an extreme action; here the model cannot
answer a word.

Greedy decoding runs the model once for every token. One pass over a guess, however, gives the model's next token after
each of its tokens, and a token whose predecessors were guessed right is the one that greedy decoding gives:

    guess            0    0    0    0    0    0        read together with the prompt
    the model says   513  609  640  640  640  640  512    513 is right, the others follow a wrong token
    guess            513  609  640  640  640  640        read again, in the same slots
    the model says   513  609  767  640  640  640  512    up to 767 right
    guess            513  609  767  640  640  640
    the model says   513  609  767  640  640  640  512    nothing changed: all of them are right

Each pass makes at least one more token right, so that there are never more passes than tokens; a policy whose numbers
hardly depend on each other needs two. This is Jacobi iteration (Song et al. 2021, arXiv 2002.03629; for VLA policies
PD-VLA, arXiv 2503.02310), and it is exact: the first guess changes the time, never the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from vla_robot.core.errors import PolicyError
from vla_robot.policy.openvla.inputs.inputs import StageTimer
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import Cache, Decoder, pad_left


@dataclass(frozen=True)
class Draft:
    """An action that is being corrected towards greedy decoding's.

    Attributes:
        guess: (B, n) tokens that were read, as rows of the action vocabulary.
        said: (B, n + 1) tokens: the model's next token before the guess and after each token of it.
        finite: () bool, whether every logit so far was finite.
        cache: keys and values of everything before the guess.
    """

    guess: Tensor
    said: Tensor
    finite: Tensor
    cache: Cache

    @property
    def settled(self) -> bool:
        """Whether the model's tokens are those guessed. Waits for the device."""
        return torch.equal(self.said[:, :-1], self.guess)


type Corrects = Callable[[Draft], Draft]


class Generator:
    """Decodes action tokens greedily."""

    def __init__(
        self, decoder: Decoder, embeddings: Tensor, head: Tensor, first_id: int, vocab_end: int, chunk: int = 1
    ) -> None:
        """
        Args:
            decoder: the language model.
            embeddings: (V, D) token embeddings.
            head: (V, D) output rows.
            first_id: smallest action id.
            vocab_end: one past the largest action id.
            chunk: number of actions in an answer; the first guess of each is the one before it.
        """
        self._decoder = decoder
        self._first_id = first_id
        self._embeddings = embeddings[first_id:vocab_end]
        self._head = head[first_id:vocab_end]
        self._chunk = chunk

    def tokens(self, embeds: Tensor, lengths: Tensor, count: int, stages: StageTimer | None = None) -> Tensor:
        """Return (B, count) int64 token ids for (B, S, D) prompt embeddings and (B,) lengths.

        Raises:
            PolicyError: a logit is not finite.
        """
        return self._greedy(embeds, lengths, count, self.action_dim(count), stages or StageTimer())

    def continued(
        self, embeds: Tensor, lengths: Tensor, prefixes: Sequence[Tensor], count: int, stages: StageTimer | None = None
    ) -> Tensor:
        """Return `tokens` of answers that begin with given ids, which may differ by row.

        The ids are read with the prompt in one pass; greedy decoding continues after them.

        Args:
            embeds: (B, S, D) prompt embeddings.
            lengths: (B,) int64 real tokens per row.
            prefixes: B of (P,) int64 action ids, P from 0 to `count` - 1.
            count: tokens of an answer, including the prefix.
            stages: times the stages as in `tokens`.

        Returns:
            (B, count) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        counts = torch.tensor([len(prefix) for prefix in prefixes], device=embeds.device)
        longer = pad(embeds, (0, 0, 0, int(counts.max())))  # (B, S + P, D)
        for row, prefix in enumerate(prefixes):
            end = int(lengths[row])
            longer[row, end : end + len(prefix)] = self._embeddings[prefix - self._first_id]
        left = count - int(counts.min())
        said = self._greedy(longer, lengths + counts, left, self.action_dim(count), stages or StageTimer())
        # Rows with longer prefixes have generated more tokens than needed.
        return torch.stack([torch.cat([p, row])[:count] for p, row in zip(prefixes, said, strict=True)])

    def _greedy(self, embeds: Tensor, lengths: Tensor, count: int, action_dim: int, stages: StageTimer) -> Tensor:
        embeds, padding = pad_left(embeds, lengths)
        draft = self.begin(embeds, padding, count, min(action_dim, count))
        stages.lap("prefill")
        tokens = self.complete(draft, count, action_dim, stages)
        stages.lap("decode")
        return tokens

    def action_dim(self, count: int) -> int:
        """Return the tokens of one action in an answer of `count` tokens."""
        return -(-count // self._chunk)

    def begin(self, embeds: Tensor, padding: Tensor | None, count: int, action_dim: int) -> Draft:
        """Read a prompt together with the first guess of an action, that the arm stays where it is.

        No value is read here, so that the device never waits and a compiler sees one graph.

        Args:
            embeds: (B, S, D) prompt, padded at the left.
            padding: (B,) int64 slots of padding, or None for none.
            count: tokens of the whole answer.
            action_dim: tokens of the first action.
        """
        cache = self._decoder.start(embeds, padding, embeds.shape[1] + count - 1)
        guess = torch.full((len(embeds), action_dim - 1), len(self._head) // 2, device=embeds.device)
        return self._read(embeds, guess, cache)

    def correct(self, draft: Draft) -> Draft:
        """Run one more pass whose guess is the model's last answer."""
        guess, cache = draft.said[:, :-1], draft.cache
        said, finite = self._say(self._embeddings[guess], cache, guess.shape[1])
        return Draft(guess, torch.cat([draft.said[:, :1], said], dim=1), draft.finite & finite, cache)

    def complete(
        self, draft: Draft, count: int, action_dim: int, stages: StageTimer, correct: Corrects | None = None
    ) -> Tensor:
        """Correct an action until it is settled, then each following action of the answer.

        Args:
            draft: draft of the first action.
            count: tokens of the whole answer.
            action_dim: tokens of an action.
            stages: counts the passes.
            correct: compiled form of `correct` for the first action; later actions are in other slots, which would each
                be compiled anew.

        Returns:
            (B, count) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        actions = [self._settle(draft, stages, correct or self.correct)]
        for done in range(action_dim, count, action_dim):
            draft = self._next(actions[-1], draft.cache, min(action_dim, count - done))
            stages.passes += 1
            actions.append(self._settle(draft, stages, self.correct))
        return torch.cat(actions, dim=1) + self._first_id

    def _settle(self, draft: Draft, stages: StageTimer, correct: Corrects) -> Tensor:
        for _ in range(draft.guess.shape[1]):  # so many passes make all tokens right
            if draft.settled:
                break
            draft = correct(draft)
            stages.passes += 1
        require_finite(draft.finite)
        return draft.said

    def _next(self, action: Tensor, cache: Cache, tokens: int) -> Draft:
        """Return the draft after (B, n) settled tokens, guessing that the arm does the same again."""
        cache.filled += action.shape[1] - 1  # the last token was generated, and not read yet
        return self._read(self._embeddings[action[:, -1:]], action[:, : tokens - 1], cache)

    def _read(self, before: Tensor, guess: Tensor, cache: Cache) -> Draft:
        """Read (B, S, D) certain embeddings and (B, n) guessed tokens in one pass."""
        embeds = torch.cat([before, self._embeddings[guess]], dim=1)
        said, finite = self._say(embeds, cache, guess.shape[1] + 1)
        cache.filled += before.shape[1]
        return Draft(guess, said, finite, cache)

    def _say(self, embeds: Tensor, cache: Cache, keep: int) -> tuple[Tensor, Tensor]:
        """Return the (B, keep) next tokens after the last ones of (B, n, D), and () bool whether logits are finite."""
        logits = linear(self._decoder.read(embeds, cache, keep), self._head)  # (B, keep, 256)
        return logits.argmax(dim=-1), torch.isfinite(logits).all()

    def first_logits(self, embeds: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, 256) logits of the first generated action token. Raises PolicyError like `tokens`."""
        embeds, padding = pad_left(embeds, lengths)
        cache = self._decoder.start(embeds, padding, embeds.shape[1])
        logits = linear(self._decoder.read(embeds, cache, keep=1), self._head).squeeze(1)
        require_finite(torch.isfinite(logits).all())
        return logits


def generate_text(decoder: Decoder, model: OpenVLA, embeds: Tensor, end: int, max_tokens: int) -> Tensor:
    """Decode one text greedily over the words of the vocabulary, all rows before the first action.

    Args:
        decoder: the language model.
        model: gives the embeddings and output rows.
        embeds: (1, S, D) prompt embeddings.
        end: id that ends the text.
        max_tokens: longest text, in ids.

    Returns:
        (L,) int64 ids, including the end.

    Raises:
        PolicyError: a logit is not finite.
        ContractError: the sequence is longer than the positions that the model knows.
    """
    words = model.config.num_words
    embeddings, head = (
        model.language_model.model.embed_tokens.weight[:words],
        model.language_model.lm_head.weight[:words],
    )
    cache = decoder.start(embeds, None, embeds.shape[1] + max_tokens - 1)
    said: list[Tensor] = []
    while True:
        logits = linear(decoder.read(embeds, cache, keep=1), head)[:, 0]  # (1, words)
        require_finite(torch.isfinite(logits).all())
        said.append(logits.argmax(dim=-1))
        if len(said) == max_tokens or int(said[-1]) == end:
            return torch.cat(said)
        cache.filled += embeds.shape[1]
        embeds = embeddings[said[-1]][None]


def require_finite(finite: Tensor) -> None:
    """Raise PolicyError unless the () bool is true."""
    if not finite:
        raise PolicyError("the policy's logits are not finite: the checkpoint or its input is damaged.")
