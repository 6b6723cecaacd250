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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from vla_robot.core.errors import PolicyError
from vla_robot.policy.vla.reason.action_tokens import NOT_FINITE
from vla_robot.policy.vla.reason.reasoner import Reasoner, Slots
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence


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
    cache: Slots

    @property
    def settled(self) -> bool:
        """Whether the model's tokens are those guessed. Waits for the device, once. Raises PolicyError as `tokens`."""
        return is_settled(outcome(self.said, self.guess, self.finite))


type Corrects = Callable[[Draft], Draft]


class Generator:
    """Decodes action tokens greedily.

    Attributes:
        first_id: smallest action id.
    """

    def __init__(
        self,
        reasoner: Reasoner[Any],
        embeddings: Tensor,
        head: Tensor,
        first_id: int,
        chunk: int = 1,
        soft_cap: float | None = None,
    ) -> None:
        """
        Args:
            reasoner: the language model.
            embeddings: (A, D) embeddings of the action ids, in their order.
            head: (A, D) output rows of the action ids.
            first_id: smallest action id.
            chunk: number of actions in an answer; the first guess of each is the one before it.
            soft_cap: turns a logit x into soft_cap * tanh(x / soft_cap), as Gemma 2 and 4 do.
        """
        self._reasoner = reasoner
        self.first_id = first_id
        self._embeddings = embeddings
        self._head = head
        self._chunk = chunk
        self._soft_cap = soft_cap

    def tokens(self, prompt: RaggedSequence, count: int, stages: StageTimer | None = None) -> Tensor:
        """Return (B, count) int64 token ids for a prompt.

        Raises:
            PolicyError: a logit is not finite.
        """
        return self._greedy(prompt, count, self.action_dim(count), stages or StageTimer())

    def continued(
        self, prompt: RaggedSequence, prefixes: Sequence[Tensor], count: int, stages: StageTimer | None = None
    ) -> Tensor:
        """Return `tokens` of answers that begin with given ids, which may differ by row.

        The ids are read with the prompt in one pass; greedy decoding continues after them.

        Args:
            prompt: what is answered.
            prefixes: B of (P,) int64 action ids, P from 0 to `count` - 1.
            count: tokens of an answer, including the prefix.
            stages: times the stages as in `tokens`.

        Returns:
            (B, count) int64 token ids.

        Raises:
            PolicyError: a logit is not finite.
        """
        longer = prompt.followed_by([self._embeddings[prefix - self.first_id] for prefix in prefixes])
        left = count - min(map(len, prefixes))
        said = self._greedy(longer, left, self.action_dim(count), stages or StageTimer())
        return after_prefixes(prefixes, said, count)

    def _greedy(self, prompt: RaggedSequence, count: int, action_dim: int, stages: StageTimer) -> Tensor:
        draft = self.begin(prompt.padded_left(), count, min(action_dim, count))
        stages.lap("prefill")
        tokens = self.complete(draft, count, action_dim, stages)
        stages.lap("decode")
        return tokens

    def action_dim(self, count: int) -> int:
        """Return the tokens of one action in an answer of `count` tokens."""
        return -(-count // self._chunk)

    def begin(self, prompt: PaddedSequence, count: int, action_dim: int) -> Draft:
        """Read a prompt together with the first guess of an action, that the arm stays where it is.

        No value is read here, so that the device never waits and a compiler sees one graph.

        Args:
            prompt: what is answered.
            count: tokens of the whole answer.
            action_dim: tokens of the first action.
        """
        embeds = prompt.embeds
        cache = self._reasoner.start(prompt, embeds.shape[1] + count - 1)
        return self._read(embeds, self.first_guess(len(embeds), action_dim - 1), cache)

    def first_guess(self, rows: int, tokens: int) -> Tensor:
        """Return (rows, tokens) rows of the action vocabulary: the arm stays where it is."""
        return torch.full((rows, tokens), len(self._head) // 2, device=self._head.device)

    def look_up(self, said: Tensor) -> Tensor:
        """Return (..., D) embeddings of (...) rows of the action vocabulary."""
        return self._embeddings[said]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (..., A) logits of the action ids after (..., D) hidden states."""
        return capped(linear(hidden, self._head), self._soft_cap)

    def say(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, n) next tokens after (B, n, D) hidden states, and () bool whether their logits are finite."""
        logits = self.logits(hidden)
        return logits.argmax(dim=-1), torch.isfinite(logits).all()

    def correct(self, draft: Draft) -> Draft:
        """Run one more pass whose guess is the model's last answer."""
        guess, cache = draft.said[:, :-1], draft.cache
        said, finite = self.say(self._reasoner.read(self.look_up(guess), cache, guess.shape[1]))
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
        return self.ids(torch.cat(actions, dim=1))

    def ids(self, said: Tensor) -> Tensor:
        """Return the token ids of (...) rows of the action vocabulary."""
        return said + self.first_id

    def _settle(self, draft: Draft, stages: StageTimer, correct: Corrects) -> Tensor:
        for _ in range(draft.guess.shape[1]):
            if draft.settled:
                return draft.said
            draft = correct(draft)
            stages.passes += 1
        require_finite(draft.finite)  # so many passes made all tokens right
        return draft.said

    def _next(self, action: Tensor, cache: Slots, tokens: int) -> Draft:
        """Return the draft after (B, n) settled tokens, guessing that the arm does the same again."""
        cache.filled += action.shape[1] - 1  # the last token was generated, and not read yet
        return self._read(self._embeddings[action[:, -1:]], action[:, : tokens - 1], cache)

    def _read(self, before: Tensor, guess: Tensor, cache: Slots) -> Draft:
        """Read (B, S, D) certain embeddings and (B, n) guessed tokens in one pass."""
        embeds = torch.cat([before, self._embeddings[guess]], dim=1)
        said, finite = self.say(self._reasoner.read(embeds, cache, guess.shape[1] + 1))
        cache.filled += before.shape[1]
        return Draft(guess, said, finite, cache)

    def first_logits(self, prompt: RaggedSequence) -> Tensor:
        """Return (B, 256) logits of the first generated action token. Raises PolicyError like `tokens`."""
        padded = prompt.padded_left()
        cache = self._reasoner.start(padded, padded.embeds.shape[1])
        hidden = self._reasoner.read(padded.embeds, cache, keep=1).squeeze(1)
        logits = self.logits(hidden)
        require_finite(torch.isfinite(logits).all())
        return logits


def generate_text(
    reasoner: Reasoner[Any],
    look_up: Callable[[Tensor], Tensor],
    word_logits: Callable[[Tensor], Tensor],
    prompt: RaggedSequence,
    end: int,
    max_tokens: int,
) -> Tensor:
    """Decode one text greedily.

    Args:
        reasoner: the language model.
        look_up: maps (n,) ids to (n, D) embeddings.
        word_logits: maps (..., D) hidden states to (..., W) logits of the words that it may generate, by their ids.
        prompt: a sequence of one row.
        end: id that ends the text.
        max_tokens: longest text, in ids.

    Returns:
        (L,) int64 ids, including the end.

    Raises:
        PolicyError: every logit of a position is minus infinity, or one is not a number.
        ContractError: the sequence is longer than the positions that the model knows.
    """
    padded = prompt.padded_left()
    embeds = padded.embeds
    cache = reasoner.start(padded, embeds.shape[1] + max_tokens - 1)
    said: list[Tensor] = []
    while True:
        best = word_logits(reasoner.read(embeds, cache, keep=1))[:, 0].max(dim=-1)  # of (1, W)
        require_finite(torch.isfinite(best.values).all())  # a maximum over a NaN is NaN
        said.append(best.indices)
        if len(said) == max_tokens or int(said[-1]) == end:
            return torch.cat(said)
        cache.filled += embeds.shape[1]
        embeds = look_up(said[-1])[None]


def after_prefixes(prefixes: Sequence[Tensor], said: Tensor, count: int) -> Tensor:
    """Return (B, count) ids: B prefixes, each followed by its row of `said`, whose last tokens may not be needed."""
    return torch.stack([torch.cat([p, row])[:count] for p, row in zip(prefixes, said, strict=True)])


def capped(logits: Tensor, soft_cap: float | None) -> Tensor:
    """Return the logits after a soft cap, if there is one."""
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


OPEN, SETTLED, BROKEN = 0, 1, 2
"""Outcomes of a pass: a token changed, none changed, a logit is not finite."""


def outcome(said: Tensor, guess: Tensor, finite: Tensor) -> Tensor:
    """Return the () int64 outcome of a pass over (B, n) guessed tokens that said (B, n + 1), on their device."""
    return torch.where(finite, (said[:, :-1] == guess).all(), BROKEN)


def is_settled(outcome: Tensor) -> bool:
    """Read an outcome: whether no token changed. Raises PolicyError for BROKEN."""
    read = int(outcome)
    if read == BROKEN:
        raise PolicyError(NOT_FINITE)
    return read == SETTLED


def require_finite(finite: Tensor) -> None:
    """Raise PolicyError unless the () bool is true."""
    if not finite:
        raise PolicyError(NOT_FINITE)
