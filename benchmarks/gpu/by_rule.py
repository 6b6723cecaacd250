"""A policy whose weights follow a rule, so that openvla-7b's sizes can be measured without a download."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from benchmarks.models.plain_vlm import OnlyRows
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.openvla.prompt import OpenVLAPrompts
from vla_robot.policy.openvla.weights import rebuild_buffers
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.inputs.preprocess import Preprocessor

SEVEN_BILLION: Mapping[str, Any] = {
    "model_type": "openvla",
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [224, 224],
    "image_resize_strategy": "resize-naive",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "pad_token_id": 32000,
    },
}
"""config.json of openvla-7b, as far as it says sizes."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

TOKENS = 7
TEXT_TOKENS = 14
SMALL_TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
              "num_key_value_heads": 2}  # fmt: skip
SMALL_TOWER = {"embed_dim": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 4.0}


def config_of(small: bool, **ours: Any) -> OpenVLAConfig:
    """Return openvla-7b's configuration, or a small one of the same kind, with `ours` in our block."""
    data: dict[str, Any] = dict(SEVEN_BILLION)
    if small:
        data |= {"text_config": {**data["text_config"], **SMALL_TEXT}, "image_sizes": [84, 84]}
        ours |= {"tower_overrides": [SMALL_TOWER, SMALL_TOWER]}
    return OpenVLAConfig.from_dict({**data, **({"vla_robot": ours} if ours else {})}, "a policy by rule")


def model_by_rule(config: OpenVLAConfig, dtype: torch.dtype, device: torch.device) -> OpenVLA:
    """Build a model on a device: seeded normal matrices of about unit gain, norms of 1, biases of 0."""
    with torch.device("meta"):
        model = OpenVLA(config)
    generator = torch.Generator(device).manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if tensor.dim() < 2:
            tensor.fill_(0.1 if "gamma" in name else float("norm" in name and name.endswith("weight")))
        else:
            scale = 1.0 if "embed_tokens" in name else 1 / math.sqrt(math.prod(tensor.shape[1:]))
            tensor.normal_(0, scale, generator=generator)
        weights[name] = tensor
    model.load_state_dict(weights, strict=True, assign=True)
    rebuild_buffers(model, device)
    return model.requires_grad_(False).eval()


def policy_of(model: OpenVLA, tokenizer: OpenVLAPrompts | None = None, fuse: bool = False) -> OpenVLAPolicy:
    """Return the policy of a model; without a tokenizer it takes ids alone."""
    preprocessor = Preprocessor(model.config.image_size, "resize-naive", HALF, HALF)
    return OpenVLAPolicy(model, preprocessor, tokenizer, {}, fuse=fuse)


def batch_of(policy: OpenVLAPolicy, rows: int, lengths: Sequence[int] = (TEXT_TOKENS,), seed: int = 0) -> Batch:
    """Return random pixels on the policy's device, and random prompts of these lengths in turn."""
    rng, model = np.random.default_rng(seed), policy.model
    generator = torch.Generator(model.weight.device).manual_seed(seed)
    shape = (rows, *model.pixel_shape())
    pixels = torch.randn(shape, generator=generator, device=model.weight.device)
    prompts = [np.r_[1, rng.integers(3, 30_000, lengths[row % len(lengths)] - 1)] for row in range(rows)]
    state = None if model.config.proprio_dim is None else torch.zeros(rows, model.config.proprio_dim)
    return Batch(pixels, [prompt.astype(np.int64) for prompt in prompts], state)


def row_of(batch: Batch, row: int) -> Batch:
    """Return one row of a batch as a batch."""
    state = None if batch.state is None else batch.state[row : row + 1]
    return Batch(batch.pixels[row : row + 1], batch.prompts[row : row + 1], state)


@torch.inference_mode()
def by_transformers(policy: OpenVLAPolicy, batch: Batch) -> np.ndarray:
    """Return (B, 7) tokens of transformers' own greedy `generate` over the action rows; prompts of one length."""
    model: Any = policy.model
    actions = torch.from_numpy(model.config.codec.ids.copy())
    embeds = model.prompt(batch).embeds
    out = model.language_model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
        logits_processor=LogitsProcessorList([OnlyRows(actions)]),
    )  # fmt: skip
    return out[:, -TOKENS:].cpu().numpy()
