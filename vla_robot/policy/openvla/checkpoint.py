"""A checkpoint folder without its weights: everything that says how the weights are to be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.policy.openvla.inputs.image_preprocessing import NONE, require_preprocessing
from vla_robot.policy.openvla.inputs.preprocess import Preprocessor
from vla_robot.policy.openvla.inputs.prompt import TEMPLATE, TEMPLATE_VICUNA, PromptTokenizer
from vla_robot.policy.openvla.network.config import OpenVLAConfig, read_json


@dataclass(frozen=True)
class Checkpoint:
    """The small files of a folder in the published layout.

    Attributes:
        config: sizes, and the statistics that count: those of dataset_statistics.json, when present, replace those in
            config.json, as the reference's deployment does.
        preprocessor: frames to tower inputs.
        tokenizer: instructions to ids, or None when tokenizer.json is absent.
        embodiment: what the policy was trained to drive, or None for a published checkpoint, which does not say.
    """

    config: OpenVLAConfig
    preprocessor: Preprocessor
    tokenizer: PromptTokenizer | None
    embodiment: Embodiment | None

    @classmethod
    def read(cls, folder: Path, image_preprocessing: str = NONE) -> Checkpoint:
        """From a folder.

        Args:
            folder: in the published layout.
            image_preprocessing: what happens to frames first, which no file of the folder says; one of
                `image_preprocessing.PREPROCESSINGS`.

        Raises:
            ContractError: the pre-step is unknown.
            CheckpointError: the folder or one of its files is missing, damaged or inconsistent.
        """
        if not folder.is_dir():
            raise CheckpointError(f"policy folder {folder} does not exist. Run `vla list policies`.")
        config = OpenVLAConfig.read(folder)
        if (folder / "dataset_statistics.json").is_file():
            config = replace(config, norm_stats=read_json(folder / "dataset_statistics.json"))
        return cls(
            config,
            replace(Preprocessor.read(folder, config), image_preprocessing=require_preprocessing(image_preprocessing)),
            _tokenizer(folder, config),
            _embodiment(folder),
        )


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A precision, by torch's own object or its name in recipes. Raises ContractError for another one."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ContractError(unknown("dtype", name, known))
    return known[name]


def torch_device(device: str | torch.device) -> torch.device:
    """A device, by torch's own object or its name. Raises ContractError for one that is not there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ContractError(f"device is {device!r}; a device of torch, such as 'cpu' or 'cuda:0': {error}.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ContractError(
            f"device is '{found}', and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs."
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
