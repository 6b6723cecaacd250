"""The small files of a checkpoint folder, which say how its weights are used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.prompt import TEMPLATE, TEMPLATE_VICUNA, PromptTokenizer
from vla_robot.policy.vla.inputs.image_preprocessing import NONE, require_preprocessing
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.json_files import read_json


@dataclass(frozen=True)
class Checkpoint:
    """The small files of a folder in the published layout.

    Attributes:
        config: sizes and statistics; those of dataset_statistics.json, when present, replace those in
            config.json, as the reference's deployment does.
        preprocessor: turns frames into tower inputs.
        tokenizer: turns instructions into ids, or None when tokenizer.json is absent.
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
    """

    config: OpenVLAConfig
    preprocessor: Preprocessor
    tokenizer: PromptTokenizer | None
    embodiment: Embodiment | None

    @classmethod
    def read(cls, folder: Path, image_preprocessing: str = NONE) -> Checkpoint:
        """Read the small files of a folder.

        Args:
            folder: checkpoint in the published layout.
            image_preprocessing: preprocessing of frames, which no file of the folder states; one of
                `image_preprocessing.PREPROCESSINGS`.

        Raises:
            ContractError: image_preprocessing is unknown.
            CheckpointError: the folder or one of its files is missing, damaged or inconsistent.
        """
        if not folder.is_dir():
            raise CheckpointError(f"policy folder {folder} does not exist. Run `vla list policies`.")
        config = OpenVLAConfig.read(folder)
        if (folder / "dataset_statistics.json").is_file():
            config = replace(config, norm_stats=read_json(folder / "dataset_statistics.json"))
        return cls(
            config,
            replace(
                Preprocessor.read(folder, config.image_size, len(config.timm_model_ids), config.image_resize_strategy),
                image_preprocessing=require_preprocessing(image_preprocessing),
            ),
            _tokenizer(folder, config),
            _embodiment(folder),
        )


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return torch's precision of this name. Raises ContractError for another name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ContractError(unknown("dtype", name, known))
    return known[name]


def torch_device(device: str | torch.device) -> torch.device:
    """Return torch's device of this name. Raises ContractError for one that is not there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ContractError(f"device is {device!r}; a device of torch, such as 'cpu' or 'cuda:0': {error}.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ContractError(
            f"device is '{found}', but torch {torch.__version__} sees {torch.cuda.device_count()} GPUs."
        )
    return found


def _tokenizer(folder: Path, config: OpenVLAConfig) -> PromptTokenizer | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    is_vicuna = str(config.published.get("llm_backbone_id", "")).startswith("vicuna")
    return PromptTokenizer.read(folder, TEMPLATE_VICUNA if is_vicuna else TEMPLATE)


def _embodiment(folder: Path) -> Embodiment | None:
    path = folder / "embodiment.json"
    if not path.is_file():
        return None
    try:
        return Embodiment.from_dict(read_json(path))
    except ContractError as error:
        raise CheckpointError(f"{path}: {error}") from error
