"""Generate: exactly as many tokens as an answer has, greedy, over the action rows of the vocabulary only.

The reference decodes over the whole vocabulary and turns a word into an extreme action without noticing; here a word
cannot be said.

Greedy decoding asks the model once for every token. But one pass over a guess tells for all its tokens at once what the
model says after them, and a token whose predecessors were guessed right is the very one that greedy decoding gives:

    guess            0    0    0    0    0    0        read together with the prompt
    the model says   513  609  640  640  640  640  512    513 is right, the others follow a wrong token
    guess            513  609  640  640  640  640        read again, in the same slots
    the model says   513  609  767  640  640  640  512    up to 767 right
    guess            513  609  767  640  640  640
    the model says   513  609  767  640  640  640  512    nothing changed: all of them are right

Each pass makes at least one token more right, so that there are never more passes than tokens; a policy whose numbers
hardly depend on each other needs two. This is Jacobi iteration (Song et al. 2021, arXiv 2002.03629; for VLA policies
PD-VLA, arXiv 2503.02310), and exact: which guess it began with changes the time, never the answer.
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
    """An action on its way to being what greedy decoding says.

    Attributes:
        guess: (B, n) tokens that were read, as rows of the action vocabulary.
        said: (B, n + 1) tokens: what the model says before the guess and after each token of it.
        finite: () bool, whether every logit so far was finite.
        cache: of all that stands before the guess.
    """

    guess: Tensor
    said: Tensor
    finite: Tensor
    cache: Cache

    @property
    def settled(self) -> bool:
        """Whether the model says what was guessed. Waits for the device."""
        return torch.equal(self.said[:, :-1], self.guess)


type Corrects = Callable[[Draft], Draft]


class Generator:
    """Greedy decoding of action tokens."""

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
            chunk: actions of an answer; each is guessed to be like the one before it.
        """
        self._decoder = decoder
        self._first_id = first_id
        self._embeddings = embeddings[first_id:vocab_end]
        self._head = head[first_id:vocab_end]
        self._chunk = chunk

    def tokens(self, embeds: Tensor, lengths: Tensor, count: int, stages: StageTimer | None = None) -> Tensor:
        """(B, S, D) prompt embeddings, (B,) lengths -> (B, count) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        return self._greedy(embeds, lengths, count, self.action_dim(count), stages or StageTimer())

    def continued(
        self, embeds: Tensor, lengths: Tensor, prefixes: Sequence[Tensor], count: int, stages: StageTimer | None = None
    ) -> Tensor:
        """`tokens` of answers that must begin with given ids, each row with its own.

        The ids are read with the prompt, in one pass; what follows them is what greedy decoding says after them.

        Args:
            embeds: (B, S, D) prompt embeddings.
            lengths: (B,) int64 real tokens per row.
            prefixes: B of (P,) int64 action ids, P from 0 to `count` - 1.
            count: tokens of an answer, those of the prefix included.
            stages: booked like `tokens`.

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
        # A row whose prefix is longer says more than it needs to.
        return torch.stack([torch.cat([p, row])[:count] for p, row in zip(prefixes, said, strict=True)])

    def _greedy(self, embeds: Tensor, lengths: Tensor, count: int, action_dim: int, stages: StageTimer) -> Tensor:
        embeds, padding = pad_left(embeds, lengths)
        draft = self.begin(embeds, padding, count, min(action_dim, count))
        stages.lap("prefill")
        tokens = self.complete(draft, count, action_dim, stages)
        stages.lap("decode")
        return tokens

    def action_dim(self, count: int) -> int:
        """Tokens of one action, in an answer of `count` tokens."""
        return -(-count // self._chunk)

    def begin(self, embeds: Tensor, padding: Tensor | None, count: int, action_dim: int) -> Draft:
        """Read a prompt together with a first guess of an action: that the arm stays where it is.

        Nothing looks at a value, so that a device never waits and a compiler sees one graph.

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
        """Guess what the model said, in one more pass."""
        guess, cache = draft.said[:, :-1], draft.cache
        said, finite = self._say(self._embeddings[guess], cache, guess.shape[1])
        return Draft(guess, torch.cat([draft.said[:, :1], said], dim=1), draft.finite & finite, cache)

    def complete(
        self, draft: Draft, count: int, action_dim: int, stages: StageTimer, correct: Corrects | None = None
    ) -> Tensor:
        """Correct an action until it is settled, and go on with the next one.

        Args:
            draft: of the first action.
            count: tokens of the whole answer.
            action_dim: tokens of an action.
            stages: its passes are counted.
            correct: a compiled form of the method, for the first action; later ones stand in other slots, and each
                would be compiled anew.

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
        for _ in range(draft.guess.shape[1]):  # after so many passes all tokens are right, whatever a device rounds
            if draft.settled:
                break
            draft = correct(draft)
            stages.passes += 1
        require_finite(draft.finite)
        return draft.said

    def _next(self, action: Tensor, cache: Cache, tokens: int) -> Draft:
        """(B, n) settled tokens -> the first guess of those after them: that the arm does the same again."""
        cache.filled += action.shape[1] - 1  # the last one was said, and not read yet
        return self._read(self._embeddings[action[:, -1:]], action[:, : tokens - 1], cache)

    def _read(self, before: Tensor, guess: Tensor, cache: Cache) -> Draft:
        """(B, S, D) embeddings that are certain, (B, n) tokens that are guessed, in one pass."""
        embeds = torch.cat([before, self._embeddings[guess]], dim=1)
        said, finite = self._say(embeds, cache, guess.shape[1] + 1)
        cache.filled += before.shape[1]
        return Draft(guess, said, finite, cache)

    def _say(self, embeds: Tensor, cache: Cache, keep: int) -> tuple[Tensor, Tensor]:
        """(B, n, D) -> (B, keep) what the model says after each of the last tokens, () bool whether that is finite."""
        logits = linear(self._decoder.read(embeds, cache, keep), self._head)  # (B, keep, 256)
        return logits.argmax(dim=-1), torch.isfinite(logits).all()

    def first_logits(self, embeds: Tensor, lengths: Tensor) -> Tensor:
        """(B, 256) logits of the first generated position over the action rows. Raises PolicyError like `tokens`."""
        embeds, padding = pad_left(embeds, lengths)
        cache = self._decoder.start(embeds, padding, embeds.shape[1])
        logits = linear(self._decoder.read(embeds, cache, keep=1), self._head).squeeze(1)
        require_finite(torch.isfinite(logits).all())
        return logits


def generate_text(decoder: Decoder, model: OpenVLA, embeds: Tensor, end: int, max_tokens: int) -> Tensor:
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
    """Raise PolicyError unless () bool is true."""
    if not finite:
        raise PolicyError("the policy's logits are not finite: the checkpoint or its input is damaged.")
