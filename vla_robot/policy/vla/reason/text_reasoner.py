"""Reason: transformers' own text module over a cache of fixed slots, with explicit masks and positions.

Use of the slots for one observation:

    slots   0 .. S-1                            S .. S+n-1
            [pad][image][text]                  [n tokens of an answer]
    read    the next tokens of every row; their keys and values are written into the slots behind `filled`

`filled` slots stay. Tokens after them are a draft: other tokens may be read into the same slots.

No library default is used: PaliGemma without an explicit mask attends to later tokens of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.sequence.columns import at_columns, put_at
from vla_robot.policy.vla.sequence.masks import FULL, SLIDING, MaskRule, additive
from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence, next_position

type KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a layer, each (B, Hkv, slots, hd)."""


class SlotCache(Cache):
    """Preallocated keys and values, in the form that transformers' modules update.

    Attributes:
        filled: number of slots whose keys and values stay.
        start: first slot that is written next.
        masks: kind of layer -> (B or 1, 1, slots, slots) mask, bool or additive.
        positions: (B or 1, slots) or (3, B, slots) int64 positions.
    """

    def __init__(
        self, layers: int, masks: Mapping[str, Tensor], positions: Tensor, known: Mapping[int, KeysValues] | None = None
    ) -> None:
        """
        Args:
            layers: number of layers.
            masks: as the attribute.
            positions: as the attribute.
            known: layer -> keys and values, (1, Hkv, n, hd) each, of the first n slots of every row.
        """
        super().__init__(layers=[])
        self.filled = 0
        self.masks = masks
        self.positions = positions
        self._known = known or {}
        self._memory: list[KeysValues | None] = [None] * layers
        self.start = 0

    @property
    def known(self) -> int:
        """Slots at the beginning whose keys and values were there before anything was read."""
        return next((keys.shape[2] for keys, _ in self._known.values()), 0)

    @property
    def content(self) -> dict[int, KeysValues]:
        """Layer -> keys and values, (B, Hkv, slots, hd) each; layers that store none are left out."""
        return {layer: stored for layer, stored in enumerate(self._memory) if stored is not None}

    def of_rows(self, rows: Tensor) -> SlotCache:
        """See `Slots`."""
        masks = {kind: mask if len(mask) == 1 else mask[rows] for kind, mask in self.masks.items()}
        places = self.positions if self.positions.shape[-2] == 1 else self.positions.index_select(-2, rows)
        part = SlotCache(len(self._memory), masks, places)
        part.filled = self.filled
        part._memory = [None if layer is None else (layer[0][rows], layer[1][rows]) for layer in self._memory]
        return part

    def put_rows(self, rows: Tensor, part: SlotCache) -> None:
        """See `Slots`."""
        for layer, (keys, values) in part.content.items():
            stored = self._memory[layer]
            assert stored is not None
            stored[0][rows], stored[1][rows] = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (B, Hkv, n, hd) of n slots from `start` on; return (B, Hkv, start + n, hd) of all so far."""
        keys, values = self._memory[layer_idx] or self._allocate(key_states, value_states, layer_idx)
        start, end = self.start, self.start + key_states.shape[2]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def _allocate(self, key: Tensor, value: Tensor, layer: int) -> KeysValues:
        slots = self.positions.shape[-1]
        keys, values = (x.new_empty(*x.shape[:2], slots, x.shape[3]) for x in (key, value))
        if layer in self._known:
            known_keys, known_values = self._known[layer]
            keys[:, :, : self.known], values[:, :, : self.known] = known_keys, known_values
        self._memory[layer] = keys, values
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start


class RowCache(SlotCache):
    """Keys and values of whole rows; tokens that are read later replace those in their slots.

    Attributes:
        slots: (B, n) int64 slots of the next tokens; None while whole rows are read.
    """

    slots: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of each layer in turn, each (B, Hkv, S, hd)."""
        return [tensor for layer in self._memory if layer is not None for tensor in layer]

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Take over keys and values in the order of `tensors`."""
        self._memory[:] = list(zip(tensors[::2], tensors[1::2], strict=True))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (B, Hkv, n, hd) of `slots`, or of all; return (B, Hkv, S, hd) of all."""
        if self.slots is None:
            self._memory[layer_idx] = key_states.contiguous(), value_states.contiguous()
        memory = self._memory[layer_idx]
        assert memory is not None
        if self.slots is not None:
            put_at(memory[0], self.slots, key_states)
            put_at(memory[1], self.slots, value_states)
        return memory


