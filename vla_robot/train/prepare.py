"""Prepares the model and the data of a run, and their fingerprint, by which a resumed run recognises both."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vla_robot.core.embodiment import Embodiment, misfits
from vla_robot.core.errors import ContractError, DataError, RecipeError
from vla_robot.core.language.boxes import asks_for_boxes
from vla_robot.data.formats.kinds import format_at
from vla_robot.data.formats.lerobot.demo_dataset import Demos, open_demos
from vla_robot.data.formats.recognise import advise
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.data.questions import read_questions
from vla_robot.policy.families import family_named, family_of
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, write_json
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.small_files import EMBODIMENT, STATISTICS
from vla_robot.recipe.finetune import (
    Architecture,
    DemosFinetuneRecipe,
    FinetuneRecipe,
    HeadRecipe,
    MixtureFinetuneRecipe,
)
from vla_robot.train.batches.data import TrainingData, data_of_demos, data_of_mixture, open_recipe_mixture
from vla_robot.train.batches.questions import QuestionData
from vla_robot.train.batches.wordings import every_wording
from vla_robot.train.checkpoint import replacing
from vla_robot.train.contrastive.tower import take_over
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.trainer import OnProgress, Progress

SINCE: Mapping[str, Any] = {
    "weights": (),
    "chunk": None,
    "codec": None,
    "head": None,
    "resolution": None,
    "vision_warmup_steps": 0,
    "wordings": (),
    "optimizer": "adamw",
}
SINCE_IN_ARCHITECTURE: Mapping[str, Any] = {
    "family": "openvla",
    "locations": False,
    "tower": None,
    "cameras": (),
    "initializer_range": 0.0,  # older runs began with 0.02, and their OUT/start keeps it
}
SINCE_IN_QUESTIONS: Mapping[str, Any] = {"box_smoothing": 0.0, "in_vocabulary": False}
"""Fields that older recipes and their tables lack, with the value that they imply; it leaves the fingerprint as it was.
"""

UNSAID: Mapping[str, Any] = {
    "data": (), "dataset_name": "demos", "architecture": asdict(Architecture()),
    "mixture": None, "root": None, "cameras": ("primary",), "augment": True,
}  # fmt: skip
"""What the fingerprint of a recipe says of the keys that its kind has not."""

SAME: Mapping[str, Any] = {"description": "", "workers": 0, "device": "auto", "rollouts": None}
"""What it says of fields that change nothing that is learned."""

NOT_LEARNED = ("kind", "activation_checkpointing", "shard", "tensorboard", "wandb")
"""Fields that change how a run computes or where it reports, but not what is learned."""


@dataclass(frozen=True)
class Prepared:
    """Policy and data that a run starts from.

    Attributes:
        start: folder of the policy before training.
        key: the dataset whose statistics the policy uses.
        model: the model of `start`. Nothing else keeps the policy that it was loaded with, whose form for acting would
            hold the weights in main memory after the model has moved.
        data: the training data.
        questions: questions that the run trains on or measures; None without.
        drives_by: the dataset whose statistics un-normalise the trained policy's actions; None after several datasets.
    """

    start: Path
    key: str
    model: AnyVLAModel
    data: TrainingData
    questions: QuestionData | None
    drives_by: str | None


def prepare(recipe: FinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> Prepared:
    """Prepare a run's policy and data.

    Raises:
        ContractError: the demonstrations were recorded with another embodiment than the policy's.
        DataError: the data or the questions cannot be read, or do not fit the policy.
        RecipeError: the ranks cannot share a step's frames equally, or the policy has no embodiment.
    """
    ranks.share(recipe.batch_size)  # refuses before frames are decoded
    if isinstance(recipe, MixtureFinetuneRecipe):
        return _from_mixture(recipe, out, ranks, on_progress)
    assert isinstance(recipe, DemosFinetuneRecipe)  # no package adds kinds of trainings
    return _from_demos(recipe, out, ranks, on_progress)


def _loading(recipe: FinetuneRecipe, ranks: Ranks, key: str) -> Loading:
    """Return how a rank loads the model to be trained: without weights, if it will read its own rows."""
    device = torch.device("meta" if recipe.shard and ranks.count > 1 else "cpu")
    return Loading(device=device, statistics_key=key, trainable=True)


def _from_demos(recipe: DemosFinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> Prepared:
    with ranks.one_first():
        demos = _open(recipe)
        start = _start_at(out, lambda folder: _write_start(recipe, demos, folder))
    # Every rank decodes the frames at the same time; none of this writes.
    policy = family_of(start).load(start, _loading(recipe, ranks, recipe.dataset_name))

    def decoding(done: int, total: int) -> None:
        on_progress(Progress("frames", done, total, {}))

    data = data_of_demos(recipe, demos, policy, ranks, decoding)
    name = recipe.dataset_name
    return Prepared(start, name, policy.model, data, _questions(recipe, policy, ranks), drives_by=name)


def _from_mixture(recipe: MixtureFinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> Prepared:
    def indexing(name: str, done: int, total: int) -> None:
        on_progress(Progress(f"indexing {name}", done, total, {}))

    folder = recipe.policy
    chunk = recipe.chunk or family_of(folder).read(folder).config.chunk
    with ranks.one_first():  # the first one writes the tables of steps and the start policy
        mixture = open_recipe_mixture(recipe, "train", indexing, chunk)
        # The mixture's statistics take the place of those of the same name, as in the reference.
        start = _start_at(out, lambda start: _copy_policy(folder, start, mixture.statistics, recipe.chunk))
        key = next(iter(mixture.statistics))
        policy = family_of(start).load(start, _loading(recipe, ranks, key))
        data = data_of_mixture(recipe, mixture, policy, ranks, indexing)
    only = key if len(mixture.statistics) == 1 else None
    return Prepared(start, key, policy.model, data, _questions(recipe, policy, ranks), drives_by=only)


def _questions(recipe: FinetuneRecipe, policy: AnyVLAPolicy, ranks: Ranks) -> QuestionData | None:
    if recipe.questions is None:
        return None
    policy.model.locations = policy.tokenizer.locations()
    return QuestionData(recipe, recipe.questions, policy, ranks)


def _start_at(out: Path, write: Callable[[Path], None]) -> Path:
    """Return `OUT/start`, and write it if it is missing; a crash leaves no incomplete folder under that name."""
    start = out / "start"
    if not (start / "config.json").is_file():
        with replacing(start, out) as partial:
            write(partial)
    return start


def _copy_policy(policy: Path, folder: Path, statistics: Mapping[str, Any], chunk: int | None) -> None:
    """Copy a policy's folder, add or replace these statistics, and set the actions of an answer."""
    shutil.copytree(policy, folder)
    write_json(folder / "dataset_statistics.json", {**family_of(policy).read(policy).config.norm_stats, **statistics})
    _set_chunk(folder, chunk)


