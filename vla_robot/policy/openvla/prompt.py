"""Prompt: turns an instruction or a question into token ids.

    [BOS] In: What action should the robot take to lift the red cube?\\nOut: [space]   -> then 7 action tokens, then EOS
    [BOS] In: which cube is left?\\nOut: [space]                                       -> then a text, then EOS

The trailing space token (id 29871 in Llama's vocabulary) stands in every training text between "Out:" and the first
action; a prompt without it is one that the model was never trained on.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/datasets.py and extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError, ContractError

ASKED_FOR_ACTION = "What action should the robot take to {instruction}?"
TEMPLATE = f"In: {ASKED_FOR_ACTION}\nOut:"
TEMPLATE_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the user's questions. USER: {ASKED_FOR_ACTION} ASSISTANT:"
)
"""Template of openvla-v01-7b, whose language model is Vicuna. The reference checks the folder's name for "v01"."""
SPACE = "\u2581"
"""SentencePiece's symbol for a space, a token of its own."""


def finish(input_ids: NDArray[np.integer], space: int) -> NDArray[np.int64]:
    """Return (L,) ids that end with the space token, which is added if it is missing.

    Raises:
        ContractError: the ids are not one-dimensional integers, or empty.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise ContractError(f"a prompt must be (L,) integer ids, BOS first, got {ids.dtype} of shape {ids.shape}.")
    ids = ids.astype(np.int64)
    return ids if ids[-1] == space else np.append(ids, space)


class PromptTokenizer:
    """Turns instructions into ids; each instruction is tokenised once."""

    def __init__(self, tokenizer: Tokenizer, template: str = TEMPLATE) -> None:
        """
        Raises:
            CheckpointError: the tokenizer lacks <s>, </s> or the space token.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._question_template = template.replace(ASKED_FOR_ACTION, "{question}")
        self.bos = self._id("<s>")
        self.eos = self._id("</s>")
        self.space = self._id(SPACE)
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)

    @classmethod
    def read(cls, folder: Path, template: str = TEMPLATE) -> PromptTokenizer:
        """Read `folder/tokenizer.json`. Raises CheckpointError if it is missing or not a tokenizer."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a checkpoint folder needs it to read instructions.")
        try:
            return cls(Tokenizer.from_file(str(path)), template)
        except CheckpointError:
            raise
        except Exception as error:  # the Rust library raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer: {error}.") from error

    def __call__(self, instruction: str) -> NDArray[np.int64]:
        """Return (L,) int64 prompt ids, BOS first and the space token last.

        Raises:
            ContractError: the instruction is empty.
        """
        return self._encode(instruction)

    def question(self, question: str) -> NDArray[np.int64]:
        """Return (L,) int64 ids of a prompt with this question, whose case is kept.

        Raises:
            ContractError: the question is empty.
        """
        if not question.strip():
            raise ContractError("the question is empty; ask something about the image, e.g. 'which cube is left?'.")
        return self._prompt(self._question_template.format(question=question))

    def answer(self, answer: str) -> NDArray[np.int64]:
        """Return (L,) int64 ids of a text after "Out: ", including the end token."""
        return np.array([*self._ids(answer), self.eos], dtype=np.int64)

    def words(self, ids: NDArray[np.int64]) -> str:
        """Return the text of an answer's ids, up to its end token."""
        said = ids.tolist()
        return self._tokenizer.decode(said[: said.index(self.eos)] if self.eos in said else said).strip()

    def finish(self, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `finish` of the ids with this tokenizer's space token."""
        return finish(input_ids, self.space)

    def text(self, instruction: str) -> str:
        """Return the prompt of an instruction, in lower case and otherwise unchanged, as in training.

        Raises:
            ContractError: the instruction is empty.
        """
        if not instruction.replace(".", "").strip():
            raise ContractError("the instruction is empty; say what the robot should do, e.g. 'lift the red cube'.")
        return self._template.format(instruction=instruction.lower())

    def _encode_uncached(self, instruction: str) -> NDArray[np.int64]:
        prompt = self._prompt(self.text(instruction))
        prompt.setflags(write=False)  # the cache hands out the same array again
        return prompt

    def _prompt(self, text: str) -> NDArray[np.int64]:
        return self.finish(np.array([self.bos, *self._ids(text)], dtype=np.int64))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}, which the prompt needs.")
        return found
