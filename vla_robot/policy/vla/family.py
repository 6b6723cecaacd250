"""The port of a family: how the policies of one kind of model are read, made and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.policy.vla.checkpoint import AnyCheckpoint
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.loading import PLAIN, Loading
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.safetensors_files import Rows
from vla_robot.recipe.finetune import Architecture, CodecRecipe, HeadRecipe
from vla_robot.recipe.policy import CheckpointRecipe


class Family(Protocol):
    """Functions of a family; `policy/families.py` names the family of a folder."""

    @property
    def kind(self) -> str:
        """Kind of the recipes that load its folders."""
        ...

    def read(self, folder: Path) -> AnyCheckpoint:
        """Read the small files of a folder. Raises CheckpointError if one is missing, damaged or inconsistent."""
        ...

    def load(self, folder: Path, how: Loading = PLAIN) -> AnyVLAPolicy:
        """Load a policy of a checkpoint in the family's published layout.

        Raises:
            CheckpointError: the folder is incomplete, damaged or fails the self-test.
            ContractError: the precision, the device or image_preprocessing is unknown, or the device is not there.
            PolicyError: the family is not compiled or not quantised, or the device is of a kind that cannot.
            MissingDependencyError: quantising needs torchao (int8) or bitsandbytes (int4).
        """
        ...

    def check(self, folder: Path, statistics_key: str | None = None, image_preprocessing: str = NONE) -> None:
        """Raise what `load` and the first `act` would raise, without reading weights.

        Args:
            folder: checkpoint in the family's published layout.
            statistics_key: dataset whose statistics will un-normalise the actions, if one is named.
            image_preprocessing: "none", "rlds" or "rlds_crop".

        Raises:
            CheckpointError: a file is missing or damaged, or the weights do not fit config.json.
            ContractError: the statistics key or image_preprocessing is unknown.
        """
        ...

    def load_model(self, folder: Path, dtype: torch.dtype, device: torch.device) -> AnyVLAModel:
        """Load the model of a folder, in evaluation mode. Raises CheckpointError as `load`."""
        ...

    def rows(self, folder: Path) -> dict[str, Rows]:
        """Return how to read rows of the weights and buffers that a folder stores, by their names in its model.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit config.json.
        """
        ...

    def save_in_turn(self, start: Path, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Write config.json and the weights as `save_model` does, of a model of which one tensor is there at a time.

        Args:
            start: folder of a policy with the same config.json.
            folder: where to write; created when missing.
            tensors: names and tensors, in the order of `rows(start)`.
        """
        ...

    def on_meta(self, folder: Path) -> AnyVLAModel:
        """Return the model that config.json describes, on torch's meta device; no other file is needed.

        Raises:
            CheckpointError: config.json is missing, damaged or impossible.
        """
        ...

    def save_model(self, model: AnyVLAModel, folder: Path, start: Path) -> None:
        """Write config.json and the weights.

        Args:
            model: a model of this family, without adapters.
            folder: where to write; created when missing.
            start: folder that the model was loaded from, whose tensors that are never used are carried over.
        """
        ...

    def adopt(
        self,
        source: Path,
        folder: Path,
        embodiment: Embodiment,
        statistics: Mapping[str, Any],
        codec: CodecRecipe | None = None,
        chunk: int = 1,
    ) -> None:
        """Write a vision-language model without action tokens as a policy that knows no action yet.

        Its vocabulary grows if the codec's rows are added ones; the logits of its other rows stay bit by bit.

        Args:
            source: folder of the model, in its published layout.
            folder: where to write; must not exist.
            embodiment: the arm of the policy; its cameras become the policy's images, in order.
            statistics: content of dataset_statistics.json.
            codec: how actions are said; None for OpenVLA's bins over the 256 rarest words.
            chunk: K, actions of an answer.

        Raises:
            CheckpointError: the folder is damaged, its tokenizer has too few words, or the codec would take protected
                rows.
        """
        ...

    def resize(self, folder: Path, edge: int) -> None:
        """Make the model of a folder read frames of another size; everything but its table of positions stays.

        Args:
            folder: the folder, which is rewritten.
            edge: edge of a square frame [px].

        Raises:
            RecipeError: the family has no such table, or the edge is no multiple of a patch.
            CheckpointError: the folder is damaged.
        """
        ...

    def acts(self, folder: Path) -> bool:
        """Return whether a folder has action tokens. Raises CheckpointError for a damaged config.json."""
        ...

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
        """Write a checkpoint folder with random weights.

        Args:
            folder: where to write; created when missing.
            architecture: sizes of the model.
            embodiment: the arm of the policy; its cameras become the policy's images, in order.
            statistics: content of dataset_statistics.json.
            instructions: texts that the tokenizer's merges are learned from.
            seed: seed of the weights.
            codec: how actions are said, over added rows; None for OpenVLA's bins.
            chunk: K, actions of an answer.
            head: gives actions as numbers; None for a policy of tokens.
        """
        ...

    def give_head(self, folder: Path, recipe: HeadRecipe, embodiment: Embodiment, chunk: int, seed: int) -> None:
        """Give the policy of a folder a new head, and a projector of the state if it is to read it and did not.

        Args:
            folder: a policy without a head, whose files are changed.
            recipe: the head.
            embodiment: the arm of the policy; its cameras become the policy's images, in order.
            chunk: K, actions of an answer.
            seed: seed of the new weights.

        Raises:
            CheckpointError: the folder is damaged, or the model's masks do not allow the head.
        """
        ...

    def recipe_of(self, folder: Path, key: str) -> CheckpointRecipe:
        """Return the recipe that loads a trained folder, to be written into it.

        Args:
            folder: the folder.
            key: the dataset whose statistics un-normalise the actions.
        """
        ...
