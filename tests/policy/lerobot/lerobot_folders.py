"""Policy folders that lerobot itself writes, with tiny models: trained ones, and vision-language models at random."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vla_robot.core.embodiment import Dim
from vla_robot.core.messages import Observation, StepResult
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.testing import toy_embodiment

STATE = (Dim("x", "m", -1.0, 1.0), Dim("y", "m", -1.0, 1.0), Dim("gripper_width", "m", 0.0, 0.1))
ARM = toy_embodiment(axes=("dx", "dy"), state=STATE, cameras=("front", "wrist"), height=64, width=64)
"""The arm of every policy here: three numbers of state, three of action, two cameras."""

CHUNK = 8
PALIGEMMA = "google/paligemma-3b-pt-224"
SMOLVLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
WORDS = ["<pad>", "<unk>", "<bos>", "<eos>", "lift", "the", "cube", "put", "it", "down", "Task", "State", ":", "\n"]


def observation(step: int, committed: int | None = None, instruction: str = "lift the cube") -> Observation:
    """What the arm sees at a step, different at every step."""
    rng = np.random.default_rng(step)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in ARM.cameras}
    state = np.array([rng.uniform(d.low, d.high) for d in STATE])
    rows = None if committed is None else np.array([action(step + k) for k in range(committed)]).reshape(-1, 3)
    return Observation(images, state, instruction, 1000 + step, step, committed=rows)


def action(step: int) -> np.ndarray:
    """A smooth action within the arm's range."""
    return np.array([0.04 * np.sin(step / 3), 0.04 * np.cos(step / 3), 0.5 + 0.5 * np.sin(step / 5)])


def record(root: Path, episodes: int = 2, steps: int = 10) -> Path:
    """Write demonstrations as our recorder does."""
    with LeRobotWriter(root) as writer:
        for episode in range(episodes):
            builder = DemonstrationBuilder()
            for step in range(steps):
                seen, told = observation(100 * episode + step), action(step)
                seen = Observation(seen.images, seen.state, seen.instruction, seen.stamp_ns, step)
                builder.add(seen, told, StepResult(seen, told, step == steps - 1, step == steps - 1, False))
            writer.write(builder.finish(ARM, episode, "expert"))
    return root


def act_config(**more: Any) -> Any:
    from lerobot.policies.act.configuration_act import ACTConfig

    sizes = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    return ACTConfig(
        **{
            **sizes,
            "chunk_size": CHUNK,
            "n_action_steps": CHUNK,
            "latent_dim": 8,
            "pretrained_backbone_weights": None,
            "push_to_hub": False,
            "device": "cpu",
            **more,
        }
    )


def diffusion_config(**more: Any) -> Any:
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    return DiffusionConfig(
        **{
            "down_dims": (16, 32),
            "pretrained_backbone_weights": None,
            "horizon": CHUNK,
            "n_action_steps": 4,
            "diffusion_step_embed_dim": 16,
            "n_groups": 4,
            "num_train_timesteps": 10,
            "spatial_softmax_num_keypoints": 4,
            "push_to_hub": False,
            "device": "cpu",
            **more,
        }
    )


def train(config: Any, dataset: Path, out: Path, steps: int = 3) -> Path:
    """Train by lerobot's own function; return its folder `pretrained_model`."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.scripts.lerobot_train import train as lerobot_train

    cfg = TrainPipelineConfig(
        dataset=DatasetConfig("mine/demos", root=str(dataset)),
        policy=config,
        output_dir=out,
        steps=steps,
        batch_size=4,
        num_workers=0,
        persistent_workers=False,
        env_eval_freq=0,
    )
    with _root_logger_kept():
        lerobot_train(cfg)
    return next(out.glob("checkpoints/*/pretrained_model"))


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what lerobot's training does to the root logger, which later tests in the same process read."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def features() -> dict[str, Any]:
    """lerobot's description of the arm's features."""
    from lerobot.configs import FeatureType, PolicyFeature

    images = {f"observation.images.{c.name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for c in ARM.cameras}
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}
    return {
        "input_features": {**images, **state},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
    }


def statistics() -> dict[str, dict[str, Any]]:
    """Statistics of the arm's whole range."""

    import torch

    def of(dims: Any) -> dict[str, Any]:
        low, high = (torch.tensor([getattr(d, end) for d in dims], dtype=torch.float32) for end in ("low", "high"))
        span = {"min": low, "max": high, "q01": low, "q99": high}
        return {**span, "mean": (low + high) / 2, "std": (high - low) / 4}

    pixels = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    images = {f"observation.images.{c.name}": pixels for c in ARM.cameras}
    return {"observation.state": of(STATE), "action": of(ARM.action.dims), **images}