class TextReasoner:
    """A text module of transformers (Llama, Gemma, Qwen2, Qwen2-VL ...) as a reasoner."""

    def __init__(
        self,
        text: PreTrainedModel,
        rule: MaskRule,
        first_position: int = 0,
        beside: Callable[[Tensor], Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            text: the module without its head.
            rule: attention rule of its layers.
            first_position: position of a row's first token; PaliGemma counts from 1.
            beside: maps the (B, n, E) columns of embeddings beyond the module's width, which its later layers read
                (Qwen3-VL's and Gemma 4's), to arguments of the module.
        """
        self._text = text
        self._config: Any = text.config
        self._rule = rule
        self._first_position = first_position
        self._beside = beside
        self._constants: dict[int, Mapping[int, KeysValues]] = {}
        # Attention in plain torch adds its mask to the scores, so a bool mask would be wrong without an error.
        self._adds_mask = self._config._attn_implementation == "eager"
        self._by_kind = SLIDING in (getattr(self._config, "layer_types", None) or ())

    def start(self, prompt: PaddedSequence, slots: int) -> SlotCache:
        """See `Reasoner`."""
        self._require_positions(slots)
        masks, positions = self._masks(prompt, slots), self._positions(prompt, slots)
        known = self._constant(prompt.embeds, prompt.constant, masks, positions)
        return SlotCache(self._config.num_hidden_layers, masks, positions, known)

    def read(self, embeds: Tensor, cache: SlotCache, keep: int) -> Tensor:
        """See `Reasoner`. Tokens at the beginning that the cache knows are not read again."""
        known = 0 if cache.filled else cache.known
        cache.start, end = cache.filled + known, cache.filled + embeds.shape[1]
        masks = {kind: mask[..., cache.start : end, :end] for kind, mask in cache.masks.items()}
        positions = cache.positions[..., cache.start : end]
        return self._run(embeds[:, known:], masks, positions, past_key_values=cache, use_cache=True)[:, -keep:]

    def read_rows(self, rows: RaggedSequence, wanted: Tensor) -> tuple[Tensor, RowCache]:
        """See `Reasoner`. Raises ContractError as `start`."""
        S = rows.embeds.shape[1]
        self._require_positions(S)
        cache = self._row_cache(rows)
        hidden = self._run(rows.embeds, cache.masks, cache.positions, past_key_values=cache, use_cache=True)
        return at_columns(hidden, wanted), cache

    def memory(self, rows: RaggedSequence, tensors: Sequence[Tensor]) -> RowCache:
        """See `Reasoner`."""
        cache = self._row_cache(rows)
        cache.fill(tensors)
        return cache

    def _row_cache(self, rows: RaggedSequence) -> RowCache:
        S = rows.embeds.shape[1]
        prompt = PaddedSequence(rows.embeds, None, rows.blocks, rows.positions)
        return RowCache(self._config.num_hidden_layers, self._masks(prompt, S), self._positions(prompt, S))

    def read_at(self, embeds: Tensor, slots: Tensor, memory: RowCache) -> Tensor:
        """See `Reasoner`."""
        B = len(slots)
        memory.slots = slots
        masks = {kind: at_columns(mask.expand(B, -1, -1, -1), slots) for kind, mask in memory.masks.items()}
        positions = memory.positions.expand(*memory.positions.shape[:-2], B, -1)
        positions = positions.gather(-1, slots.expand(*positions.shape[:-2], -1, -1))
        return self._run(embeds, masks, positions, past_key_values=memory, use_cache=True)

    def keys_values(self, rows: RaggedSequence) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of whole rows by layer, (B, Hkv, S, hd); gradients flow through them."""
        cache = self._row_cache(rows)
        self._run(rows.embeds, cache.masks, cache.positions, past_key_values=cache, use_cache=True)
        return list(zip(cache.tensors[::2], cache.tensors[1::2], strict=True))

    def whole(self, rows: RaggedSequence) -> Tensor:
        """Return the (B, S, D) normed hidden states of whole rows without a cache, for training."""
        S = rows.embeds.shape[1]
        prompt = PaddedSequence(rows.embeds, None, rows.blocks, rows.positions)
        return self._run(rows.embeds, self._masks(prompt, S), self._positions(prompt, S), use_cache=False)

    def _constant(
        self, embeds: Tensor, columns: int, masks: Mapping[str, Tensor], positions: Tensor
    ) -> Mapping[int, KeysValues]:
        """Return keys and values of the first columns, which are the same in every batch: they are computed once."""
        if columns and columns not in self._constants:
            first = {kind: mask[:1, :, :columns, :columns] for kind, mask in masks.items()}
            places = positions[..., :1, :columns]
            cache = SlotCache(self._config.num_hidden_layers, first, places)
            self._run(embeds[:1, :columns], first, places, past_key_values=cache, use_cache=True)
            self._constants = {columns: cache.content}
        return self._constants[columns] if columns else {}

    def _require_positions(self, slots: int) -> None:
        known = self._config.max_position_embeddings
        if slots > known:
            raise ContractError(
                f"the sequence has {slots} tokens, but the language model has {known} positions; "
                "use a shorter instruction or fewer cameras."
            )

    def _run(self, embeds: Tensor, masks: Mapping[str, Tensor], positions: Tensor, **others: Any) -> Tensor:
        mask = masks if self._by_kind else masks[FULL]
        if self._beside is not None:
            width = self._config.hidden_size
            embeds, more = embeds[..., :width], embeds[..., width:]
            others |= self._beside(more)
        return self._text(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **others).last_hidden_state

    def _masks(self, prompt: PaddedSequence, slots: int) -> dict[str, Tensor]:
        masks = self._rule.visible(slots, prompt.padding, prompt.blocks, prompt.embeds.device)
        if not self._adds_mask:
            return masks
        return {kind: additive(mask, prompt.embeds.dtype) for kind, mask in masks.items()}

    def _positions(self, prompt: PaddedSequence, slots: int) -> Tensor:
        """Return (B or 1, slots) or, if the prompt has positions, (3, B, slots); those of the answer count on."""
        S, device = prompt.embeds.shape[1], prompt.embeds.device
        slot = torch.arange(slots, device=device)
        if prompt.positions is None:
            padding = 0 if prompt.padding is None else prompt.padding[:, None]
            return (slot - padding).clamp(min=0).reshape(-1, slots) + self._first_position
        after = next_position(prompt.positions)[:, None, None] + torch.arange(slots - S, device=device)
        return torch.cat([prompt.positions, after.expand(-1, 3, -1)], dim=2).movedim(1, 0)
