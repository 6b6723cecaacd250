"""Inference of transformers' own model as a user would write it: placeholders for images, then `generate`.

It has the weights of a loaded policy but none of its engine. The arm's state, for which transformers has no token,
is left out of both contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vla_robot.core.messages import Observation
from vla_robot.policy.gemma4 import model as gemma4
from vla_robot.policy.qwen_vl import model as qwen
from vla_robot.policy.vla.policy import VLAPolicy
from vla_robot.policy.vlm.family import VLMPolicy
from vla_robot.policy.vlm.layout import Layout, Place


def without_state(policy: VLMPolicy) -> VLMPolicy:
    """Return the policy without the token of the arm's state; the weights are shared."""
    model = policy.model
    layout = Layout(tuple(part for part in model.layout.parts if part is not Place.STATE))
    bare = type(model)(model.vlm, replace(model.config, proprio_dim=None), layout).requires_grad_(False).eval()
    bare.is_fixed = model.is_fixed
    key = next(iter(policy.statistics))
    about = (policy.preprocessor, policy.tokenizer, policy.statistics, policy.embodiment, key)
    return VLAPolicy(bare, *about, compiled=policy.is_compiled)


class PlainVLM:
    """transformers' `generate` with the weights of a loaded policy, one observation at a time."""

    def __init__(self, policy: VLMPolicy) -> None:
        """
        Args:
            policy: without the arm's state.
        """
        config = policy.model.config
        self._policy = policy
        self._vlm = as_the_library_has_it(policy.model.vlm, config.published)
        self._actions = OnlyRows(torch.from_numpy(config.codec.ids.copy()))

    @torch.inference_mode()
    def tokens(self, observation: Observation, dims: int) -> Tensor:
        """Generate (dims,) int64 action tokens of one observation."""
        out = self._vlm.generate(
            **self._inputs(observation), max_new_tokens=dims, min_new_tokens=dims, do_sample=False, eos_token_id=None,
            pad_token_id=0, logits_processor=LogitsProcessorList([self._actions]),
        )  # fmt: skip
        return out[0, -dims:]

    def _inputs(self, observation: Observation) -> dict[str, Any]:
        model, batch = self._policy.model, self._policy.read([observation])
        pixels = batch.pixels[0].to(model.weight)  # (N, 3, H, W)
        per_image = model.tokens_of(*pixels.shape[-2:])
        ids: list[int] = []
        for part in model.layout.parts:
            ids += list(part) if isinstance(part, tuple) else [self._vlm.config.image_token_id] * per_image
        row = torch.tensor([[*ids, *batch.prompts[0].tolist()]], device=pixels.device)
        kinds = (row == self._vlm.config.image_token_id).long()
        text = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        return text | PIXELS[self._vlm.config.model_type](self._vlm.config.vision_config, pixels, kinds)


def as_the_library_has_it(vlm: Any, published: Mapping[str, Any]) -> Any:
    """Return a model of transformers' own class and layout with the weights of a policy's, as copies.

    Args:
        vlm: the model of a policy that acts, whose matrices lie otherwise.
        published: content of its config.json.
    """
    with vlm.device:
        theirs = type(vlm)(type(vlm).config_class.from_dict(dict(published))).to(vlm.dtype)
    theirs.load_state_dict(vlm.state_dict())
    return theirs.requires_grad_(False).eval()


class OnlyRows(LogitsProcessor):
    """Limits `generate` to some rows of the vocabulary."""

    def __init__(self, rows: slice | Tensor) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self._rows] = scores[:, self._rows]
        return allowed


def _paligemma(vision: Any, pixels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": pixels, "token_type_ids": torch.zeros_like(kinds)}


def _qwen(vision: Any, pixels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    patches = qwen.patches_of(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    sides = [1, *(side // vision.patch_size for side in pixels.shape[-2:])]
    grid = torch.tensor([sides], device=pixels.device).expand(len(pixels), -1)
    return {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}


def _gemma4(vision: Any, pixels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    sides = (side // vision.patch_size for side in pixels.shape[-2:])
    places = gemma4.places_of(*sides).to(pixels.device).expand(len(pixels), -1, -1)
    patches = gemma4.patches_of(pixels, vision.patch_size)
    return {"pixel_values": patches, "image_position_ids": places, "mm_token_type_ids": kinds}


def _gemma4_unified(vision: Any, pixels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    cell = vision.model_patch_size
    places = gemma4.places_of(*(side // cell for side in pixels.shape[-2:])).expand(len(pixels), -1, -1)
    patches = gemma4.patches_of(pixels, cell)
    return {"pixel_values": patches, "image_position_ids": places, "mm_token_type_ids": kinds}


def _smolvlm(vision: Any, pixels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": pixels.unflatten(1, (-1, 3)).flatten(0, 1)[None]}  # (1, images, 3, H, W)


PIXELS: dict[str, Callable[[Any, Tensor, Tensor], dict[str, Tensor]]] = {
    "paligemma": _paligemma,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4_unified,
    "smolvlm": _smolvlm,
    "idefics3": _smolvlm,
}
"""`model_type` -> transformers' arguments of (N, 3, H, W) frames, given which tokens are images."""