def save(config: Any, folder: Path, local: Path | None = None, hub: str = "") -> Path:
    """Write a policy with random weights, as lerobot does after training.

    Args:
        config: lerobot's configuration.
        folder: where to write it.
        local: folder of the tokenizer, which lerobot would download.
        hub: its name on the hub, which the written files give.
    """
    import torch
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.processor import tokenizer_processor
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    policy: Any = get_policy_class(config.type)(config)
    for parameter in policy.parameters():  # zeros, as some layers begin, would hide what they read
        torch.nn.init.normal_(parameter, std=0.05)
    policy.save_pretrained(folder)
    tokens = mock.Mock(from_pretrained=lambda name: AutoTokenizer.from_pretrained(local))
    with mock.patch.object(tokenizer_processor, "AutoTokenizer", tokens):
        pipelines = make_pre_post_processors(config, dataset_stats=statistics())
    for pipeline in pipelines:
        pipeline.save_pretrained(folder)
    for file in ("config.json", "policy_preprocessor.json") if local else ():
        (folder / file).write_text((folder / file).read_text().replace(str(local), hub))
    return folder


def smolvla_config(vlm: Path, **more: Any) -> Any:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    return SmolVLAConfig(
        **{
            **features(),
            "vlm_model_name": str(vlm),
            "load_vlm_weights": False,
            "chunk_size": CHUNK,
            "n_action_steps": CHUNK,
            "num_vlm_layers": 2,
            "num_steps": 3,
            "resize_imgs_with_padding": (32, 32),
            "tokenizer_max_length": 8,
            "push_to_hub": False,
            "device": "cpu",
            **more,
        }
    )


def pi_config(kind: str, **more: Any) -> Any:
    from lerobot.policies.factory import make_policy_config

    return make_policy_config(
        kind,
        **{
            **features(),
            "chunk_size": CHUNK,
            "n_action_steps": CHUNK,
            "num_inference_steps": 3,
            "image_resolution": (28, 28),
            "max_state_dim": 6,
            "max_action_dim": 6,
            "tokenizer_max_length": 24,
            "push_to_hub": False,
            "device": "cpu",
            **more,
        },
    )


def tokenizer(folder: Path, **extra: Any) -> Path:
    """Write a tokenizer of whole words, as transformers does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *map(str, range(256)), *extra.values()]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    specials = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **specials, extra_special_tokens=extra).save_pretrained(folder)
    return folder


def smolvlm(folder: Path, *, weights: bool = False) -> Path:
    """Write the configuration and processor of a tiny SmolVLM, and its weights if they are wanted."""
    import torch
    from transformers import AutoModelForImageTextToText, SmolVLMConfig
    from transformers.models.smolvlm import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    marks = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    }
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    sizes: dict[str, Any] = {"image_token_id": 271, "pad_token_id": 0}
    config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, **sizes)
    config.save_pretrained(folder)
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tokenizer(folder, **marks))
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokens,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=4,
    ).save_pretrained(folder)
    if weights:
        torch.manual_seed(1)
        AutoModelForImageTextToText.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def tiny_paligemma() -> Iterator[None]:
    """Make lerobot build pi0 and pi0.5 with tiny language models and vision towers: their sizes are no settings."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    with contextlib.ExitStack() as stack:
        for module in (modeling_pi0, modeling_pi05):
            sizes = module.GemmaConfig(width=16, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8)
            stack.enter_context(mock.patch.object(module, "get_gemma_config", lambda variant, sizes=sizes: sizes))
            for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
                original = getattr(module, name)
                stack.enter_context(
                    mock.patch.object(module, name, lambda config, o=original: o(config=_shrunk(config)))
                )
        yield


def _shrunk(config: Any) -> Any:
    text = getattr(config, "text_config", config)
    text.vocab_size = 300
    if hasattr(config, "vision_config"):
        config.image_token_index = config.image_token_id = 299
        config._vocab_size = 300
        vision = config.vision_config
        vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 16, 1, 2
        vision.intermediate_size, vision.patch_size = 32, 14
        vision.projection_dim = text.hidden_size
        config.projection_dim = text.hidden_size
    return config


def lerobots_own(folder: Path, overrides: dict[str, Any] | None = None, **config: Any) -> tuple[Any, Any, Any]:
    """Return model, preprocessor and postprocessor as lerobot loads them."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    cfg = PreTrainedConfig.from_pretrained(folder)
    cfg.device = "cpu"
    for name, value in config.items():
        setattr(cfg, name, value)
    model = get_policy_class(cfg.type).from_pretrained(folder, config=cfg, strict=True)
    before, after = make_pre_post_processors(cfg, pretrained_path=str(folder), preprocessor_overrides=overrides or {})
    return model, before, after


def batch_of(*observations: Observation) -> dict[str, Any]:
    """The dict that lerobot's own loop makes of observations."""
    import torch

    images = {
        f"observation.images.{name}": torch.stack(
            [torch.from_numpy(o.images[name]).permute(2, 0, 1).float() / 255 for o in observations]
        )
        for name in observations[0].images
    }
    state = torch.stack([torch.from_numpy(o.state).float() for o in observations])
    return {**images, "observation.state": state, "task": [o.instruction for o in observations]}


def edit(folder: Path, file: str, change: Any) -> None:
    """Change a JSON file of a folder in place: `change(data)`."""
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))