def _set_chunk(folder: Path, chunk: int | None) -> None:
    """Write to a policy's folder how many actions an answer holds; None changes nothing."""
    if chunk is not None:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, OUR_BLOCK: {**config.get(OUR_BLOCK, {}), "chunk": chunk}})


def _write_start(recipe: DemosFinetuneRecipe, demos: Demos, folder: Path) -> None:
    """Write the policy that a run starts from, in the recipe's resolution."""
    _write_policy(recipe, demos, folder)
    if recipe.resolution is not None:
        family_of(folder).resize(folder, recipe.resolution)


def _write_policy(recipe: DemosFinetuneRecipe, demos: Demos, folder: Path) -> None:
    """Write a copy of the recipe's policy, or a new one of its architecture or of a model without action tokens.

    Statistics of a dataset that the policy already knows are kept, since its weights depend on those units. A new
    dataset's are computed from all its transitions.
    """
    statistics = dataset_statistics(recipe.dataset_name, demos.actions, demos.states, len(demos.episodes))
    if recipe.policy is None:
        new = recipe.architecture
        texts = [*demos.texts, *every_wording(recipe.wordings, demos.texts), *_question_texts(recipe)]
        family_named(new.family).create(
            folder,
            new,
            demos.embodiment.with_cameras(new.cameras) if new.cameras else demos.embodiment,
            statistics,
            texts,
            recipe.seed,
            recipe.codec,
            recipe.chunk or 1,
            recipe.head,
        )
        if new.tower is not None:
            take_over(folder, new)
        return
    family = family_of(recipe.policy)
    if not family.acts(recipe.policy):
        family.adopt(recipe.policy, folder, demos.embodiment, statistics, recipe.codec, recipe.chunk or 1)
        if recipe.head is not None:
            family.give_head(folder, recipe.head, demos.embodiment, recipe.chunk or 1, recipe.seed)
        return
    if recipe.head is not None:
        _write_with_head(recipe, recipe.policy, recipe.head, demos.embodiment, statistics, folder)
        return
    if recipe.codec is not None:
        raise RecipeError(
            f"{recipe.policy} says actions already, and its weights know no other way: leave [codec] out, or start "
            "from the model that it was made of."
        )
    policy = family.read(recipe.policy)
    if policy.embodiment is None:
        raise RecipeError(f"{recipe.policy} does not say which robot it controls (it has no embodiment.json).")
    _require_fit(policy.embodiment, demos.embodiment, recipe)
    new = {} if recipe.dataset_name in policy.config.norm_stats else statistics
    _copy_policy(recipe.policy, folder, new, recipe.chunk)


