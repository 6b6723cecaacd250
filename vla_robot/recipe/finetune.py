"""FinetuneRecipe: one training run, complete enough to repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.device_names import AUTO, device_problem
from vla_robot.core.language.placeholders import TARGET, placeholders
from vla_robot.core.seeds import seed_problem
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.reading.url import Url
from vla_robot.recipe.seeds import SeededEpisodes


@dataclass(frozen=True)
class Architecture:
    """A new model of any size, for training from scratch.

    Attributes:
        family: its family: "minivla", or the `model_type` of its folder: "openvla", "paligemma" ...
        image_size: edge of the towers' input [px]; a multiple of 14.
        tower_dim: width of the vision towers: OpenVLA has two, other families one.
        tower_depth: number of their blocks; OpenVLA does not use the last one, and other families have one less.
        tower_heads: number of their attention heads.
        llm_dim: width of the decoder.
        llm_layers: number of its layers.
        llm_heads: number of its attention heads.
        llm_ff_dim: width of its gated MLP.
        text_vocab: tokens of the text tokenizer; 256 action rows follow, and OpenVLA's padding rows.
        max_positions: longest sequence, patches included.
        initializer_range: transformers' standard deviation of the decoder's first weights; 0 draws every matrix with
            1 / sqrt(its inputs), with which a small model learns from the first steps on. The 0.02 of large models
            suits a width of 2500.
        cameras: the data's cameras that it reads, by name and in this order; without it all of them.
        use_state: whether the arm's state is an input, as one token.
        locations: whether PaliGemma's 1024 <loc> and 128 <seg> tokens follow the text tokens, in which boxes are said.
        tower: folder of `vla pretrain` whose vision tower, of the same sizes, is taken over; without it the tower's
            weights are random.
    """

    family: str = "openvla"
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
    initializer_range: float = 0.0
    cameras: tuple[str, ...] = ()
    use_state: bool = True
    locations: bool = False
    tower: Path | None = None

    def __post_init__(self) -> None:
        if self.image_size % 14:
            raise RecipeError(f"image_size {self.image_size} is not a multiple of the patch size 14")
        for dim, heads in (("tower_dim", "tower_heads"), ("llm_dim", "llm_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise RecipeError(f"{dim} {getattr(self, dim)} is not a multiple of {heads} {getattr(self, heads)}")
        if not 0 <= self.initializer_range <= 1:
            raise RecipeError(f"initializer_range is {self.initializer_range:g}; must lie in [0, 1]")


RAREST, ADDED, PI0_FAST = "rarest", "added", "pi0_fast"
"""Choices of rows that have a name."""


@dataclass(frozen=True)
class CodecRecipe:
    """How a new policy says its actions as tokens. Its folder keeps it; a policy that acts already has its own.

    Attributes:
        kind: "bins", one token for each number; "words", whole numbers in the model's own words; "fast", the
            coefficients of a cosine transform, packed.
        scale: of bins: "openvla", 255 bins in falling order; "equal", 256 bins in rising order.
        by_dimension: of bins: rows of its own for each number of an action, 7 x 256.
        rows: of bins and fast: "rarest", the last words before control tokens; "added", new rows behind the vocabulary;
            "pi0_fast", openpi's layout. A new model's are always added ones.
        rows_file: of bins and fast: a file of `vla data rarest`, whose rows are taken and not those of `rows`.
        largest: of words: the number that says +1; 0 says -1.
        tokenizer: of fast: a file of `vla data fast`, or a folder with the published tokenizer.json and
            processor_config.json.
    """

    kind: Literal["bins", "words", "fast"] = "bins"
    scale: Literal["openvla", "equal"] = "openvla"
    by_dimension: bool = False
    rows: Literal["rarest", "added", "pi0_fast"] = RAREST
    rows_file: Path | None = None
    largest: int = 1000
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if (self.kind == "fast") != (self.tokenizer is not None):
            raise RecipeError(
                'tokenizer names FAST\'s tokens, so [codec] has it with kind = "fast" and only then; '
                "`vla data fast` makes one"
            )
        if self.kind != "bins" and (self.by_dimension or self.scale != "openvla"):
            raise RecipeError(f'scale and by_dimension are of kind = "bins", and kind is "{self.kind}"')
        if not 1 <= self.largest <= 9999:
            raise RecipeError(f"largest is {self.largest}; must lie in [1, 9999]")


@dataclass(frozen=True)
class HeadRecipe:
    """How a policy gives its actions as numbers instead of tokens. Its folder keeps it.

    Beside a `policy` that says actions in tokens, or none yet, the head is a new one on that policy's weights.

    Attributes:
        kind: "l1", OpenVLA-OFT's: a whole chunk is regressed in one pass; "flow", pi0's: a small transformer, the
            action expert, turns noise into a chunk in several steps.
        state: whether a `policy` that gets the head also reads the arm's state, as one token; a new model's
            `architecture` says it with `use_state`.
        width: of flow: width of the expert; an even number.
        ff_dim: of flow: width of its gated MLPs.
        prefix: of flow: most first actions of a chunk that training gives clean, so that the policy can continue what
            the arm executes; each row's number is drawn from 0 to this. 0 trains without, and guidance continues.
    """

    kind: Literal["l1", "flow"] = "l1"
    state: bool = True
    width: int = 128
    ff_dim: int = 384
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind != "flow" and (self.width, self.ff_dim, self.prefix) != (128, 384, 0):
            raise RecipeError(f'width, ff_dim and prefix are of kind = "flow", and kind is "{self.kind}"')
        if self.width < 2 or self.width % 2 or self.ff_dim < 1:
            raise RecipeError(f"width is {self.width} and ff_dim {self.ff_dim}; width is even, and both are positive")
        if self.prefix < 0:
            raise RecipeError(f"prefix is {self.prefix}, must be 0 or more")


@dataclass(frozen=True)
class QuestionsRecipe:
    """Questions about pictures that are trained together with robot data, so that a policy keeps its language.

    Attributes:
        folder: folder of train.jsonl, held_out.jsonl and images; `vla data questions` makes one.
        weight: share of questions in each step's rows and loss; with 0 they are only measured.
        box_smoothing: spread of the labels of boxes over neighbouring places, in 1024ths of the picture, as
            `bin_smoothing` of actions; 0 is plain cross-entropy.
        in_vocabulary: whether the tokenizer of a new model is also trained on these questions and answers, which then
            take fewer tokens.
    """

    folder: Path
    weight: float = 0.2
    box_smoothing: float = 0.0
    in_vocabulary: bool = False

    def __post_init__(self) -> None:
        if self.box_smoothing < 0:
            raise RecipeError(f"box_smoothing is {self.box_smoothing:g}, must be 0 or more")
        if not 0 <= self.weight < 1:
            raise RecipeError(f"weight is {self.weight:g}, must lie in [0, 1): without robot data no action is learned")


@dataclass(frozen=True)
class WordingsRecipe:
    """Other sentences for an instruction of the data. Each frame of a step is trained with one of them, drawn anew.

    What is to measure understanding stays out of here: a world's recipe has the sentences and words of the test.

    Attributes:
        instruction: the data's instruction, with {target} for the words that differ: "lift the {target} cube".
        sentences: the same in other words, with {target} where the instruction has it.
        synonyms: words at {target} -> other words for them, of which one is drawn, or the data's own.
        plain: share of the frames that keep the data's own instruction.
    """

    instruction: str
    sentences: tuple[str, ...]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    plain: float = 0.25

    def __post_init__(self) -> None:
        wanted = placeholders(self.instruction)
        if wanted - {TARGET}:
            raise RecipeError(f"instruction is '{self.instruction}'; the only name in braces is {{{TARGET}}}")
        if wrong := [sentence for sentence in self.sentences if placeholders(sentence) != wanted]:
            raise RecipeError(f"sentences: '{wrong[0]}' must have the same names in braces as '{self.instruction}'")
        if not self.sentences and not self.synonyms:
            raise RecipeError("wordings without sentences and synonyms would change nothing; name some")
        if self.synonyms and not wanted:
            raise RecipeError(f"synonyms are for the words at {{{TARGET}}}, which '{self.instruction}' does not have")
        if not 0 <= self.plain < 1:
            raise RecipeError(f"plain is {self.plain:g}, must lie in [0, 1)")


@dataclass(frozen=True)
class RolloutsRecipe(SeededEpisodes):
    """Episodes in closed loop during training, which measure the success rate.

    Attributes:
        env: the world, by name or path.
        every: steps between measurements; there is also one before the first step and one after the last.
        episodes: episodes of each measurement, with the same seeds each time.
        seed: seed of the first episode; the k-th has seed + k. Use others for training data and the final score.
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
    """Settings of a training: the keys that all kinds have. `kind` chooses the dataclass, and may be left out.

    Attributes:
        verb: command that reads this launch file: `vla finetune`.
        kind: source of the frames.
        description: one line for `vla list`.
        chunk: consecutive actions of one answer, token by token; without it the policy's own number, 1 for every
            published OpenVLA and for a new model.
        train: trained parts: "vision", "projector", "decoder"; the others are frozen.
        lora_rank: train LoRA matrices of this rank beside the frozen linear layers of those parts; 0 trains the
            weights. OpenVLA uses 32. The trained policy is saved merged, without adapters.
        steps: optimiser steps.
        batch_size: frames per step.
        micro_batch: frames of one forward pass, if a step's frames do not fit into memory; 0 for all.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU of CUDA if there is one. Of several processes, each
            takes its own GPU with "auto" or "cuda". `--device` overrides it.
        bf16: compute in bfloat16, with weights in fp32.
        activation_checkpointing: store only each block's input and recompute the rest for the gradient: much less
            memory for about a third more time, and the same results.
        shard: with several processes, store only a part of every weight, gradient and moment in each (FSDP) and not all
            (DDP): for a model that does not fit on one GPU. One process stores everything either way.
        optimizer: "adamw"; or "muon", which gives the matrices of hidden layers orthogonal updates of the same size and
            leaves the rest to AdamW: a small new model learned Lift in about half of the steps. It needs whole
            matrices: no `lora_rank` and no `shard`.
        learning_rate: peak rate of the optimiser.
        warmup_steps: linear rise to the peak.
        vision_warmup_steps: linear rise of the vision tower's rate alone, from nothing to that of the other parts, as
            in PaliGemma's first stage; 0 gives all parts one rate.
        final_rate: share of the peak at the cosine's end; 1 keeps the rate constant, as OpenVLA does.
        weight_decay: weight decay of matrices.
        clip_norm: largest gradient norm, above which gradients are scaled down; 0 switches this off.
        bin_smoothing: spread of the action labels over neighbouring bins, in bins; 0 is OpenVLA's plain cross-entropy.
        shift_px: largest random shift of each frame to either side, in pixels of the tower input.
        ema: decay of the averaged weights, which are saved and evaluated; 0 saves the raw ones.
        held_out: share of episodes that are held out for the held-out loss; for a mixture, any share above 0 uses its
            validation split, and 0 does without.
        evaluate_every: steps between held-out losses.
        checkpoint_every: steps between checkpoints that a run can resume from.
        seed: seed of initialisation, order and augmentation.
        tensorboard: also write the lines of metrics.jsonl for TensorBoard, to OUT/tensorboard.
        wandb: also send them to this project of Weights & Biases; its package is installed separately.
        questions: question-answer data that are trained together with the robot's.
        wordings: other sentences for the data's instructions, so that the policy knows more than these.
        rollouts: episodes in a world during training.
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
    device: str = AUTO
    bf16: bool = False
    activation_checkpointing: bool = False
    shard: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    vision_warmup_steps: int = 0
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
    wordings: tuple[WordingsRecipe, ...] = ()
    rollouts: RolloutsRecipe | None = None

    @property
    def question_rows(self) -> int:
        """Number of questions in each step's batch: the nearest integer, at least 1 unless the weight is 0."""
        weight = self.questions.weight if self.questions else 0.0
        return min(max(round(weight * self.batch_size), 1), self.batch_size - 1) if weight > 0 else 0

    @property
    def robot_rows(self) -> int:
        """Number of robot frames in each step's batch."""
        return self.batch_size - self.question_rows

    def __post_init__(self) -> None:
        problems = [*self._source_problems(), *self._range_problems()]
        if self.question_rows == 0 and self.questions and self.questions.weight > 0:
            problems.append("a batch_size of 1 has no room for questions beside robot data; take 2 or more")
        if self.chunk is not None and self.chunk < 1:
            problems.append(f"chunk is {self.chunk}; an answer has at least 1 action")
        if self.wandb is not None and not self.wandb.strip():
            problems.append("wandb is empty; give the project's name, or leave it out")
        if self.optimizer == "muon" and (self.lora_rank or self.shard):
            problems.append('optimizer is "muon", which needs whole matrices; take "adamw" with lora_rank or shard')
        if not self.train:
            problems.append("train names no part of the model, so nothing would learn")
        if problems:
            raise RecipeError("; ".join(problems))

    def _source_problems(self) -> Iterator[str]:
        """Return the problems of the keys that only one kind has."""
        return iter(())

    def _range_problems(self) -> Iterator[str]:
        if problem := seed_problem(self.seed):
            yield problem
        if problem := device_problem(self.device):
            yield problem
        for name in ("lora_rank", "micro_batch", "vision_warmup_steps"):
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
    """Training from demonstrations of `vla record`, which are kept in memory.

    Attributes:
        data: LeRobot dataset folders; their frames are pooled.
        weights: relative frequency with which a frame of each dataset is drawn; without it all frames of all datasets
            are shuffled together.
        dataset_name: key of their statistics in dataset_statistics.json.
        policy: checkpoint folder or policy recipe to start from; without it a new model of `architecture` is made.
        architecture: size of a new model; ignored with `policy`.
        codec: how a new model, or a `policy` without actions yet, says them; without it by OpenVLA's bins.
        head: gives actions as numbers and not as tokens; it excludes `codec`.
        resolution: edge of the frames that the policy's tower reads from this training on [px]; the table of its
            positions is interpolated, as in PaliGemma's second stage. Without it the policy's own.
    """

    kind: Literal["demonstrations"] = "demonstrations"
    data: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    dataset_name: str = "demos"
    policy: Path | None = None
    architecture: Architecture = field(default_factory=Architecture)
    codec: CodecRecipe | None = None
    head: HeadRecipe | None = None
    resolution: int | None = None

    def _source_problems(self) -> Iterator[str]:
        if self.resolution is not None and self.policy is None:
            yield "resolution changes that of a policy; a new model has image_size in [architecture]"
        if self.resolution is not None and self.resolution < 1:
            yield f"resolution is {self.resolution}, must be at least 1 pixel"
        has_new_rows = self.codec is not None and self.codec.kind != "words"
        if has_new_rows and (self.lora_rank or "decoder" not in self.train):
            yield (
                'lora_rank and a train without "decoder" train no row of the vocabulary, so that the tokens of [codec] '
                "would never be learned; set lora_rank = 0 and train the decoder"
            )
        if self.codec is not None and self.head is not None:
            yield "[codec] says actions in tokens and [head] gives them as numbers; leave one of the two out"
        if self.head is not None and self.head.prefix and self.head.prefix >= (self.chunk or 1):
            yield f"[head] prefix is {self.head.prefix}, and must be less than chunk, which is {self.chunk or 1}"
        if self.weights and len(self.weights) != len(self.data):
            yield f"weights has {len(self.weights)} numbers for {len(self.data)} datasets of data; give one for each"
        if self.weights and len(set(self.data)) < len(self.data):
            yield "data names a dataset twice; give it once, with a larger weight"
        if wrong := [f"{weight:g}" for weight in self.weights if not 0 < weight < math.inf]:
            yield f"weights holds {', '.join(wrong)}; each must be above 0: leave a dataset out of data instead"


