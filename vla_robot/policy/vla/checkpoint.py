"""The small files of a checkpoint folder, which say how its weights are used, as every family has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, unknown
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.model import VLAConfig


@dataclass(frozen=True)
class Checkpoint[C: VLAConfig, T: Prompts, F: FramePreprocessor]:
    """The small files of a folder.

    Attributes:
        config: sizes and statistics; those of dataset_statistics.json, when present, replace those in config.json.
        preprocessor: turns frames into pixels.
        tokenizer: turns instructions into ids, or None when tokenizer.json is absent.
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
    """

    config: C
    preprocessor: F
    tokenizer: T | None
    embodiment: Embodiment | None


type AnyCheckpoint = Checkpoint[Any, Any, Any]
"""The small files of a folder of any family."""


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return torch's precision of this name. Raises ContractError for another name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ContractError(unknown("dtype", name, known))
    return known[name]
