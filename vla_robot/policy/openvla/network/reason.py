"""Reason: a Llama decoder over image, state and text tokens in one sequence.

Training runs transformers' own forward pass. Acting runs `Decoder`: the same weights without what only training needs.
It reads one observation like this:

    slots   0 .. S-1                            S .. S+n-1
            [pad][BOS][patches][state][text]    [n tokens of an answer]
    read    the next tokens of every row: the layers store keys and values, and return hidden states of the last tokens

`filled` slots are final. Tokens beyond them are a draft: other tokens may be read into the same slots again.

Parallel decoding (OpenVLA-OFT) is one `bidirectional` pass instead, without a cache: every token attends to all.

Rows of a batch may have texts of different lengths. They are padded at the left, so that all rows end in one slot and
continue in the same ones; a mask hides the padding, and positions count from BOS. Each row is computed from the same
numbers as alone, but the order of a floating-point sum inside a matrix product may depend on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.pointwise import Pointwise, fused_pointwise
from vla_robot.policy.vla.sequence.columns import at_columns, put_at
from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence


def build_text(config: OpenVLAConfig) -> Any:
    """Build transformers' Llama or Qwen2 of the configured size, randomly initialised.

    Raises:
        CheckpointError: the text configuration is impossible.
    """
    model, settings = _TEXTS[config.text_type]
    try:
        return model(settings(**config.text_config))
    except Exception as error:  # transformers validates in many ways
        raise CheckpointError(f"text_config {config.text_config} does not make a {model.__name__}: {error}.") from error


def build_text_config(config: OpenVLAConfig) -> Any:
    """Return transformers' configuration of the language model, of a model that was built before."""
    return _TEXTS[config.text_type][1](**config.text_config)


