"""OpenVLA as a family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, RecipeError
from vla_robot.policy.openvla.checkpoint import OpenVLACheckpoint, read_checkpoint
from vla_robot.policy.openvla.create import create, give_head
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy, check, load_any
from vla_robot.policy.openvla.prompt import OpenVLAPrompts
from vla_robot.policy.openvla.weights import load_model, rows_of, save_in_turn, save_model
from vla_robot.policy.vla.heads.policy import HeadPolicy
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.loading import PLAIN, Loading
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.safetensors_files import Rows
from vla_robot.recipe.finetune import Architecture, CodecRecipe, HeadRecipe
from vla_robot.recipe.policy import CheckpointRecipe, OFTRecipe, OpenVLAOFTRecipe, OpenVLARecipe


@dataclass(frozen=True)
class OpenVLAFamily:
    """See `Family`. A folder's own config.json says which language model it has.

    Attributes:
        text_type: `model_type` of the language model of new models: "llama", or "qwen2" as MiniVLA's.
    """

    text_type: str = "llama"

    kind = "openvla"

    def read(self, folder: Path) -> OpenVLACheckpoint:
        return read_checkpoint(folder)

    def load(
        self, folder: Path, how: Loading = PLAIN
    ) -> OpenVLAPolicy | HeadPolicy[OpenVLA, OpenVLAPrompts, Preprocessor]:
        return load_any(folder, how)

    def check(self, folder: Path, statistics_key: str | None = None, image_preprocessing: str = NONE) -> None:
        check(folder, statistics_key, image_preprocessing)

    def load_model(self, folder: Path, dtype: torch.dtype, device: torch.device) -> OpenVLA:
        return load_model(folder, OpenVLAConfig.read(folder), dtype, device)

    def rows(self, folder: Path) -> dict[str, Rows]:
        return rows_of(folder, OpenVLAConfig.read(folder))

    def save_in_turn(self, start: Path, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        save_in_turn(start, folder, OpenVLAConfig.read(start), tensors)

    def on_meta(self, folder: Path) -> OpenVLA:
        with torch.device("meta"):
            return OpenVLA(OpenVLAConfig.read(folder))

    def save_model(self, model: AnyVLAModel, folder: Path, start: Path) -> None:
        assert isinstance(model, OpenVLA)
        save_model(model, folder, carry_from=start)

    def adopt(
        self,
        source: Path,
        folder: Path,
        embodiment: Embodiment,
        statistics: Mapping[str, Any],
        codec: CodecRecipe | None = None,
        chunk: int = 1,
    ) -> None:
        raise CheckpointError(f"{source} has action tokens already: every OpenVLA has.")

    def resize(self, folder: Path, edge: int) -> None:
        raise RecipeError(f"{folder}: the resolution of OpenVLA's towers is fixed; leave resolution out.")

    def acts(self, folder: Path) -> bool:
        return True

    def create(
        self,
        folder: Path,
        architecture: Architecture,
        embodiment: Embodiment,
        statistics: Mapping[str, Any],
        instructions: Iterable[str],
        seed: int,
        codec: CodecRecipe | None = None,
        chunk: int = 1,
        head: HeadRecipe | None = None,
    ) -> None:
        create(folder, architecture, embodiment, statistics, instructions, seed, self.text_type, codec, chunk, head)

    def give_head(self, folder: Path, recipe: HeadRecipe, embodiment: Embodiment, chunk: int, seed: int) -> None:
        give_head(folder, recipe, embodiment, chunk, seed)

    def recipe_of(self, folder: Path, key: str) -> CheckpointRecipe:
        """See `Family`. A Llama with the L1 head is OpenVLA-OFT."""
        read = read_checkpoint(folder)
        config, arm = read.config, read.embodiment
        if config.head is None or config.head.kind != "l1" or config.text_type != "llama" or arm is None:
            return OpenVLARecipe(checkpoint=Path("."), statistics_key=key)
        oft = OFTRecipe(
            config.chunk,
            config.head.dimension,
            "bounds_q99",
            tuple(camera.name for camera in arm.cameras),
            config.proprio_dim,
            clip=True,
        )
        return OpenVLAOFTRecipe(checkpoint=Path("."), statistics_key=key, oft=oft)


OPENVLA = OpenVLAFamily()
MINIVLA = OpenVLAFamily("qwen2")
