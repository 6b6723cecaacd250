"""FinetuneRecipe: one training run, complete enough that anyone can repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.seeds import seed_problem
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.seeds import SeededEpisodes


@dataclass(frozen=True)
class Architecture:
    """A new OpenVLA of any size, for training from scratch.

    Attributes:
        image_size: edge of the towers' input, in pixels; a multiple of 14.
        tower_dim: width of both vision towers.
        tower_depth: their blocks; the last one does no work, as in OpenVLA.
        tower_heads: their attention heads.
        llm_dim: width of the decoder.
        llm_layers: its layers.
        llm_heads: its attention heads.
        llm_ff_dim: width of its gated MLP.
        text_vocab: tokens of the text tokenizer; 256 action rows and the padding rows follow.
        max_positions: longest sequence, patches included.
        use_state: whether the arm's own state enters as one token.
    """

    image_size: int = 84
    tower_dim: int = 96
    tower_depth: int = 5
    tower_heads: int = 3
    llm_dim: int = 128
    llm_layers: int = 4
    llm_heads: int = 4
    llm_ff_dim: int = 384
    text_vocab: int = 512
    max_positions: int = 256
    use_state: bool = True

    def __post_init__(self) -> None:
        if self.image_size % 14:
            raise RecipeError(f"image_size {self.image_size} is not a multiple of the patch size 14")
        for dim, heads in (("tower_dim", "tower_heads"), ("llm_dim", "llm_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise RecipeError(f"{dim} {getattr(self, dim)} is not a multiple of {heads} {getattr(self, heads)}")


@dataclass(frozen=True)
class QuestionsRecipe:
    """Questions about pictures that are learned beside robot data, so that a policy keeps its language.

    Attributes:
        folder: train.jsonl, held_out.jsonl and images; `vla data questions` makes one.
        weight: share of each step's rows, and of its loss, that are questions; 0 only measures how many are answered.
    """

    folder: Path
    weight: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1:
            raise RecipeError(f"weight is {self.weight:g}, must lie in [0, 1): without robot data no action is learned")


@dataclass(frozen=True)
class RolloutsRecipe(SeededEpisodes):
    """Episodes in closed loop while the policy learns: what losses only hint at.

    Attributes:
        env: the world, by name or path.
        every: steps between such measurements; there is one before the first step and one after the last.
        episodes: of each measurement, always the same ones.
        seed: the first episode's; the k-th has seed + k. Training data and the final score should use others.
    """

    env: str
    every: int = 1000
    episodes: int = 10
    seed: int = 30_000

    def __post_init__(self) -> None:
        if self.every < 1 or self.episodes < 1:
            raise RecipeError(f"every is {self.every} and episodes {self.episodes}; must be at least 1")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """How a policy is trained. What all kinds have; `kind` chooses the dataclass, and may be left out.

    Attributes:
        verb: marks a launch file for `vla finetune`.
        kind: where the frames are from.
        description: one line for `vla list`.
        chunk: consecutive actions that the policy says in one answer, token by token; without it the policy's own
            number, which is 1 for every published OpenVLA and for a new model.
        train: which parts learn: "vision", "projector", "decoder"; the others are frozen.
        lora_rank: learn matrices of this rank beside the frozen linear layers of those parts; 0 learns the weights.
            OpenVLA uses 32. The trained policy is saved merged, as one without adapters.
        steps: optimiser steps.
        batch_size: frames per step.
        micro_batch: frames that go through the model at once, where a step's do not fit into memory; 0 for all.
        device: "auto" takes CUDA where it is.
        bf16: compute in bfloat16, with weights in fp32.
        activation_checkpointing: let each block keep its input alone and compute the rest again for the gradient: much
            less memory for about a third more time, and the same results.
        shard: with several processes, let each hold a part of every weight, gradient and moment (FSDP) and not all of
            them (DDP): for a model that does not fit on one GPU. One process holds all of it either way.
        learning_rate: peak rate of AdamW.
        warmup_steps: linear rise to the peak.
        final_rate: share of the peak that the cosine ends at; 1 keeps the rate constant, as OpenVLA does.
        weight_decay: AdamW's.
        clip_norm: gradient norm above which it is scaled down; 0 switches it off.
        bin_smoothing: spread of the action labels over neighbouring bins, in bins; 0 is OpenVLA's plain cross-entropy.
        shift_px: random shift of each frame, in tower pixels, to either side.
        ema: decay of the averaged weights that are saved and evaluated; 0 saves the raw ones.
        held_out: share of episodes kept from training, for the held-out loss; a mixture keeps its validation split,
            whatever the share, and 0 does without.
        evaluate_every: steps between held-out losses.
        checkpoint_every: steps between checkpoints that a run can resume from.
        seed: of initialisation, order and augmentation.
        tensorboard: also write the lines of metrics.jsonl for TensorBoard, to OUT/tensorboard.
        wandb: also send them to this project of Weights & Biases; the package is installed apart.
        questions: question-answer data that are learned beside the robot's.
        rollouts: episodes in a world while the policy learns.
    """

    kinds: ClassVar[Kinds[FinetuneRecipe]]

    verb: Literal["finetune"] = "finetune"
    kind: str
    description: str = ""
    chunk: int | None = None
    train: tuple[Literal["vision", "projector", "decoder"], ...] = ("vision", "projector", "decoder")
    lora_rank: int = 0
    steps: int = 10_000
    batch_size: int = 32
    micro_batch: int = 0
    device: str = "auto"
    bf16: bool = False
    activation_checkpointing: bool = False
    shard: bool = False
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    final_rate: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    bin_smoothing: float = 2.0
    shift_px: int = 2
    ema: float = 0.999
    held_out: float = 0.03
    evaluate_every: int = 500
    checkpoint_every: int = 500
    seed: int = 0
    tensorboard: bool = False
    wandb: str | None = None
    questions: QuestionsRecipe | None = None
    rollouts: RolloutsRecipe | None = None

    @property
    def question_rows(self) -> int:
        """Rows of each step's batch that are questions: the nearest whole number, at least 1 unless the weight is 0."""
        weight = self.questions.weight if self.questions else 0.0
        return min(max(round(weight * self.batch_size), 1), self.batch_size - 1) if weight > 0 else 0

    @property
    def robot_rows(self) -> int:
        """The others."""
        return self.batch_size - self.question_rows

    def __post_init__(self) -> None:
        problems = [*self._source_problems(), *self._range_problems()]
        if self.question_rows == 0 and self.questions and self.questions.weight > 0:
            problems.append("a batch_size of 1 has no room for questions beside robot data; take 2 or more")
        if self.chunk is not None and self.chunk < 1:
            problems.append(f"chunk is {self.chunk}; an answer has at least 1 action")
        if self.wandb is not None and not self.wandb.strip():
            problems.append("wandb is empty; give the project's name, or leave it out")
        if not self.train:
            problems.append("train names no part of the model, so nothing would learn")
        if problems:
            raise RecipeError("; ".join(problems))

    def _source_problems(self) -> Iterator[str]:
        """What is wrong with the keys of one kind alone."""
        return iter(())

    def _range_problems(self) -> Iterator[str]:
        if problem := seed_problem(self.seed):
            yield problem
        for name in ("lora_rank", "micro_batch"):
            if getattr(self, name) < 0:
                yield f"{name} is {getattr(self, name)}, must be 0 or more"
        for name in ("steps", "batch_size", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}, must be at least 1"
        for name in ("final_rate", "ema", "held_out"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} is {getattr(self, name)}, must lie in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class DemosFinetuneRecipe(FinetuneRecipe):
    """From demonstrations that `vla record` made, which are kept in memory.

    Attributes:
        data: LeRobot dataset folders; their frames are pooled.
        weights: how often a frame of each dataset is drawn, relative to a frame of the others; without it all frames of
            all datasets are shuffled together.
        dataset_name: the key of their statistics in dataset_statistics.json.
        policy: checkpoint folder or policy recipe to start from; without it a new model of `architecture` is made.
        architecture: size of a new model; ignored with `policy`.
    """

    kind: Literal["demonstrations"] = "demonstrations"
    data: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    dataset_name: str = "demos"
    policy: Path | None = None
    architecture: Architecture = field(default_factory=Architecture)

    def _source_problems(self) -> Iterator[str]:
        if self.weights and len(self.weights) != len(self.data):
            yield f"weights has {len(self.weights)} numbers for {len(self.data)} datasets of data; give one for each"
        if self.weights and len(set(self.data)) < len(self.data):
            yield "data names a dataset twice; give it once, with a larger weight"
        if wrong := [f"{weight:g}" for weight in self.weights if not 0 < weight < math.inf]:
            yield f"weights holds {', '.join(wrong)}; each must be above 0: leave a dataset out of data instead"