def _question_texts(recipe: FinetuneRecipe) -> list[str]:
    """Return the texts of questions and answers, without boxes, that a new tokenizer is to be trained on."""
    if recipe.questions is None or not recipe.questions.in_vocabulary:
        return []
    asked = [q for q in read_questions(recipe.questions.folder)["train"] if not asks_for_boxes(q.question)]
    return [text for q in asked for text in (q.question, q.answer)]


def _write_with_head(
    recipe: DemosFinetuneRecipe,
    policy: Path,
    head: HeadRecipe,
    embodiment: Embodiment,
    statistics: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write a copy of a policy of tokens that gets a new head, and with it the arm, cameras and units of the data.

    Raises:
        RecipeError: the policy has a head already.
    """
    family = family_of(policy)
    if family.read(policy).config.head is not None:
        raise RecipeError(f"{policy} has an action head already: leave [head] out, or start from a policy of tokens.")
    shutil.copytree(policy, folder)
    (folder / "recipe.toml").unlink(missing_ok=True)  # of the policy of tokens
    write_json(folder / STATISTICS, statistics)
    write_json(folder / EMBODIMENT, embodiment.to_dict())
    family.give_head(folder, head, embodiment, recipe.chunk or 1, recipe.seed)


def _require_fit(wanted: Embodiment, recorded: Embodiment, recipe: DemosFinetuneRecipe) -> None:
    """Raise ContractError with every field that differs and the commands that help, unless the data fit the policy."""
    problems = [text.rstrip(".") for text in misfits(wanted, recorded, "the data")]
    if not problems:
        return
    data = ",".join(map(str, recipe.data))
    cameras = ", ".join(camera.name for camera in wanted.cameras)
    raise ContractError(
        f"{data} was recorded with '{recorded.name}' and does not fit {recipe.policy}, which was made for "
        f"'{wanted.name}': {'; '.join(problems)}. No conversion changes what an arm did: record again with "
        f"`vla record --env ENV --out FOLDER`, ENV being a world of {wanted.rate_hz:g} Hz with the camera(s) {cameras} "
        "(`vla list envs`); or train a new policy for this data, without --policy: "
        f"`vla finetune --data {data} --out FOLDER`."
    )


def _open(recipe: DemosFinetuneRecipe) -> Demos:
    """Open the recipe's datasets; the error for a dataset in another format says how to train on it."""
    try:
        return open_demos(recipe.data)
    except DataError as error:
        for root in recipe.data:
            if kind := _other_format(root):
                raise DataError(
                    f"{root} is {kind}, and data takes LeRobot datasets: `vla data convert {root} FOLDER --to lerobot` "
                    "makes one, which then needs the meta/embodiment.json of a recording of the same arm, cameras and "
                    f"units. Or train on it as it is: {advise(str(root))}"
                ) from error
        raise


def _other_format(root: Path) -> str | None:
    if root.is_dir() and (any(root.rglob("dataset_info.json")) or any(root.rglob("*.tfrecord*"))):
        return "an RLDS dataset"
    try:
        name = format_at(root)
    except DataError:
        return None
    return {"lerobot": None, "hdf5": "a robomimic file"}.get(name, f"of the format '{name}'")


def fingerprint_of(recipe: FinetuneRecipe, prepared: Prepared) -> str:
    """Return a hash that changes when another recipe or other data would make a resumed run a different one."""
    facts = json.dumps(_said(recipe), default=str, sort_keys=True).encode()
    asked = prepared.questions.fingerprint() if prepared.questions else b""
    return hashlib.sha256(facts + prepared.data.fingerprint + asked).hexdigest()[:16]


def _said(recipe: FinetuneRecipe) -> dict[str, Any]:
    """Return what decides what is learned, as recipes said it when one dataclass had the keys of all kinds."""
    fields = {**UNSAID, **asdict(recipe), **SAME}
    fields["architecture"] = _without_since(fields["architecture"], SINCE_IN_ARCHITECTURE)
    if fields.get("questions"):
        fields["questions"] = _without_since(fields["questions"], SINCE_IN_QUESTIONS)
    fields = {name: value for name, value in fields.items() if name not in NOT_LEARNED}
    return _without_since(fields, SINCE)


def _without_since(fields: Mapping[str, Any], since: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in since or value != since[name]}