_TEXTS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""Matrices of a layer that are multiplied as one, in their order."""


def fused_with(name: str) -> list[str]:
    """Return the names of all parameters that lie in one matrix with this one, including itself."""
    for group in FUSED:
        for member in group:
            if name.endswith(f".{member}.weight"):
                return [name.replace(member, other) for other in group]
    return [name]


@dataclass(frozen=True)
class _Layer:
    """Weights of one decoder layer; `qkv` and `gate_up` are fused so that one product does the work of two or three."""

    qkv: Tensor  # (q + 2 kv, D)
    out: Tensor  # (D, q)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F)
    norm_mlp: Tensor  # (D,)
    norm_after: Tensor  # (D,), the next layer's, or the last norm


@dataclass
class Cache:
    """Keys and values of one batch, preallocated for the prompt and the whole answer.

    Attributes:
        keys, values: one (B, Hkv, slots, hd) per layer.
        visible: (slots, slots) bool, or (B, 1, slots, slots) if rows are padded: whether a query attends to a key.
        padding: (B,) int64 slots at the left that hold no token, or None if no row is padded.
        filled: slots whose keys and values are final.
    """

    keys: list[Tensor]
    values: list[Tensor]
    visible: Tensor
    padding: Tensor | None
    filled: int = 0

    def of_rows(self, rows: Tensor) -> Cache:
        """See `Slots`."""
        keys, values = ([each[rows] for each in tensors] for tensors in (self.keys, self.values))
        if self.padding is None:
            return Cache(keys, values, self.visible, None, self.filled)
        return Cache(keys, values, self.visible[rows], self.padding[rows], self.filled)

    def put_rows(self, rows: Tensor, part: Cache) -> None:
        """See `Slots`."""
        for mine, theirs in zip((*self.keys, *self.values), (*part.keys, *part.values), strict=True):
            mine[rows] = theirs


@dataclass(frozen=True)
class RowMemory:
    """Keys and values of rows that are padded at the right: one (B, Hkv, S, hd) each per layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of each layer in turn."""
        return [tensor for layer in zip(self.keys, self.values, strict=True) for tensor in layer]


class Decoder:
    """Llama decoder for acting only."""

    def __init__(self, llama: LlamaForCausalLM) -> None:
        """Take over the weights of `llama`; its q, k, v and gate, up become views into fused matrices."""
        config: Any = llama.config
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = config.head_dim or config.hidden_size // config.num_attention_heads
        layers: list[Any] = list(llama.model.layers)
        norms: list[Any] = [*(layer.input_layernorm for layer in layers), llama.model.norm]
        self._first_norm, *after = (norm.weight.detach() for norm in norms)
        self._layers = [_fuse_layer(layer, norm) for layer, norm in zip(layers, after, strict=True)]
        device = self._first_norm.device
        self._eps = torch.tensor(config.rms_norm_eps, dtype=torch.float32, device=device)
        self._cos, self._sin = _rope_tables(config, self._head_dim, device)
        self._pointwise = Pointwise()

    def fuse(self, on: bool = True) -> None:
        """Compile the work between matrix products, which makes it one kernel where there were up to seven."""
        self._pointwise = fused_pointwise() if on else Pointwise()

    def convert(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every matrix by another form of it, which `linear` must take; layer by layer, to save memory."""
        for index, layer in enumerate(self._layers):
            self._layers[index] = replace(
                layer,
                qkv=change(layer.qkv),
                out=change(layer.out),
                gate_up=change(layer.gate_up),
                down=change(layer.down),
            )

    def matrices(self) -> list[Tensor]:
        """Return all matrices of all layers, in their present form."""
        return [matrix for w in self._layers for matrix in (w.qkv, w.out, w.gate_up, w.down)]

    def start(self, prompt: PaddedSequence, slots: int) -> Cache:
        """Return an empty cache, for a causal prompt whose positions count tokens.

        Args:
            prompt: tokens that will be read first; their embeddings give batch size, precision and device.
            slots: number of slots for prompt and answer together.

        Raises:
            ContractError: the model knows fewer positions.
        """
        self._require_positions(slots)
        embeds = prompt.embeds
        shape = (len(embeds), self._kv_heads, slots, self._head_dim)
        return Cache(
            keys=[embeds.new_empty(shape) for _ in self._layers],
            values=[embeds.new_empty(shape) for _ in self._layers],
            visible=_visible(slots, prompt.padding, embeds.device),
            padding=prompt.padding,
        )

    def read(self, embeds: Tensor, cache: Cache, keep: int) -> Tensor:
        """Read the next n tokens of every row into the slots after `cache.filled`.

        Args:
            embeds: (B, n, D).
            cache: keys and values of earlier tokens; `filled` is not changed.
            keep: tokens at the end whose hidden states are returned, 1 to n.

        Returns:
            (B, keep, D) normed hidden states.
        """
        n, start = embeds.shape[1], cache.filled
        end = start + n
        cos, sin = self._tables(cache.padding, start, end)
        visible = cache.visible[..., start:end, :end]
        whole = start == 0 and cache.padding is None  # plain causal attention needs no mask
        x, normed = embeds, self._norm(embeds)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            q, k, v = self._qkv(layer, normed, cos, sin)
            keys[:, :, start:end], values[:, :, start:end] = k, v
            if layer is self._layers[-1] and keep < n:  # only the wanted tokens leave the last layer
                q, x, visible, whole = q[:, :, -keep:], x[:, -keep:], visible[..., -keep:, :], False
            mask = None if whole else visible
            attended = self._attend(q, keys[:, :, :end], values[:, :, :end], mask, causal=whole)
            x, normed = self._finish(layer, x, attended)
        return normed

    def read_rows(self, rows: RaggedSequence, wanted: Tensor) -> tuple[Tensor, RowMemory]:
        """See `Reasoner`. Raises ContractError for more columns than the model has positions."""
        x, normed = rows.embeds, self._norm(rows.embeds)
        S = x.shape[1]
        self._require_positions(S)
        cos, sin = self._cos[:S], self._sin[:S]
        memory = RowMemory([], [])
        for layer in self._layers:
            q, k, v = self._qkv(layer, normed, cos, sin)
            memory.keys.append(k.contiguous())
            memory.values.append(v.contiguous())
            if layer is self._layers[-1]:  # only the wanted tokens leave the last layer
                q, x = at_columns(q, wanted), at_columns(x, wanted)
                attended = self._attend(q, k, v, _causal(wanted, S))
            else:
                attended = self._attend(q, k, v, causal=True)
            x, normed = self._finish(layer, x, attended)
        return normed, memory

    def memory(self, rows: RaggedSequence, tensors: Sequence[Tensor]) -> RowMemory:
        """See `Reasoner`."""
        return RowMemory(list(tensors[::2]), list(tensors[1::2]))

    def read_at(self, embeds: Tensor, slots: Tensor, memory: RowMemory) -> Tensor:
        """See `Reasoner`."""
        cos, sin = self._cos[slots][:, None], self._sin[slots][:, None]  # (B, 1, n, hd)
        visible = _causal(slots, memory.keys[0].shape[2])
        x, normed = embeds, self._norm(embeds)
        for layer, keys, values in zip(self._layers, memory.keys, memory.values, strict=True):
            q, k, v = self._qkv(layer, normed, cos, sin)
            put_at(keys, slots, k)
            put_at(values, slots, v)
            x, normed = self._finish(layer, x, self._attend(q, keys, values, visible))
        return normed

    def bidirectional(self, embeds: Tensor, lengths: Tensor | None) -> Tensor:
        """Read a sequence in which every token attends to every other; only padding is hidden.

        Args:
            embeds: (B, S, D), padded at the right.
            lengths: (B,) int64 real tokens per row, at most S, on the device; None if no row is padded.

        Returns:
            (B, S, D) normed hidden states; those of padding are meaningless.

        Raises:
            ContractError: the sequence is longer than the positions that the model knows.
        """
        S = embeds.shape[1]
        self._require_positions(S)
        cos, sin = self._cos[:S], self._sin[:S]
        visible = None
        if lengths is not None:
            visible = (torch.arange(S, device=embeds.device) < lengths[:, None])[:, None, None]  # (B, 1, 1, S)
        x, normed = embeds, self._norm(embeds)
        for layer in self._layers:
            attended = self._attend(*self._qkv(layer, normed, cos, sin), mask=visible)
            x, normed = self._finish(layer, x, attended)
        return normed

    def _require_positions(self, tokens: int) -> None:
        if tokens > len(self._cos):
            raise ContractError(
                f"the sequence has {tokens} tokens, but the language model has {len(self._cos)} positions; "
                "use a shorter instruction or fewer cameras."
            )

    def _tables(self, padding: Tensor | None, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of slots, (n, hd) or, if rows are padded, (B, 1, n, hd)."""
        if padding is None:
            return self._cos[start:end], self._sin[start:end]
        slots = torch.arange(start, end, device=padding.device)
        positions = (slots - padding[:, None]).clamp(min=0)[:, None]  # (B, 1, n)
        return self._cos[positions], self._sin[positions]

    def _norm(self, embeds: Tensor) -> Tensor:
        """Return (B, S, D) embeddings as the first layer's attention reads them."""
        return self._pointwise.norm(embeds, self._first_norm, self._eps)

    def _qkv(self, layer: _Layer, normed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, S, D) to rotated q (B, H, S, hd), rotated k and plain v (B, Hkv, S, hd)."""
        B, S, _ = normed.shape
        heads = linear(normed, layer.qkv).view(B, S, -1, self._head_dim).transpose(1, 2)  # (B, H + 2 Hkv, S, hd)
        rotated, v = heads.split((self._heads + self._kv_heads, self._kv_heads), dim=1)
        q, k = self._pointwise.rotate(rotated, cos, sin).split((self._heads, self._kv_heads), dim=1)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend: map q (B, H, Sq, hd) to (B, Sq, H * hd)."""
        grouped = self._kv_heads != self._heads
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)

    def _finish(self, layer: _Layer, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the output projection, then the gated MLP, each with its residual: (B, S, D) -> (B, S, D).

        Returns:
            The residual stream, and its norm as the next layer reads it; after the last layer, the hidden states.
        """
        work = self._pointwise
        x, normed = work.add_norm(x, linear(attended, layer.out), layer.norm_mlp, self._eps)
        gated = work.gate(linear(normed, layer.gate_up))
        return work.add_norm(x, linear(gated, layer.down), layer.norm_after, self._eps)


def _causal(slots: Tensor, keys: int) -> Tensor:
    """Return (B, 1, n, keys) bool: whether the tokens of (B, n) slots attend to a key."""
    return (torch.arange(keys, device=slots.device) <= slots[..., None])[:, None]


def _visible(slots: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Return the mask of `Cache`. Padding attends to itself, since a softmax over no key is not a number."""
    slot = torch.arange(slots, device=device)
    causal = slot <= slot[:, None]
    if padding is None:
        return causal
    return (causal & (slot >= padding[:, None, None]) | (slot == slot[:, None]))[:, None]


def _rope_tables(config: Any, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (max positions, hd) fp32 cosines and sines; `rotate` needs the first half of the sines negative."""
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") != "default":
        raise CheckpointError(f"rope_type {parameters['rope_type']!r} is not supported; Llama-2 uses 'default'.")
    theta = float(parameters["rope_theta"])
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    inverse_frequencies = torch.exp(-math.log(theta) * exponents)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32, device=device)
    angles = torch.outer(positions, inverse_frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)


def _fuse_layer(layer: Any, norm_after: Tensor) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        qkv=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        out=attention.o_proj.weight.detach(),
        gate_up=_fuse(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight.detach(),
        norm_mlp=layer.post_attention_layernorm.weight.detach(),
        norm_after=norm_after,
    )


def _fuse(*projections: torch.nn.Linear) -> Tensor:
    """Fuse matrices into one, whose memory they share; matrices that already lie one after another are not copied."""
    weights = [p.weight.detach() for p in projections]
    rows = [len(weight) for weight in weights]
    first = weights[0]
    if _adjacent(weights):
        return first.as_strided((sum(rows), first.shape[1]), first.stride(), first.storage_offset())
    fused = torch.cat(weights)
    for projection, part in zip(projections, fused.split(rows), strict=True):
        projection.weight.data = part
    return fused


def _adjacent(weights: list[Tensor]) -> bool:
    """Return whether the rows of each matrix follow those of the one before it, in one memory block."""
    first = weights[0]
    place = first.data_ptr()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.stride() == first.stride() and weight.data_ptr() == place):
            return False
        place += len(weight) * weight.stride(0) * weight.element_size()
    return True
