"""The small files of a checkpoint folder in OpenVLA's published layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.prompt import TEMPLATE, TEMPLATE_VICUNA, OpenVLAPrompts, PromptTokenizer, QwenPrompts
from vla_robot.policy.vla.checkpoint import Checkpoint
from vla_robot.policy.vla.inputs.image_preprocessing import NONE, require_preprocessing
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.inputs.prompts import read_tokenizer
from vla_robot.policy.vla.json_files import require_folder
from vla_robot.policy.vla.small_files import read_embodiment, read_statistics

type OpenVLACheckpoint = Checkpoint[OpenVLAConfig, OpenVLAPrompts, Preprocessor]


def read_checkpoint(folder: Path, image_preprocessing: str = NONE) -> OpenVLACheckpoint:
    """Read the small files of a folder.

    Args:
        folder: checkpoint in the published layout.
        image_preprocessing: preprocessing of frames, which no file of the folder states; one of
            `image_preprocessing.PREPROCESSINGS`.

    Raises:
        ContractError: image_preprocessing is unknown.
        CheckpointError: the folder or one of its files is missing, damaged or inconsistent.
    """
    require_folder(folder)
    config = OpenVLAConfig.read(folder)
    if (statistics := read_statistics(folder)) is not None:  # they replace config.json's, as in the reference
        config = replace(config, norm_stats=statistics)
    towers = len(config.timm_model_ids)
    preprocessor = Preprocessor.read(folder, config.image_size, towers, config.image_resize_strategy)
    return Checkpoint(
        config,
        preprocessor.after(require_preprocessing(image_preprocessing)),
        _tokenizer(folder, config),
        read_embodiment(folder),
    )


def _tokenizer(folder: Path, config: OpenVLAConfig) -> OpenVLAPrompts | None:
    if config.text_type == "qwen2":
        return QwenPrompts(read_tokenizer(folder))
    if not (folder / "tokenizer.json").is_file():
        return None
    is_vicuna = str(config.published.get("llm_backbone_id", "")).startswith("vicuna")
    return PromptTokenizer.read(folder, TEMPLATE_VICUNA if is_vicuna else TEMPLATE)
