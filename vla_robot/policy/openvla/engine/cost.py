"""Cost of an inference, counted from the configuration: floating-point operations and bytes of weights by stage.

An operation is a multiplication or an addition, so a matrix product (m, k) x (k, n) counts 2 m k n. Norms, activations
and softmax are left out, since they are below one per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower


@dataclass(frozen=True)
class Cost:
    """Cost of one stage for a whole batch.

    Attributes:
        flops: number of operations.
        weight_bytes: size of the weights, which are read at least once [bytes].
    """

    flops: float
    weight_bytes: float


def costs(model: OpenVLA, batch: int, text_tokens: int, action_dim: int) -> dict[str, Cost]:
    """Return the cost of each stage, for prompts of `text_tokens` ids and an action of `action_dim` tokens.

    The prefill reads a guess of the action with the prompt; "decode" is one pass over the guess.
    """
    backbone, config = model.vision_backbone, model.config
    towers = [t for t in (backbone.featurizer, backbone.fused_featurizer) if t is not None]
    patches = config.num_images * towers[0].patch_embed.num_patches
    prompt = text_tokens + patches + (config.proprio_dim is not None)
    llama = model.language_model
    head_bytes = len(config.codec.ids) * llama.config.hidden_size * llama.lm_head.weight.element_size()
    layers = _linear_flops(llama.model.layers)
    head = 2 * len(config.codec.ids) * llama.config.hidden_size
    attention = 4 * llama.config.num_hidden_layers * llama.config.hidden_size  # per query and key
    layer_bytes = _bytes(llama.model.layers)
    guess = action_dim - 1
    first = prompt + guess
    # A query of the prefill attends to half of the keys on average.
    prefill = first * layers + attention * first * (first + 1) / 2 + action_dim * head
    decode = guess * (layers + head + attention * (prompt + action_dim / 2))
    return {
        "towers": Cost(batch * config.num_images * sum(map(_tower_flops, towers)), sum(map(_bytes, towers))),
        "projector": Cost(batch * patches * _linear_flops(model.projector), _bytes(model.projector)),
        "prefill": Cost(batch * prefill, layer_bytes + head_bytes),
        "decode": Cost(batch * decode, layer_bytes + head_bytes),
    }


def _tower_flops(tower: Tower) -> float:
    patches = tower.patch_embed.num_patches
    tokens = patches + sum(t.shape[1] for t in (tower.cls_token, tower.reg_token) if t is not None)
    embed = 2 * patches * tower.patch_embed.proj.weight.numel()
    return embed + tokens * _linear_flops(tower.blocks) + 4 * len(tower.blocks) * tokens**2 * tower.dim


def _linear_flops(module: nn.Module) -> float:
    """Return the operations per token."""
    return sum(2.0 * m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _bytes(module: nn.Module) -> float:
    return float(sum(p.numel() * p.element_size() for p in module.parameters()))