@dataclass(frozen=True, kw_only=True)
class MixtureFinetuneRecipe(FinetuneRecipe):
    """Training from a mixture of datasets, which are read during training.

    Attributes:
        mixture: a mixture or one dataset of datasets/, by name or path. It has its own statistics.
        policy: checkpoint folder or policy recipe to start from, since a mixture names no arm.
        root: folder or URL (gs://, s3://, http://) of the mixture's datasets; without it each recipe's own location is
            used.
        cameras: the policy's cameras by role, in its order: "primary", "secondary", "wrist".
        augment: use OpenVLA's augmentation by crop and colours.
        workers: number of processes that decode frames; 0 decodes in the training process.
    """

    kind: Literal["mixture"] = "mixture"
    mixture: str
    policy: Path
    root: Url | Path | None = None
    cameras: tuple[str, ...] = ("primary",)
    augment: bool = True
    workers: int = 2

    def _source_problems(self) -> Iterator[str]:
        if self.workers < 0:
            yield f"workers is {self.workers}, must be 0 or more"


def _kind_by_keys(table: Mapping[str, Any]) -> str:
    """Return the kind of a table without `kind`: "mixture" if it has that key."""
    return "mixture" if "mixture" in table else "demonstrations"


FinetuneRecipe.kinds = Kinds(
    "training",
    FinetuneRecipe,
    (DemosFinetuneRecipe, MixtureFinetuneRecipe),
    groups=(),
    default=_kind_by_keys,
    idle=("dataset_name", "architecture", "codec", "resolution", "root", "cameras", "augment", "workers"),
)


def with_data(recipe: FinetuneRecipe, **data: Any) -> DemosFinetuneRecipe:
    """Return the same training from demonstrations, without a mixture's keys."""
    return DemosFinetuneRecipe(**{**_shared(recipe, DemosFinetuneRecipe), **data})


def with_mixture(recipe: FinetuneRecipe, **mixture: Any) -> MixtureFinetuneRecipe:
    """Return the same training from a mixture, without the keys of demonstrations.

    Raises:
        RecipeError: there is no policy to start from.
    """
    arguments = {**_shared(recipe, MixtureFinetuneRecipe), **mixture}
    if arguments.get("policy") is None:
        raise RecipeError("a mixture does not say what arm it drives, so it needs policy: one to start from")
    return MixtureFinetuneRecipe(**arguments)


def _shared(recipe: FinetuneRecipe, schema: type[FinetuneRecipe]) -> dict[str, Any]:
    """Return the recipe's values of the keys that `schema` has too."""
    names = {f.name for f in fields(schema)} - {"kind"}
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name in names}
