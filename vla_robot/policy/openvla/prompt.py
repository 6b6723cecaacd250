"""Prompt: turns an instruction or a question into token ids.

    [BOS] In: What action should the robot take to lift the red cube?\\nOut: [space]   -> then 7 action tokens, then EOS
    [BOS] In: which cube is left?\\nOut: [space]                                       -> then a text, then EOS

MiniVLA's language model is Qwen2.5, with its chat template; patches follow the first token in both:

    <|im_start|> system \\n You are Qwen ... <|im_start|> assistant \\n   -> then 7 action tokens, then <|im_end|>

The trailing space token (id 29871 in Llama's vocabulary) stands in every training text between "Out:" and the first
action; a prompt without it is one that the model was never trained on.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/datasets.py and extern/hf/modeling_prismatic.py;
Stanford-ILIAD/openvla-mini, prismatic/models/backbones/llm/prompting/qwen_prompter.py.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.vla.inputs.prompts import (
    ASKED_FOR_ACTION,
    INSTRUCTION,
    SPACE,
    PromptForm,
    Prompts,
    read_tokenizer,
)

TEMPLATE = f"In: {ASKED_FOR_ACTION}\nOut:"
TEMPLATE_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the user's questions. USER: {ASKED_FOR_ACTION} ASSISTANT:"
)
"""Template of openvla-v01-7b, whose language model is Vicuna. The reference checks the folder's name for "v01"."""
TEMPLATE_QWEN = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_CONTROL = ("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control tokens of a new tokenizer; the last two are in every prompt."""
UNIVLA_TOKEN = "<ACT_0>"
"""First of the tokens that UniVLA adds to OpenVLA's tokenizer."""


def finish(input_ids: NDArray[np.integer], space: int) -> NDArray[np.int64]:
    """Return (L,) ids that end with the space token, which is added if it is missing.

    Raises:
        ContractError: the ids are not one-dimensional integers, or empty.
    """
    ids = _whole(input_ids)
    return ids if ids[-1] == space else np.append(ids, space)


def _whole(input_ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return (L,) int64 ids. Raises ContractError if they are not one-dimensional integers, or empty."""
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise ContractError(f"a prompt must be (L,) integer ids, BOS first, got {ids.dtype} of shape {ids.shape}.")
    return ids.astype(np.int64)


class OpenVLAPrompts(Prompts):
    """Prompts of one of OpenVLA's language models."""

    @abstractmethod
    def finish(self, input_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return (L,) ids as the model was trained to go on after them. Raises ContractError as `finish`."""


class PromptTokenizer(OpenVLAPrompts):
    """OpenVLA's prompts: BOS first and the space token last."""

    def __init__(self, tokenizer: Tokenizer, template: str = TEMPLATE) -> None:
        """
        Raises:
            CheckpointError: the tokenizer lacks <s>, </s> or the space token.
        """
        super().__init__(tokenizer)
        self._template = template
        self._question_template = template.replace(ASKED_FOR_ACTION, "{question}")
        self.bos = self.id_of("<s>")
        self.eos = self.id_of("</s>")
        self.space = self.id_of(SPACE)

    @classmethod
    def read(cls, folder: Path, template: str = TEMPLATE) -> PromptTokenizer:
        """Read `folder/tokenizer.json`.

        Raises:
            CheckpointError: it is missing or not a tokenizer, or it is UniVLA's: its folders name the model type
                "openvla", but their answers are latent actions that another decoder turns into motion.
        """
        tokenizer = read_tokenizer(folder)
        if tokenizer.token_to_id(UNIVLA_TOKEN) is not None:
            raise CheckpointError(
                f"{folder} holds a UniVLA, not an OpenVLA: its tokenizer has latent actions ({UNIVLA_TOKEN} ...), "
                "which need UniVLA's own decoder. It is not supported."
            )
        return cls(tokenizer, template)

    @property
    def form(self) -> PromptForm:
        return PromptForm(self._template, (self.bos,), (self.space,), self.eos)

    def action_text(self, instruction: str) -> str:
        return self._template.format(instruction=instruction)

    def question_text(self, question: str) -> str:
        return self._question_template.format(question=question)

    def prompt(self, text: str) -> NDArray[np.int64]:
        return self.finish(np.array([self.bos, *self.ids(text)]))

    def finish(self, input_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        return finish(input_ids, self.space)


class QwenPrompts(OpenVLAPrompts):
    """MiniVLA's prompts: Qwen2.5's chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            CheckpointError: the tokenizer lacks <|im_start|> or <|im_end|>.
        """
        super().__init__(tokenizer)
        self.id_of(QWEN_CONTROL[-2])
        self.eos = self.id_of(QWEN_CONTROL[-1])

    @property
    def form(self) -> PromptForm:
        return PromptForm(self.action_text(INSTRUCTION), (), (), self.eos)

    def action_text(self, instruction: str) -> str:
        return self.question_text(ASKED_FOR_ACTION.format(instruction=instruction))

    def question_text(self, question: str) -> str:
        return TEMPLATE_QWEN.replace("{text}", question)

    def prompt(self, text: str) -> NDArray[np.int64]:
        return self.finish(np.array(self.ids(text)))

    def finish(self, input_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        return _whole(input_ids)
