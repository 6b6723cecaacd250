"""PretrainRecipe: a contrastive pre-training of a vision tower on pictures and their captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.device_names import AUTO, device_problem
from vla_robot.core.seeds import seed_problem
from vla_robot.recipe.finetune import Architecture


@dataclass(frozen=True)
class TextTower:
    """Size of the text tower, which reads captions during the pre-training and is thrown away.

    Attributes:
        dim: its width, and that of the space that pictures and captions share.
        layers: number of its layers.
        heads: number of its attention heads.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads) < 1 or self.dim % self.heads:
            raise RecipeError(f"text has dim {self.dim}, heads {self.heads}; dim must be a multiple of heads")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Contrastive pre-training: the tower learns to tell which caption belongs to which picture.

    Attributes:
        folder: folder of train.jsonl, held_out.jsonl and images with captions;
            `vla data questions --about captions` makes one.
        verb: command that reads this file.
        description: one line for `vla list`.
        architecture: family and sizes of the tower; those of the policy that takes it over.
        text: size of the text tower.
        loss: "sigmoid", SigLIP's, which judges every pair for itself; "softmax", CLIP's (InfoNCE), which compares a
            pair with all others of its batch.
        steps: optimiser steps.
        batch_size: scenes of a step, whose captions are all different.
        device: as of `vla finetune`.
        learning_rate: peak rate of AdamW.
        warmup_steps: linear rise to the peak, before a cosine down to 2 % of it.
        weight_decay: weight decay of AdamW.
        shift_px: largest random shift of each frame to either side [px].
        evaluate_every: steps between held-out losses.
        checkpoint_every: steps between checkpoints that a run can resume from.
        seed: seed of initialisation, order and shifts.
    """

    folder: Path
    verb: Literal["pretrain"] = "pretrain"
    description: str = ""
    architecture: Architecture = field(default_factory=Architecture)
    text: TextTower = field(default_factory=TextTower)
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    steps: int = 2000
    batch_size: int = 64
    device: str = AUTO
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    shift_px: int = 2
    evaluate_every: int = 250
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, must be at least {least}"
            for name, least in (("steps", 1), ("batch_size", 2), ("evaluate_every", 1), ("checkpoint_every", 1))
            if getattr(self, name) < least
        ]
        if self.architecture.tower is not None:
            problems.append("architecture names a tower, and this makes one; leave the key out")
        problems += [text for text in (seed_problem(self.seed), device_problem(self.device)) if text]
        if problems:
            raise RecipeError("; ".join(problems))
