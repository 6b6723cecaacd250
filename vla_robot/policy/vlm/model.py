"""A vision-language model of transformers as one of ours: its own towers and language model, our sequence and masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla import layout
from vla_robot.policy.vla.engine.norms import fuse_pointwise, join_norms
from vla_robot.policy.vla.engine.quantise import arriving, converter, linears, move_the_rest, quantise_linears
from vla_robot.policy.vla.heads.build import AnyHead, new_head
from vla_robot.policy.vla.heads.prompted import KeysValues
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.policy.vla.reason.text_reasoner import TextReasoner
from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vlm.config import VLMConfig
from vla_robot.policy.vlm.layout import Layout, Place


class TransformersModel(VLAModel[VLMConfig]):
    """A model of transformers with action tokens, and a token for the arm's state.

    Attributes:
        vlm: transformers' own module, with its names.
        layout: beginning of every row.
        proprio_projector: maps the state to a token; None for a policy that does not read it.
        is_fixed: whether weights stay as they are, so that what depends on them alone is kept; see `fix`.
    """

    HEAD = "vlm.lm_head"
    layout_ids: Tensor
    is_fixed = False

    def __init__(self, vlm: PreTrainedModel, config: VLMConfig, layout: Layout) -> None:
        """
        Args:
            vlm: with a head over the vocabulary.
            config: sizes and statistics.
            layout: beginning of every row.
        """
        super().__init__()
        self.config = config
        self.vlm: Any = vlm
        self.layout = layout
        ids = layout.ids.to(vlm.device)
        self.register_buffer("layout_ids", ids, persistent=False)  # moves with the weights
        width = self._text.config.hidden_size
        dim = config.proprio_dim
        self.proprio_projector = None if dim is None else ProprioProjector(dim, width)
        self.action_head = self._new_head()
        self.soft_cap = getattr(self._text.config, "final_logit_softcapping", None)

    def _new_head(self) -> AnyHead | None:
        """Return the head that the configuration names. Raises CheckpointError if the masks do not allow it."""
        head = self.config.head
        if head is not None and head.kind == "l1" and not self.mask_rule().blocks_in_full:
            raise CheckpointError(
                f"{type(self).__name__}'s full-attention layers are causal, so that an answer's tokens cannot see each "
                'other, which the head "l1" needs. Take a [codec], or another family.'
            )
        return new_head(head, self.config.chunk, self._text.config)

    def fix(self, device: torch.device, quantise: str | None = None, fuse: bool = False) -> None:
        """Prepare for acting alone: weights stay as they are, and matrices lie as products read them fastest.

        Args:
            device: where it acts, and where the model is, unless matrices are to be quantised on their way there.
            quantise: "fp8", "int8" or "int4": matrices get fewer bits; embeddings, norms and heads stay.
            fuse: compile norms and gates, and the rounding of activations for fp8.

        Raises:
            PolicyError, MissingDependencyError: as `require_quantiser`.
        """
        self.is_fixed = True
        if fuse:
            fuse_pointwise(self.vlm)
        if quantise is not None:
            parts = linears(self.vlm) + linears(self.proprio_projector)
            layers = (layer for layer in parts if layer is not self.vlm.lm_head)
            quantise_linears(layers, arriving(converter(quantise, device, fuse), device))
            move_the_rest(self, device)
        elif layout.is_for(self.weight.dtype, self.weight.device):
            layout.store_by_columns(self, self.vlm.lm_head)
            join_norms(self.vlm)  # those that are not fused

    @property
    def constant(self) -> int:
        """Columns at the beginning of every row whose keys and values are computed once; 0 while weights may change."""
        return self.layout.beginning if self.is_fixed else 0

    def arrange(self, pixels: Tensor, embeds: Tensor, prompts: Tensor) -> RaggedSequence:
        return RaggedSequence(embeds, prompts, constant=self.constant)

    @abstractmethod
    def mask_rule(self) -> MaskRule:
        """Return the attention rule of the language model's layers."""

    def beside(self) -> Callable[[Tensor], Mapping[str, Any]] | None:
        """Return how columns of embeddings beyond the language model's width are read; None without such columns."""
        return None

    @abstractmethod
    def tower_layers(self) -> Sequence[nn.Module]:
        """Return the blocks of the vision tower."""

    @abstractmethod
    def connect(self, features: Tensor) -> list[Tensor]:
        """Return each image's (B, P, D) tokens of (B, N * P, Dv) features."""

    @abstractmethod
    def tokens_of(self, height: int, width: int) -> int:
        """Return the tokens of an image that has this size after resizing [px]."""

    @property
    def image_tokens(self) -> int:
        return self.layout.parts.count(Place.IMAGE) * self.tokens_of(*self.config.frame)

    @property
    def _text(self) -> Any:
        return self.vlm.model.language_model

    @property
    def weight(self) -> Tensor:
        return self.vlm.lm_head.weight

    def pixel_shape(self) -> tuple[int, ...]:
        return self.config.num_images, 3, *self.config.frame

    def align(self, features: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        token = None
        if self.proprio_projector is not None:
            assert state is not None
            token = self.state_token(state)
        return self.layout.assemble(
            self.layout_ids, self.look_up, self.connect(features), token, self.look_up(input_ids)
        )

    def state_token(self, state: Tensor) -> Tensor:
        """Return the (B, 1, D) embedding of a (B, proprio_dim) state."""
        assert self.proprio_projector is not None
        token = self.proprio_projector(state)
        return pad(token, (0, self.width - token.shape[-1]))  # nothing in columns beside its own

    @property
    def width(self) -> int:
        """Columns of an embedding, those beside the language model's own included."""
        return self._text.config.hidden_size

    def reasoner(self) -> TextReasoner:
        return TextReasoner(self._text, self.mask_rule(), self.first_position, self.beside())

    def hidden(self, rows: RaggedSequence) -> Tensor:
        return self.reasoner().whole(rows)

    def memory(self, rows: RaggedSequence) -> KeysValues:
        return self.reasoner().keys_values(rows)

    def look_up(self, ids: Tensor) -> Tensor:
        return self.vlm.get_input_embeddings()(ids)

    @property
    def head(self) -> Tensor:
        return self.vlm.lm_head.weight.detach()

    def layers(self) -> list[nn.Module]:
        return [*self.tower_layers(), *self._text.layers]
