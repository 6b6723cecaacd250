"""A block: the memory of one size of inference, and the four steps that work on it.

    see       pixels --perceive--> features
    begin     features, text, state, given tokens --align--> rows --> tokens that follow a first guess
    correct   the tokens of the last pass are the guess of this one, in the same slots; settled ones stay
    advance   the action is settled; the next one is guessed to be the same

    columns   [BOS][image][text][given][guess]    padding        each row ends where it ends
              [BOS][image][text][text][guess]     padding

After the prompt attention is causal: no token sees the padding behind it, so no mask depends on a length. Each pass
leaves one number, its `outcome`, for the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.reason.generate import SETTLED, Generator, outcome
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.slots.first_pass import PromptTensors, first_pass
from vla_robot.policy.vla.slots.recorded import recorded
from vla_robot.policy.vla.slots.sizes import BlockSize


class Block:
    """Inference of one size. Its steps return nothing; they read and write its tensors.

    Attributes:
        size: the size.
        pixels: (B, N, C, H, W), in the model's precision.
        ids: (B, L) int64 text, padded at the right.
        state: (B, P), or None for a policy without proprioception.
        lengths: (B,) int64 tokens of each text.
        given: (B, G) int64 tokens with which the answers begin; those behind `counts` are unused.
        counts: (B,) int64 given tokens of each row.
        said: (B, D) int64 tokens of the action, as rows of the action vocabulary.
        logits: (B, D, A) logits of these tokens.
        outcome: () int64 of the last pass, see `generate.outcome`.
        steps: "see", "begin", "correct" and "advance", recorded where the device can.
    """

    def __init__(self, size: BlockSize, model: VLAModel[Any], reasoner: Reasoner[Any], generator: Generator) -> None:
        """Raises ContractError if the model has fewer positions than the block has columns."""
        self.size = size
        self._model, self._reasoner, self._generator = model, reasoner, generator
        weight, B, P = model.weight, size.rows, model.config.inputs.proprio_dim
        floats: Any = {"dtype": weight.dtype, "device": weight.device}  # a quantised weight makes no new tensors
        self.pixels = torch.zeros(B, *size.frames, **floats)
        self.ids = torch.full((B, size.text), model.config.pad_token_id, device=weight.device)
        self.state = None if P is None else torch.zeros(B, P, **floats)
        self.lengths = torch.ones_like(self.ids[:, 0])
        self.given = torch.zeros(B, size.given, dtype=torch.int64, device=weight.device)
        self.counts = torch.zeros_like(self.lengths)
        self._features = model.perceive(self.pixels)
        self._begin()  # raises for too many columns
        passes = {"begin": self._begin, "correct": self._correct, "advance": self._advance}
        by_shape = {"see": self._see} if model.perceives_by_shape else {}
        by_shape |= passes if model.reasons_by_shape else {}
        self.steps = {"see": self._see, **passes, **recorded(weight.device, by_shape)}

    def _see(self) -> None:
        self._features.copy_(self._model.perceive(self.pixels))

    def _begin(self) -> None:
        told = (self.given, self.counts) if self.size.given else (None, None)
        fed = PromptTensors(self.pixels, self._features, self.ids, self.lengths, self.state, *told)
        read = first_pass(self._model, self._reasoner, self._generator, self.size, fed)
        self._at, self._memory = read.at, read.memory
        self.said, self.logits, self._finite = self._generator.say(read.hidden)
        self.outcome = outcome(self.said, read.guess, self._finite)

    def _correct(self) -> None:
        guess = self.said[:, :-1].clone()
        said, logits, finite = self._say_at(guess, self._at)
        # A tie of two logits may be decided otherwise by another kernel than the first pass's.
        self.said[:, 1:] = torch.where(self.outcome == SETTLED, self.said[:, 1:], said)
        self.logits[:, 1:] = logits
        self._book(outcome(self.said, guess, finite & self._finite), finite)

    def _advance(self) -> None:
        D = self.size.action_dim
        before = self._at[:, :1] + D - 1  # slot of the action's last token, which was not read yet
        slots = before + torch.arange(D, device=before.device)
        guess = self.said[:, :-1].clone()
        said, logits, finite = self._say_at(torch.cat([self.said[:, -1:], guess], dim=1), slots)
        self._at.add_(D)
        self.said.copy_(said)
        self.logits.copy_(logits)
        self._book(outcome(said, guess, finite & self._finite), finite)

    def _say_at(self, tokens: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self._reasoner.read_at(self._generator.look_up(tokens), slots, self._memory)
        return self._generator.say(hidden)

    def _book(self, result: Tensor, finite: Tensor) -> None:
        self._finite.logical_and_(finite)
        self.outcome.copy_(result)
