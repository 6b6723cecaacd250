"""Generate: greedy decoding of as many tokens as an answer has, over the action rows of the vocabulary only.

The reference decodes over the whole vocabulary and silently turns a word into an extreme action; here the model cannot
answer a word. A codec's grammar further limits each token to the rows that may follow those before it.

Greedy decoding runs the model once for every token. One pass over a guess, however, gives the model's next token after
each of its tokens, and a token whose predecessors were guessed right is the one that greedy decoding gives:

    guess            0    0    0    0    0    0        read together with the prompt
    the model says   513  609  640  640  640  640  512    513 is right, the others follow a wrong token
    guess            513  609  640  640  640  640        read again, in the same slots
    the model says   513  609  767  640  640  640  512    up to 767 right
    guess            513  609  767  640  640  640
    the model says   513  609  767  640  640  640  512    nothing changed: all of them are right

Each pass makes at least one more token right, so that there are never more passes than tokens; a policy whose numbers
hardly depend on each other needs two. A grammar changes nothing of that, since the state after right tokens is right.
This is Jacobi iteration (Song et al. 2021, arXiv 2002.03629; for VLA policies PD-VLA, arXiv 2503.02310), and it is
exact: the first guess changes the time, never the answer. The logits of the last pass are those of greedy decoding as
well, so that their entropy tells how unsure the model was of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from vla_robot.core.errors import PolicyError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.rows import BEHIND, NOT_FINITE
from vla_robot.policy.vla.reason.answer import Answer, entropy_of
from vla_robot.policy.vla.reason.grammar_steps import GrammarSteps
from vla_robot.policy.vla.reason.reasoner import Reasoner, Slots
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence


@dataclass(frozen=True)
class Draft:
    """An action that is being corrected towards greedy decoding's.

    Attributes:
        guess: (B, n) tokens that were read, as rows of the action vocabulary.
        said: (B, n + 1) tokens: the model's next token before the guess and after each token of it.
        logits: (B, n + 1, A) logits of these next tokens, minus infinity for rows that the grammar does not allow.
        finite: () bool, whether every logit so far was finite.
        cache: keys and values of everything before the guess.
        state: (B,) int64 state of the grammar before the first token; None without a grammar.
    """

    guess: Tensor
    said: Tensor
    logits: Tensor
    finite: Tensor
    cache: Slots
    state: Tensor | None = None

    @property
    def settled(self) -> bool:
        """Whether the model's tokens are those guessed. Waits for the device, once. Raises PolicyError as `tokens`."""
        return is_settled(outcome(self.said, self.guess, self.finite))

    @property
    def open_rows(self) -> Tensor:
        """(n,) int64 rows whose tokens are not those guessed. Waits for the device."""
        return (self.said[:, :-1] != self.guess).any(dim=1).nonzero()[:, 0]


MOST_DRAFTED = 1024
"""Most tokens that are guessed together before any is known."""

type Corrects = Callable[[Draft], Draft]


