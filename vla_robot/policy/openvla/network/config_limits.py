"""Limits of a config.json: plain model names, known keys, and sizes within bounds.

A checkpoint may be untrusted. timm and transformers take more keyword arguments than an architecture needs, and
some of them open other files, reach the network or run code: timm unpickled `checkpoint_path` before 1.0.26, the names
"hf-hub:..." and "local-dir:..." look elsewhere, and an `attn_implementation` of the form "owner/kernel" fetches code.
So keys are passed on only when they are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vla_robot.core.errors import CheckpointError, unknown
from vla_robot.policy.vla.json_files import shown, whole

MODEL_NAME = re.compile(r"[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?")
"""timm's own spelling, e.g. "vit_so400m_patch14_siglip_224" or "vit_large_patch14_reg4_dinov2.lvd142m"."""

ACTIVATIONS = (None, "gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
"""Activations of a tower; None is timm's own choice, exact GELU."""

TOWER_SIZES = {"embed_dim": 8192, "depth": 128, "num_heads": 256}
"""Largest values of a tower's sizes; ViT-22B, the largest published one, has 6144, 48 and 48."""
MAX_MLP_RATIO = 16.0

TEXT_SIZES = {
    "vocab_size": 1_048_576,
    "hidden_size": 32_768,
    "intermediate_size": 262_144,
    "num_hidden_layers": 256,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "head_dim": 1024,
    "max_position_embeddings": 262_144,
}
"""Largest values of the decoder's sizes; Llama 3.1 405B has 128256, 16384, 53248, 126, 128, 8, 128 and 131072."""

TEXT_NUMBERS = ("initializer_range", "rms_norm_eps", "rope_theta", "attention_dropout")
TEXT_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

FIXED: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False, "use_mrope": False},
}
"""`model_type` of a language model -> settings of it that are computed; with other values actions would be wrong."""

UNUSED = {
    "llama": frozenset[str](),
    "qwen2": frozenset({"layer_types", "max_window_layers", "sliding_window", "use_mrope"}),
}
"""`model_type` -> keys that have no effect with the settings of FIXED."""

VOCABULARY = {"llama": 32_064, "qwen2": 151_936}
"""`model_type` -> published number of rows of the vocabulary."""

ACTION_ENDS = {
    "qwen25-0_5b-extra": 151_921,
    "qwen25-0_5b-pure": 151_643,
    "qwen25-1_5b-pure": 151_643,
    "qwen25-3b-pure": 151_643,
    "qwen25-7b-pure": 151_643,
}
"""MiniVLA's `llm_backbone_id` -> one past the last action id: 256 tokens are added to Qwen2.5's 151,665, or the last
256 of its 151,643 words are overwritten.

Source: Stanford-ILIAD/openvla-mini, prismatic/models/backbones/llm/qwen25.py and prismatic/vla/action_tokenizer.py.
"""

GENERIC = frozenset({
    "model_type", "architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache",
    "pretraining_tp", "torchscript", "return_dict", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "use_bfloat16", "tf_legacy_loss", "pruned_heads",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "finetuning_task", "id2label",
    "label2id", "tokenizer_class", "prefix", "sep_token_id", "decoder_start_token_id", "task_specific_params",
    "problem_type", "_attn_implementation_autoset",
})  # fmt: skip
"""Keys that any configuration of transformers may have and that do not change what a Llama computes; ignored."""

ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
"""Implementations of the same function; ignored, since the engine has its own."""


def tower_names(source: str, names: object) -> tuple[str, ...]:
    """Return timm's names of one or two towers.

    Raises:
        CheckpointError: there are more or fewer, or a name would make timm look elsewhere.
    """
    if not isinstance(names, list) or len(names) not in (1, 2):
        raise CheckpointError(f"{source}: timm_model_ids must name one or two towers, got {shown(names)}.")
    for name in names:
        if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
            raise CheckpointError(
                f"{source}: timm_model_ids holds {shown(name)}; only a plain model name of timm is read, such as "
                "'vit_so400m_patch14_siglip_224', and nothing is looked up elsewhere."
            )
    return tuple(names)


def activations(source: str, names: object, towers: int) -> tuple[str | None, ...]:
    """Return one activation for each tower.

    Raises:
        CheckpointError: their number differs, or one is unknown.
    """
    given = names or [None] * towers
    if not isinstance(given, list) or len(given) != towers or any(name not in ACTIVATIONS for name in given):
        known = ", ".join(str(name) for name in ACTIVATIONS)
        raise CheckpointError(f"{source}: timm_override_act_layers is {shown(names)}; {towers} of {known}.")
    return tuple(given)