@dataclass(frozen=True, kw_only=True)
class MixtureFinetuneRecipe(FinetuneRecipe):
    """From a mixture of datasets, which is read while training.

    Attributes:
        mixture: a mixture or one dataset of datasets/, by name or path. It brings its own statistics.
        policy: checkpoint folder or policy recipe to start from: a mixture does not say what arm it drives.
        root: folder that holds the mixture's datasets; without it each recipe's own location counts.
        cameras: the roles that the policy looks at, in its order: "primary", "secondary", "wrist".
        augment: OpenVLA's crop and colours.
        workers: processes that decode frames; 0 decodes in the training process.
    """

    kind: Literal["mixture"] = "mixture"
    mixture: str
    policy: Path
    root: Path | None = None
    cameras: tuple[str, ...] = ("primary",)
    augment: bool = True
    workers: int = 2

    def _source_problems(self) -> Iterator[str]:
        if self.workers < 0:
            yield f"workers is {self.workers}, must be 0 or more"


def _kind_by_keys(table: Mapping[str, Any]) -> str:
    """Recipes that do not say their kind name a mixture or do not."""
    return "mixture" if "mixture" in table else "demonstrations"


FinetuneRecipe.kinds = Kinds(
    "training",
    FinetuneRecipe,
    (DemosFinetuneRecipe, MixtureFinetuneRecipe),
    groups=(),
    default=_kind_by_keys,
    idle=("dataset_name", "architecture", "root", "cameras", "augment", "workers"),
)


def with_data(recipe: FinetuneRecipe, **data: Any) -> DemosFinetuneRecipe:
    """The same training from demonstrations; the keys of a mixture are left out."""
    return DemosFinetuneRecipe(**{**_shared(recipe, DemosFinetuneRecipe), **data})


def with_mixture(recipe: FinetuneRecipe, **mixture: Any) -> MixtureFinetuneRecipe:
    """The same training from a mixture; the keys of demonstrations are left out.

    Raises:
        RecipeError: there is no policy to start from.
    """
    arguments = {**_shared(recipe, MixtureFinetuneRecipe), **mixture}
    if arguments.get("policy") is None:
        raise RecipeError("a mixture does not say what arm it drives, so it needs policy: one to start from")
    return MixtureFinetuneRecipe(**arguments)


def _shared(recipe: FinetuneRecipe, schema: type[FinetuneRecipe]) -> dict[str, Any]:
    """What a recipe says that another kind, or the same, has a key for."""
    names = {f.name for f in fields(schema)} - {"kind"}
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name in names}
