"""Prompts of an exported folder: the family's template as data, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.inputs.prompts import INSTRUCTION, PromptForm, Prompts, read_tokenizer


class ExportedPrompts(Prompts):
    """Prompts of instructions; questions are not exported."""

    def __init__(self, tokenizer: Tokenizer, form: PromptForm) -> None:
        super().__init__(tokenizer)
        self._form = form
        self.eos = form.eos

    @classmethod
    def read(cls, folder: Path, form: PromptForm) -> ExportedPrompts:
        """Read `folder/tokenizer.json`. Raises CheckpointError if it is missing or not a tokenizer."""
        return cls(read_tokenizer(folder), form)

    @property
    def form(self) -> PromptForm:
        return self._form

    def action_text(self, instruction: str) -> str:
        return self._form.text.replace(INSTRUCTION, instruction)

    def question_text(self, question: str) -> str:
        """Raise ContractError: an exported policy has no words."""
        raise ContractError("an exported policy answers with actions only; ask the policy that it was made of.")

    def prompt(self, text: str) -> NDArray[np.int64]:
        ids = [*self._form.first, *self.ids(text)]
        last = list(self._form.last)
        return np.array(ids if ids[len(ids) - len(last) :] == last else ids + last, dtype=np.int64)
