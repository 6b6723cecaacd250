"""Prompts: turn an instruction or a question into token ids, and the ids of an answer into words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.language.boxes import LOC_TOKENS, SEG_TOKENS
from vla_robot.recipe.finetune import Architecture

ASKED_FOR_ACTION = "What action should the robot take to {instruction}?"
"""OpenVLA's question, in which an instruction is put to every family."""
SPACE = "\u2581"
"""SentencePiece's symbol for a space, a token of its own."""


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `folder/tokenizer.json`. Raises CheckpointError if it is missing or not a tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it to read instructions.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}.") from error


def train_tokenizer(texts: Iterable[str], vocab: int, control: Sequence[str]) -> Tokenizer:
    """Train a byte-pair tokenizer like Llama's: the space is a token, and unknown characters become bytes.

    Args:
        texts: texts that the merges are learned from; any other text is encoded byte by byte.
        vocab: number of its tokens.
        control: control tokens, which get the first ids; "<unk>" is among them.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[SPACE, *"abcdefghijklmnopqrstuvwxyz"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return tokenizer


def new_tokenizer(architecture: Architecture, texts: Iterable[str], control: Sequence[str]) -> tuple[Tokenizer, int]:
    """Return the tokenizer of a new model and the number of its rows: those of text, then those of places.

    Args:
        architecture: sizes of the model.
        texts: as in `train_tokenizer`.
        control: as in `train_tokenizer`.
    """
    tokenizer = train_tokenizer(texts, architecture.text_vocab, control)
    if not architecture.locations:
        return tokenizer, architecture.text_vocab
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*LOC_TOKENS, *SEG_TOKENS)])
    return tokenizer, architecture.text_vocab + len(LOC_TOKENS) + len(SEG_TOKENS)


INSTRUCTION = "{instruction}"
"""Place of the instruction in a template."""


@dataclass(frozen=True)
class PromptForm:
    """How an instruction becomes ids, as data.

    Attributes:
        text: prompt of an instruction, which replaces `INSTRUCTION` in lower case.
        first: ids before those of the text.
        last: ids after them, unless they are there.
        eos: id that ends an answer.
    """

    text: str
    first: tuple[int, ...]
    last: tuple[int, ...]
    eos: int


class Prompts(ABC):
    """Turns instructions into ids; each instruction is tokenised once.

    Attributes:
        eos: id that ends an answer.
    """

    eos: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)

    @property
    @abstractmethod
    def form(self) -> PromptForm:
        """The prompts of instructions, as data."""

    @abstractmethod
    def action_text(self, instruction: str) -> str:
        """Return the text that asks for an action."""

    @abstractmethod
    def question_text(self, question: str) -> str:
        """Return the text that asks a question."""

    @abstractmethod
    def prompt(self, text: str) -> NDArray[np.int64]:
        """Return (L,) ids of a text from `action_text` or `question_text`."""

    def __call__(self, instruction: str) -> NDArray[np.int64]:
        """Return (L,) int64 prompt ids of an instruction.

        Raises:
            ContractError: the instruction is empty, or holds a control token such as "</s>".
        """
        return self._encode(instruction)

    def text(self, instruction: str) -> str:
        """Return the prompt of an instruction, in lower case and otherwise unchanged, as in training.

        Raises:
            ContractError: as in `__call__`.
        """
        if not instruction.replace(".", "").strip():
            raise ContractError("the instruction is empty; say what the robot should do, e.g. 'lift the red cube'.")
        self._require_plain(instruction, "instruction")
        return self.action_text(instruction.lower())

    def question(self, question: str) -> NDArray[np.int64]:
        """Return (L,) int64 ids of a prompt with this question, whose case is kept.

        Raises:
            ContractError: the question is empty, or holds a control token.
        """
        if not question.strip():
            raise ContractError("the question is empty; ask something about the image, e.g. 'which cube is left?'.")
        self._require_plain(question, "question")
        return self.prompt(self.question_text(question))

    def answer(self, answer: str) -> NDArray[np.int64]:
        """Return (L,) int64 ids of an answer, including the end token."""
        return np.array([*self.ids(answer), self.eos], dtype=np.int64)

    def words(self, ids: NDArray[np.int64]) -> str:
        """Return the text of an answer's ids, up to its end token."""
        said = ids.tolist()
        return self._tokenizer.decode(said[: said.index(self.eos)] if self.eos in said else said).strip()

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without anything added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def locations(self) -> range | None:
        """Return the ids of <loc0000> to <loc1023>; None for a tokenizer without them, or where they lie apart."""
        ids = [self._tokenizer.token_to_id(token) for token in LOC_TOKENS]
        first = ids[0]
        if first is None or ids != list(range(first, first + len(ids))):
            return None
        return range(first, first + len(ids))

    def id_of(self, token: str) -> int:
        """Return the id of a token. Raises CheckpointError if the tokenizer has none."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}, which the prompt needs.")
        return found

    def _encode_uncached(self, instruction: str) -> NDArray[np.int64]:
        prompt = self.prompt(self.text(instruction))
        prompt.setflags(write=False)  # the cache hands out the same array again
        return prompt

    def _require_plain(self, text: str, what: str) -> None:
        """Raise ContractError if a text would become a control token, such as the end of its own turn."""
        for token in self._control:
            if token in text or token in text.lower():
                raise ContractError(f"the {what} holds {token!r}, a control token of this model; write it otherwise.")