def tower_overrides(source: str, overrides: object, towers: int) -> tuple[dict[str, Any], ...]:
    """Return the sizes that replace timm's own, for each tower.

    Raises:
        CheckpointError: a key is not a size of a tower, or a size is out of bounds.
    """
    given = overrides or [{} for _ in range(towers)]
    if not isinstance(given, list) or len(given) != towers or not all(isinstance(each, dict) for each in given):
        raise CheckpointError(f"{source}: tower_overrides must be {towers} tables, got {shown(overrides)}.")
    return tuple(_tower(source, each) for each in given)


def _tower(source: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        if key == "mlp_ratio":
            _number(source, f"tower_overrides.{key}", value, MAX_MLP_RATIO)
        elif key in TOWER_SIZES:
            whole(source, f"tower_overrides.{key}", value, TOWER_SIZES[key])
        else:
            raise CheckpointError(f"{source}: {unknown('key of tower_overrides', key, [*TOWER_SIZES, 'mlp_ratio'])}")
    return dict(overrides)


def text_config(source: str, text: object) -> tuple[str, dict[str, Any]]:
    """Return the `model_type` of the language model, and keyword arguments of its configuration in transformers.

    Raises:
        CheckpointError: the model is of another type or cannot be computed, a key is unknown, or a value is out of
            bounds.
    """
    if not isinstance(text, dict):
        raise CheckpointError(f"{source}: text_config must be an object, got {shown(text)}.")
    kind = text.get("model_type", "llama")
    if kind not in FIXED:
        raise CheckpointError(f"{source}: text_config.model_type is {shown(kind)}; supported: {', '.join(FIXED)}.")
    for key, value in FIXED[kind].items():
        if text.get(key) not in (None, value):
            raise CheckpointError(f"{source}: text_config.{key} is {shown(text[key])}; only {value!r} is computed.")
    if any(layer != "full_attention" for layer in text.get("layer_types") or ()):
        raise CheckpointError(
            f"{source}: text_config.layer_types has layers with a window; only full attention is computed."
        )
    left_out = GENERIC | UNUSED[kind]
    kept = {
        key: _text_value(source, kind, key, value)
        for key, value in text.items()
        if key not in left_out and not _is_left_out(source, key, value)
    }
    return kind, {"vocab_size": VOCABULARY[kind], **kept}


def action_vocab_end(source: str, backbone: object, ours: object, vocabulary: int) -> int:
    """Return one past the last action id of a model with Qwen2.

    Args:
        source: path of config.json, for the message.
        backbone: its `llm_backbone_id`.
        ours: `action_vocab_end` of our block, which a new model has.
        vocabulary: rows of the vocabulary.

    Raises:
        CheckpointError: the file does not say which ids are actions, or there are none such.
    """
    if ours is not None:
        return whole(source, "action_vocab_end", ours, vocabulary)
    if backbone not in ACTION_ENDS:
        raise CheckpointError(
            f"{source}: llm_backbone_id is {shown(backbone)}, so that it is unknown which ids are actions; known: "
            f"{', '.join(ACTION_ENDS)}."
        )
    if (end := ACTION_ENDS[str(backbone)]) > vocabulary:
        raise CheckpointError(f"{source}: actions of {backbone} end at id {end}, but vocab_size is {vocabulary}.")
    return end


def _is_left_out(source: str, key: str, value: object) -> bool:
    if key in ("attn_implementation", "_attn_implementation"):
        if value not in ATTENTION:
            raise CheckpointError(f"{source}: text_config.{key} is {shown(value)}; code from elsewhere is never run.")
        return True
    return value is None


def _text_value(source: str, kind: str, key: str, value: Any) -> Any:
    """Return the value if this key may have it; raise CheckpointError otherwise."""
    where = f"text_config.{key}"
    if key in TEXT_SIZES:
        return whole(source, where, value, TEXT_SIZES[key])
    if key in TEXT_NUMBERS:
        return _number(source, where, value, 1e9)
    if key in TEXT_TOKENS:
        return whole(source, where, value, TEXT_SIZES["vocab_size"], smallest=-1)
    if key in FIXED[kind]:
        return value
    if key == "tie_word_embeddings" and isinstance(value, bool):
        return value
    if key in ("rope_scaling", "rope_parameters"):
        return _rope(source, where, value)
    known = [*TEXT_SIZES, *TEXT_NUMBERS, *TEXT_TOKENS, *FIXED[kind], "tie_word_embeddings", "rope_parameters"]
    raise CheckpointError(f"{source}: {unknown('key of text_config', key, known)}")


def _rope(source: str, where: str, value: Any) -> dict[str, Any]:
    """Return plain rotary positions. `reason` refuses scaled ones too, but only after it read gigabytes."""
    kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, dict) else value
    if kind != "default":
        raise CheckpointError(f"{source}: {where} is {shown(value)}; only rope_type 'default' is computed.")
    return {"rope_type": "default", "rope_theta": _number(source, where, value.get("rope_theta", 10_000.0), 1e9)}


def _number(source: str, key: str, value: object, largest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
        raise CheckpointError(f"{source}: {key} is {shown(value)}; expected a number from 0 to {largest:g}.")
    return value
