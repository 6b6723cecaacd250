"""Prompts of chat models, as templates."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.policy.vla.inputs.prompts import ASKED_FOR_ACTION, INSTRUCTION, PromptForm, Prompts
from vla_robot.policy.vlm.layout import Layout, Place

IMAGE, TEXT = "{image}", "{text}"
CONTROL_TOKEN = re.compile(r"<[^<>{}\s]+>")


@dataclass(frozen=True)
class Template:
    """A family's prompt, in the tokenizer's own control tokens.

    Attributes:
        begin: what stands before the images.
        image: one camera's images, each with its place "{image}".
        after: what stands between images (and state) and the text.
        text: the text, with its place "{text}", up to where the answer begins.
        end: token that ends an answer.
    """

    begin: str = ""
    image: str = IMAGE
    after: str = ""
    text: str = TEXT
    end: str = "<eos>"


class TemplatePrompts(Prompts):
    """Prompts of a template: an instruction is put as OpenVLA's question, a question as it is."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        """
        Raises:
            CheckpointError: the tokenizer lacks a control token of the template, which would become plain text.
        """
        super().__init__(tokenizer)
        self._template = template
        self.eos = self.id_of(template.end)
        for text in (template.begin, template.image, template.after, template.text):
            for token in CONTROL_TOKEN.findall(text):
                self.id_of(token)

    @property
    def form(self) -> PromptForm:
        return PromptForm(self.action_text(INSTRUCTION), (), (), self.eos)

    def action_text(self, instruction: str) -> str:
        return self._template.text.replace(TEXT, ASKED_FOR_ACTION.format(instruction=instruction))

    def question_text(self, question: str) -> str:
        return self._template.text.replace(TEXT, question)

    def prompt(self, text: str) -> NDArray[np.int64]:
        return np.array(self.ids(text), dtype=np.int64)

    def layout(self, cameras: int, reads_state: bool) -> Layout:
        """Return the beginning of every row, for a number of cameras."""
        t = self._template
        before, *behind = (self._part(piece) for piece in t.image.split(IMAGE))
        image = (*before, *(part for piece in behind for part in (Place.IMAGE, *piece)))
        state = (Place.STATE,) if reads_state else ()
        return Layout((*self._part(t.begin), *image * cameras, *state, *self._part(t.after)))

    def _part(self, text: str) -> tuple[tuple[int, ...], ...]:
        return (tuple(self.ids(text)),) if text else ()
