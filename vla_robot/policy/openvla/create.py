"""Creates a new OpenVLA or MiniVLA of any size, randomly initialised, with the code of the published one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.openvla.components import ACTION_HEAD, PROPRIO_PROJECTOR, component_files, write_component
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import build_text_config
from vla_robot.policy.openvla.prompt import QWEN_CONTROL, TEMPLATE, TEMPLATE_QWEN
from vla_robot.policy.openvla.weights import save_model
from vla_robot.policy.vla.codecs.folder import is_in_config, write_codec
from vla_robot.policy.vla.codecs.plan import added_rows, codec_of_new
from vla_robot.policy.vla.first_weights import draw_first_weights, stated_range
from vla_robot.policy.vla.heads.build import new_head
from vla_robot.policy.vla.heads.sizes import HeadSizes, block_with_head, head_block, planned_head
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.inputs.prompts import ASKED_FOR_ACTION, new_tokenizer
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, write_json
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.recipe.finetune import Architecture, CodecRecipe, HeadRecipe

TIMM_MODEL_IDS = ("vit_small_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
PADDING_ROWS = 64
ACTION_BINS = 256
CONTROL = ("<unk>", "<s>", "</s>")
PROMPTS = {
    "llama": (TEMPLATE, CONTROL),
    "qwen2": (TEMPLATE_QWEN.replace("{text}", ASKED_FOR_ACTION), QWEN_CONTROL),
}
"""`model_type` of the language model -> template of an instruction's prompt, and control tokens."""
ENDS = {"llama": "</s>", "qwen2": QWEN_CONTROL[-1]}
"""`model_type` of the language model -> token that ends an answer."""
IMAGENET_MEAN, IMAGENET_STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
HALF = (0.5, 0.5, 0.5)


def create(
    folder: Path,
    architecture: Architecture,
    embodiment: Embodiment,
    statistics: Mapping[str, Any],
    instructions: Iterable[str],
    seed: int,
    text_type: str = "llama",
    codec: CodecRecipe | None = None,
    chunk: int = 1,
    head: HeadRecipe | None = None,
) -> None:
    """Write a checkpoint folder with random weights.

    Args:
        folder: where to write; created when missing.
        architecture: sizes of the model.
        embodiment: the arm of the policy; its cameras become the policy's images, in order.
        statistics: content of dataset_statistics.json.
        instructions: texts that the tokenizer's merges are learned from; any other text is encoded byte by byte.
        seed: seed of the weights.
        text_type: `model_type` of the language model: "llama" or "qwen2".
        codec: how actions are said, over added rows; None for OpenVLA's bins.
        chunk: K, actions of an answer.
        head: gives actions as numbers; None for a policy of tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    template, control = PROMPTS[text_type]
    asks = (template.format(instruction=text.lower()) for text in instructions)
    tokenizer, words = new_tokenizer(architecture, asks, control)
    (end,) = tokenizer.encode(ENDS[text_type], add_special_tokens=False).ids
    planned = codec_of_new(codec, tokenizer, words, end, chunk, len(embodiment.action))
    write_codec(planned, folder)
    sizes = planned_head(head, len(embodiment.action))
    described = _config(architecture, embodiment, statistics, text_type, planned, sizes, words)
    config = OpenVLAConfig.from_dict(described, "the new configuration", folder)
    torch.manual_seed(seed)
    model = OpenVLA(config)
    for part in (model.vision_backbone, model.projector, model.language_model):
        draw_first_weights(part, architecture)
    save_model(model, folder)
    preprocessor = Preprocessor(
        config.image_size, config.image_resize_strategy, (IMAGENET_MEAN, HALF), (IMAGENET_STD, HALF)
    )
    write_json(folder / "preprocessor_config.json", preprocessor.to_dict())
    write_json(folder / "dataset_statistics.json", statistics)
    write_json(folder / "embodiment.json", embodiment.to_dict())
    tokenizer.save(str(folder / "tokenizer.json"))


def _config(
    architecture: Architecture,
    embodiment: Embodiment,
    statistics: Mapping[str, Any],
    text_type: str,
    codec: ActionCodec,
    head: HeadSizes | None,
    words: int,
) -> dict[str, Any]:
    a = architecture
    action_end = words + added_rows(codec, words)
    tower = {"embed_dim": a.tower_dim, "depth": a.tower_depth, "num_heads": a.tower_heads, "mlp_ratio": 4.0}
    return {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "timm_model_ids": list(TIMM_MODEL_IDS),
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "image_sizes": [a.image_size, a.image_size],
        "image_resize_strategy": "resize-naive",
        "llm_max_length": a.max_positions,
        "n_action_bins": ACTION_BINS,
        "pad_to_multiple_of": PADDING_ROWS,
        "pad_token_id": 0,
        "norm_stats": dict(statistics),
        "output_projector_states": False,
        "text_config": {
            "model_type": text_type,
            "vocab_size": action_end + PADDING_ROWS,
            "hidden_size": a.llm_dim,
            "intermediate_size": a.llm_ff_dim,
            "num_hidden_layers": a.llm_layers,
            "num_attention_heads": a.llm_heads,
            "max_position_embeddings": a.max_positions,
            **stated_range(a),
            "pad_token_id": 0,
            **_heads(a, text_type),
        },
        OUR_BLOCK: {
            "num_images": len(embodiment.cameras),
            "proprio_dim": len(embodiment.state) if a.use_state else None,
            "tower_overrides": [tower, tower],
            **({"action_vocab_end": action_end} if text_type == "qwen2" else {}),
            **({} if is_in_config(codec) else {"codec": codec.kind}),
            **({} if codec.chunk == 1 else {"chunk": codec.chunk}),
            **head_block(head),
        },
    }


def give_head(folder: Path, recipe: HeadRecipe, embodiment: Embodiment, chunk: int, seed: int) -> None:
    """Give the policy of a folder a head; see `Family.give_head`. Component files that OpenVLA-OFT has are kept."""
    data = read_json(folder / "config.json")
    old = OpenVLAConfig.read(folder)
    text = build_text_config(old)
    block, head = block_with_head(recipe, embodiment, chunk, old.proprio_dim)
    torch.manual_seed(seed)
    dim = block["proprio_dim"]
    if old.proprio_dim is None and dim is not None and not component_files(folder, PROPRIO_PROJECTOR):
        write_component(folder, PROPRIO_PROJECTOR, ProprioProjector(dim, text.hidden_size).named_parameters())
    write_json(folder / "config.json", {**data, OUR_BLOCK: {**data.get(OUR_BLOCK, {}), **block}})
    module = new_head(head, chunk, text)
    if module is not None and not component_files(folder, ACTION_HEAD):
        write_component(folder, ACTION_HEAD, module.named_parameters())


def _heads(a: Architecture, text_type: str) -> dict[str, Any]:
    """Return what differs between the language models: Qwen2.5-0.5B groups its heads and ties its head to the words."""
    if text_type == "qwen2":
        return {"num_key_value_heads": max(1, a.llm_heads // 2), "tie_word_embeddings": True}
    return {"num_key_value_heads": a.llm_heads}