class Generator:
    """Decodes action tokens greedily."""

    def __init__(
        self,
        reasoner: Reasoner[Any],
        embeddings: Tensor,
        head: Tensor,
        codec: ActionCodec,
        soft_cap: float | None = None,
    ) -> None:
        """
        Args:
            reasoner: the language model.
            embeddings: (A, D) embeddings of the codec's rows.
            head: (A, D) output rows of the codec's rows.
            codec: the rows, and which of them may follow each other.
            soft_cap: turns a logit x into soft_cap * tanh(x / soft_cap), as Gemma 2 and 4 do.
        """
        self._reasoner = reasoner
        self._codec = codec
        self._embeddings = embeddings
        self._head = head
        self._guess = torch.from_numpy(codec.guess(MOST_DRAFTED)).to(head.device)
        self._ids = torch.from_numpy(codec.ids.copy()).to(head.device)
        self._steps = None if codec.grammar is None else GrammarSteps(codec.grammar, head.device)
        self._soft_cap = soft_cap

    def answer(
        self, prompt: RaggedSequence, count: int, stages: StageTimer | None = None, prefixes: Sequence[Tensor] = ()
    ) -> Answer:
        """Return the answers to a prompt. Fewer columns come back if all answers are shorter.

        The given ids are read with the prompt in one pass; greedy decoding continues after them.

        Args:
            prompt: what is answered.
            count: tokens of an answer, including a given prefix.
            stages: times the stages.
            prefixes: empty, or B of (P,) int64 action ids with which the answers begin, P from 0 to `count` - 1.

        Raises:
            ContractError: a prefix is none of the codec's answers.
            PolicyError: a logit is not finite.
        """
        stages = stages or StageTimer()
        if not prefixes:
            return self._greedy(prompt, count, stages, self._at_begin(len(prompt.embeds)))
        given = [self.rows(prefix) for prefix in prefixes]
        longer = prompt.followed_by([self._embeddings[rows] for rows in given])
        left = count - min(map(len, prefixes))
        state = None if self._steps is None else self._steps.after(given)
        return self._greedy(longer, left, stages, state).after(prefixes, count)

    def _greedy(self, prompt: RaggedSequence, count: int, stages: StageTimer, state: Tensor | None) -> Answer:
        action_dim = self.action_dim(count)
        draft = self.begin(prompt.padded_left(), count, min(action_dim, count), state)
        stages.lap("prefill")
        answer = self.complete(draft, count, action_dim, stages)
        stages.lap("decode")
        return answer

    def action_dim(self, count: int) -> int:
        """Return how many tokens of an answer of `count` tokens are drafted together: those of one action."""
        return self._codec.drafted(-(-count // self._codec.chunk))

    def begin(self, prompt: PaddedSequence, count: int, action_dim: int, state: Tensor | None = None) -> Draft:
        """Read a prompt together with the first guess of an action, that the arm stays where it is.

        No value is read here, so that the device never waits and a compiler sees one graph.

        Args:
            prompt: what is answered.
            count: tokens of the whole answer.
            action_dim: tokens of the first action.
            state: (B,) states of the grammar in which the answers go on; None without a grammar.
        """
        embeds = prompt.embeds
        cache = self._reasoner.start(prompt, embeds.shape[1] + count - 1)
        return self._read(embeds, self.first_guess(len(embeds), action_dim - 1), cache, state)

    def first_guess(self, rows: int, tokens: int) -> Tensor:
        """Return (rows, tokens) rows of the action vocabulary: the arm stays where it is."""
        return self._guess[:tokens].expand(rows, -1)

    def look_up(self, said: Tensor) -> Tensor:
        """Return (..., D) embeddings of (...) rows of the action vocabulary."""
        return self._embeddings[said]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (..., A) logits of the codec's rows after (..., D) hidden states."""
        return capped(linear(hidden, self._head), self._soft_cap)

    def say(self, hidden: Tensor, states: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the (B, n) next tokens after (B, n, D) hidden states, their (B, n, A) logits, and () bool whether the
        model's logits are finite.

        `states`: (B, n) states of the grammar before each of these tokens; None without a grammar.
        """
        logits = self.logits(hidden)
        finite = torch.isfinite(logits).all()
        if states is not None:
            assert self._steps is not None
            logits = logits.masked_fill(~self._steps.allowed[states], -torch.inf)
        return logits.argmax(dim=-1), logits, finite

    def correct(self, draft: Draft) -> Draft:
        """Run one more pass whose guess is the model's last answer."""
        guess, cache = draft.said[:, :-1], draft.cache
        states = self._states(draft.state, guess)
        hidden = self._reasoner.read(self.look_up(guess), cache, guess.shape[1])
        said, logits, finite = self.say(hidden, None if states is None else states[:, 1:])
        said, logits = torch.cat([draft.said[:, :1], said], dim=1), torch.cat([draft.logits[:, :1], logits], dim=1)
        return Draft(guess, said, logits, draft.finite & finite, cache, draft.state)

    def complete(
        self, draft: Draft, count: int, action_dim: int, stages: StageTimer, correct: Corrects | None = None
    ) -> Answer:
        """Correct an action until it is settled, then each following action of the answer, until all answers end.

        Args:
            draft: draft of the first action.
            count: tokens of the whole answer.
            action_dim: tokens of an action.
            stages: counts the passes.
            correct: compiled form of `correct` for the first action; later actions are in other slots, which would each
                be compiled anew.

        Returns:
            Answers of up to `count` tokens.

        Raises:
            PolicyError: a logit is not finite.
        """
        begun = draft.state
        actions = [self._settle(draft, stages, correct)]
        for done in range(action_dim, count, action_dim):
            state = self._state_after(draft.state, actions[-1].said)
            if self._all_end(state):
                break
            draft = self._next(actions[-1].said, draft.cache, min(action_dim, count - done), state)
            stages.passes += 1
            actions.append(self._settle(draft, stages, None))
        said = torch.cat([action.said for action in actions], dim=1)
        entropy = entropy_of(torch.cat([action.logits for action in actions], dim=1))
        behind = self._behind_the_end(begun, said)
        return Answer(self.ids(said).masked_fill(behind, BEHIND), entropy.masked_fill(behind, torch.nan))

    def ids(self, said: Tensor) -> Tensor:
        """Return the token ids of (...) rows of the action vocabulary."""
        return self._ids[said]

    def rows(self, ids: Tensor) -> Tensor:
        """Return (...) rows of the action vocabulary of (...) ids. Raises ContractError for an id that is no row."""
        return torch.from_numpy(self.rows_of(ids.cpu().numpy())).to(ids.device)

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Do the same as `rows` in main memory."""
        return self._codec.rows(ids)

    def _settle(self, draft: Draft, stages: StageTimer, correct: Corrects | None) -> Draft:
        for _ in range(draft.guess.shape[1]):
            if draft.settled:
                return draft
            # On a GPU a row costs less than the wait for which rows are open.
            few_help = correct is None and draft.said.device.type == "cpu"
            if few_help and len(still := draft.open_rows) <= len(draft.guess) // 2:
                return self._settle_rows(draft, still, stages)
            draft = (correct or self.correct)(draft)
            stages.passes += 1
        require_finite(draft.finite)  # so many passes made all tokens right
        return draft

    def _settle_rows(self, draft: Draft, rows: Tensor, stages: StageTimer) -> Draft:
        """Settle a draft of which only some rows, (n,) int64, are open: the others are not read again."""
        part = draft.cache.of_rows(rows)
        state = None if draft.state is None else draft.state[rows]
        fewer = Draft(draft.guess[rows], draft.said[rows], draft.logits[rows], draft.finite, part, state)
        settled = self._settle(fewer, stages, None)
        said = draft.said.index_copy(0, rows, settled.said)
        logits = draft.logits.index_copy(0, rows, settled.logits)
        draft.cache.put_rows(rows, part)
        return replace(draft, said=said, logits=logits)

    def _next(self, action: Tensor, cache: Slots, tokens: int, state: Tensor | None) -> Draft:
        """Return the draft after (B, n) settled tokens, guessing that the arm does the same again."""
        cache.filled += action.shape[1] - 1  # the last token was generated, and not read yet
        return self._read(self._embeddings[action[:, -1:]], action[:, : tokens - 1], cache, state)

    def _read(self, before: Tensor, guess: Tensor, cache: Slots, state: Tensor | None) -> Draft:
        """Read (B, S, D) certain embeddings and (B, n) guessed tokens in one pass."""
        embeds = torch.cat([before, self._embeddings[guess]], dim=1)
        hidden = self._reasoner.read(embeds, cache, guess.shape[1] + 1)
        said, logits, finite = self.say(hidden, self._states(state, guess))
        cache.filled += before.shape[1]
        return Draft(guess, said, logits, finite, cache, state)

    def _at_begin(self, rows: int) -> Tensor | None:
        return None if self._steps is None else self._steps.begin(rows)

    def _states(self, state: Tensor | None, guess: Tensor) -> Tensor | None:
        """Return (B, n + 1) states before and after each of (B, n) guessed tokens."""
        return None if state is None or self._steps is None else self._steps.along(state, guess)

    def _state_after(self, state: Tensor | None, said: Tensor) -> Tensor | None:
        states = self._states(state, said)
        return None if states is None else states[:, -1]

    def _all_end(self, state: Tensor | None) -> bool:
        return state is not None and self._steps is not None and bool((state == self._steps.done).all())

    def _behind_the_end(self, begun: Tensor | None, said: Tensor) -> Tensor:
        """Return (B, n) or () bool: whether a token only fills its row behind the end of the answer."""
        states = self._states(begun, said)
        if states is None or self._steps is None:
            return torch.zeros((), dtype=torch.bool, device=said.device)
        return states[:, :-1] == self._steps.done

    def first_logits(self, prompt: RaggedSequence) -> Tensor:
        """Return (B, A) logits of the first generated action token. Raises PolicyError like `tokens`."""
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
