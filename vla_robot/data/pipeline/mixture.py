"""Presents several datasets as one endless, shuffled sequence of samples; sample n is the same in every process.

    mixture = open_mixture("bridge_rt_1", Path("data/oxe"))
    sample = mixture.sample(123_456)
    sample.actions                  (1, 7) normalised
    sample.frames["primary"]        one JPEG file, still encoded

The operations on a step are, in the reference's order: standardise (data/pipeline/standardise.py), normalise by the
quantiles of the whole dataset, leave out steps without an instruction or out of range, cut windows, mix by transitions,
shuffle. Decoding, resizing and augmentation follow in train/batches/stream.py.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/rlds/dataset.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError, RecipeError, unknown
from vla_robot.core.ports import EpisodeSource, MarksGaps, TaskRunner
from vla_robot.data.formats.kinds import format_at
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.recognise import advise, assumed_recipe, explain_unknown, facts_at, recognise
from vla_robot.data.formats.rlds.reader import index_rlds
from vla_robot.data.formats.storage import open_storage
from vla_robot.data.pipeline.shuffle import Order, Weighted
from vla_robot.data.pipeline.steps import StepTable, is_absolute, normalised, step_table
from vla_robot.data.pipeline.windows import Window, pad_actions
from vla_robot.recipe import find, parse, read_table
from vla_robot.recipe.oxe import MixtureRecipe, Share, SourceRecipe
from vla_robot.recipe.reading.schemas import schema_for

ROLES = ("primary", "secondary", "wrist")
STILL = 1e-5
"""Largest normalised motion of an idle step."""
SWAP = 12
"""Key of the random stream that exchanges cameras, which makes it differ from others with the same seed."""
ROWS = 65_536
"""Number of rows that are normalised at once: a few megabytes."""

OnTableProgress = Callable[[str, int, int], None]
"""Called with a dataset's name, episodes done and episodes in all, while its table is made."""


@dataclass(frozen=True)
class Choices:
    """Options of the samples that are drawn.

    Attributes:
        split: "val" takes the dataset's own split of that name, or the last 5 % of its episodes.
        window: number of observations and actions before and after a sample's step.
        cameras: roles of the cameras whose frames are given; of a recording, their names.
        known: all roles or names that `cameras` may have.
        max_action: leave out episodes with a normalised action beyond this, in any dimension.
        max_state: leave out episodes with a normalised state beyond this, in any dimension.
        seed: seed of all orders.
        skip_corrupt: leave damaged records out.
    """

    split: Literal["train", "val"] = "train"
    window: Window = field(default_factory=Window)
    cameras: tuple[str, ...] = ("primary",)
    known: tuple[str, ...] = ROLES
    max_action: float | None = None
    max_state: float | None = None
    seed: int = 0
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        for name in self.cameras:
            if name not in self.known:
                raise DataError(unknown("camera", name, self.known))


@dataclass(frozen=True)
class Sample:
    """One step of one dataset, ready to be decoded and tokenised.

    Attributes:
        dataset: the dataset's name, which is the key of its statistics.
        instruction: the instruction of the step.
        actions: (past + 1 + future, D) normalised actions.
        state: (past + 1, P) normalised states.
        is_real: (past + 1,) False where an observation replaces one before the episode's beginning.
        frames: camera -> past + 1 JPEG or PNG files; empty bytes for a camera that the dataset lacks.
    """

    dataset: str
    instruction: str
    actions: NDArray[np.floating]
    state: NDArray[np.floating]
    is_real: NDArray[np.bool_]
    frames: Mapping[str, tuple[bytes, ...]]


class Dataset:
    """The steps of one dataset that may be drawn, numbered from 0."""

    def __init__(
        self,
        name: str,
        recipe: SourceRecipe,
        parts: Mapping[str, EpisodeSource],
        table: StepTable,
        choices: Choices,
        drawn: NDArray[np.bool_] | None = None,
    ) -> None:
        """
        Args:
            name: the dataset's name.
            recipe: the dataset's recipe.
            parts: split -> its episodes.
            table: the standard steps of all splits.
            choices: options of the samples.
            drawn: (E,) whether each episode of the table may be drawn; None for all.
        """
        self.name, self.recipe, self.table = name, recipe, table
        self._parts = tuple(parts.values())
        self._choices = choices
        self._is_absolute = is_absolute(recipe)
        part = tuple(parts).index(choices.split)
        self._episodes = self._chosen((table.episodes["part"] == part) & (True if drawn is None else drawn))
        self._ends = np.cumsum(choices.window.steps_in(self._episodes["length"], self._goes_on(part)))
        self._kept = self._left_over()

    def require_steps(self) -> None:
        """Raise DataError when nothing is left to draw."""
        if len(self) == 0:
            raise DataError(
                f"{self.name}: no step is left of {len(self.table)} in split '{self._choices.split}': "
                f"{len(self._episodes)} of {len(self.table.episodes)} episodes belong to it, have an instruction and "
                "lie within the limits."
            )

    def __len__(self) -> int:
        return self._windows if self._kept is None else len(self._kept)

    @property
    def _windows(self) -> int:
        """Number of steps with a window, before single steps are left out."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def statistics(self) -> dict[str, Any]:
        """The dataset's block of dataset_statistics.json."""
        return self.table.statistics

    @property
    def is_remote(self) -> bool:
        """Whether its frames come from another computer, so that reading waits for a network."""
        return any("://" in part.location for part in self._parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the dataset's files: other versions, fields and episodes left out."""
        return notes_of(self._parts)

    def sample(self, index: int, swap: bool = False) -> Sample:
        """Return the sample of step `index` of those that may be drawn.

        Args:
            index: 0 to len - 1.
            swap: exchange the primary and the secondary camera, where the recipe allows it.

        Raises:
            DataError: a file is damaged.
        """
        number, step = self._locate(index)
        episode = self._episodes[number]
        start, length = int(episode["start"]), int(episode["length"])
        window = self._choices.window
        action_steps, is_after_end = window.actions(step, length)
        seen, is_real = window.observations(step)
        actions = self._normalised(self.table.actions[start + action_steps], "action")
        return Sample(
            dataset=self.name,
            instruction=self.table.texts[self.table.text_of[start + step]],
            actions=pad_actions(actions, is_after_end, self._is_absolute),
            state=self._state(start + seen),
            is_real=is_real,
            frames={role: self._frames(episode, seen, role, swap) for role in self._choices.cameras},
        )

    def _frames(self, episode: Any, steps: NDArray[np.int64], role: str, swap: bool) -> tuple[bytes, ...]:
        if swap and self.recipe.swap_outside:
            role = {"primary": "secondary", "secondary": "primary"}.get(role, role)
        camera = self.recipe.camera_fields.get(role)
        if camera is None:
            return (b"",) * len(steps)
        source, index, first = self._parts[episode["part"]], int(episode["index"]), int(episode["first"])
        return tuple(source.encoded(index, camera, first + int(step)) for step in steps)

    def _state(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        state = self.table.state[rows]
        return self._normalised(state, "proprio") if state.shape[1] else state

    def _normalised(self, values: NDArray[np.floating], block: str) -> NDArray[np.floating]:
        return normalised(values, self.statistics[block], self.recipe.keeps_constants)

    def _chosen(self, keep: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the episodes, (E',), that are in `keep`, have an instruction and lie within the limits, in order."""
        episodes = np.array(self.table.episodes)
        starts = episodes["start"]
        keep = keep & np.logical_or.reduceat(self._has_text(), starts)
        for limit, largest in (
            (self._choices.max_action, self._largest_action),
            (self._choices.max_state, self._largest_state),
        ):
            if limit is not None:
                keep &= np.maximum.reduceat(largest(), starts) <= limit
        return episodes[keep]

    def _goes_on(self, part: int) -> NDArray[np.bool_] | None:
        """Return whether each chosen episode ends at a gap, (E',); None where the split's source marks no gaps."""
        source = self._parts[part]
        if not isinstance(source, MarksGaps):
            return None
        return np.array([source.goes_on(index) for index in self._episodes["index"].tolist()], dtype=np.bool_)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of the chosen episode, and of its step, of sample `index`."""
        place = index if self._kept is None else int(self._kept[index])
        number = int(np.searchsorted(self._ends, place, side="right"))
        return number, place - (int(self._ends[number - 1]) if number else 0)

    def _left_over(self) -> NDArray[np.int64] | None:
        """Return the indices of steps that may be drawn; None for all steps, which takes no memory.

        Steps without an instruction are left out, and with `skip_still` idle steps.
        """
        keep = self._has_text()
        if self.recipe.skip_still:
            keep &= self._moves()
        if keep.all():
            return None
        counts = np.diff(self._ends, prepend=0)
        rows = np.arange(self._windows) + np.repeat(self._episodes["start"] - (self._ends - counts), counts)
        return np.flatnonzero(keep[rows])

    def _has_text(self) -> NDArray[np.bool_]:
        """Return whether each step has an instruction, (N,)."""
        return np.array([bool(text.strip()) for text in self.table.texts])[self.table.text_of]

    def _moves(self) -> NDArray[np.bool_]:
        """Return whether each step moves the arm, (N,)."""
        relative = ~self._is_absolute
        block = self.statistics["action"]
        none = normalised(np.zeros(len(relative), np.float32), block)
        return self._over_rows(lambda rows: (np.abs(normalised(rows, block) - none) > STILL)[:, relative].any(axis=1))

    def _largest_action(self) -> NDArray[np.float32]:
        return self._over_rows(lambda rows: np.abs(self._normalised(rows, "action")).max(axis=1))

    def _largest_state(self) -> NDArray[np.float32]:
        if self.table.state.shape[1] == 0:
            return np.zeros(len(self.table), np.float32)
        return self._over_rows(lambda rows: np.abs(self._normalised(rows, "proprio")).max(axis=1), self.table.state)

    def _over_rows(self, function: Callable[[Any], Any], values: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Apply a function to all N rows, ROWS at a time. Return its results, (N, ...)."""
        values = self.table.actions if values is None else values
        return np.concatenate([function(values[i : i + ROWS]) for i in range(0, len(values), ROWS)])


class Mixture:
    """An endless sequence of samples that are drawn from datasets by weight."""

    def __init__(
        self, datasets: Sequence[Dataset], weights: Sequence[float], seed: int, order: Order | None = None
    ) -> None:
        """
        Args:
            datasets: at least one.
            weights: relative frequency with which a step of each dataset is drawn.
            seed: seed of the order.
            order: order of the samples; None for the reference's, where a dataset's share of the samples is its weight
                times its number of transitions.
        """
        self.datasets = tuple(datasets)
        self.weights = tuple(weights)
        self._seed = seed
        self._order = order or Weighted([len(d) for d in datasets], self._shares.tolist(), seed)

    @property
    def _shares(self) -> NDArray[np.float64]:
        sizes = [d.statistics["num_transitions"] for d in self.datasets]
        return np.array(self.weights) * sizes

    @property
    def probabilities(self) -> dict[str, float]:
        """Dataset -> its share of the samples."""
        shares = self._shares / self._shares.sum()
        return {d.name: float(p) for d, p in zip(self.datasets, shares, strict=True)}

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """The content of dataset_statistics.json."""
        return {dataset.name: dataset.statistics for dataset in self.datasets}

    @property
    def epoch(self) -> int:
        """Number of samples until each dataset of weight 1 (or of the largest weight) was drawn whole."""
        main = 1.0 if 1.0 in self.weights else max(self.weights)
        sizes = [d.statistics["num_transitions"] for d in self.datasets]
        shares = self.probabilities.values()
        return int(max(n / p for n, p, w in zip(sizes, shares, self.weights, strict=True) if w == main))

    def place(self, number: int) -> tuple[int, int]:
        """Return the index of the dataset of sample `number`, and of its step."""
        return self._order.place(number)

    def sample(self, number: int) -> Sample:
        """Return sample `number` of the endless sequence.

        Raises:
            DataError: a file is damaged.
        """
        which, step = self.place(number)
        swap = np.random.default_rng([self._seed, SWAP, number]).random() > 0.5
        return self.datasets[which].sample(step, bool(swap))


@dataclass(frozen=True)
class Member:
    """A dataset of a mixture, before it is opened.

    Attributes:
        name: the dataset's name.
        recipe: the dataset's recipe.
        location: path or URL of the dataset.
        weight: weight in the mixture.
        assumed: why the meaning of its actions is assumed; "" when it is known.
    """

    name: str
    recipe: SourceRecipe
    location: str
    weight: float
    assumed: str = ""


def members_of(name_or_path: str | Path, root: str | Path | None = None) -> tuple[Member, ...]:
    """Return the datasets of a mixture; the recipe of a dataset is a mixture of one.

    Args:
        name_or_path: name or path of a recipe.
        root: folder or URL that holds the datasets whose recipes have no location.

    Raises:
        RecipeError: it is the recipe neither of a mixture nor of a published dataset, or a location is missing.
    """
    try:
        path = find("datasets", name_or_path)
    except RecipeError as error:
        if not _is_folder(name_or_path):
            raise
        raise RecipeError(f"'{name_or_path}' is a dataset, not a recipe. {advise(str(name_or_path))}") from error
    schema = schema_for("datasets", path)
    if schema is SourceRecipe:
        return (_member(Share(str(path)), root),)
    if schema is not MixtureRecipe:
        raise RecipeError(f"{path} is recorded with `vla record`; name a mixture or a dataset that exists already.")
    mixture = parse(MixtureRecipe, read_table(MixtureRecipe, path), path)
    return tuple(_member(share, root) for share in mixture.datasets)


def member_at(location: str, recipe: str | Path | None = None, *, may_assume: bool = False) -> Member:
    """Return the dataset at a location, with the given recipe or the one that is registered for it.

    Args:
        location: path or URL of the dataset.
        recipe: name or path of its recipe; None to recognise it.
        may_assume: when no recipe is known, assume standard actions, to inspect the dataset and not to train on it.

    Raises:
        RecipeError: the recipe is not that of a published dataset.
        DataError: there is no dataset, or no recipe is known for it.
    """
    if recipe is None:
        facts = facts_at(location)
        known = recognise(facts)
        if known is not None:
            return Member(known.name, known.recipe, location, 1.0)
        if not may_assume:
            raise DataError(explain_unknown(facts))
        return Member(facts.name, assumed_recipe(facts), location, 1.0, explain_unknown(facts))
    path = find("datasets", str(recipe))
    if schema_for("datasets", path) is not SourceRecipe:
        raise RecipeError(f"{path} is not the recipe of a dataset that exists already.")
    return Member(path.stem, parse(SourceRecipe, read_table(SourceRecipe, path), path), location, 1.0)


def open_mixture(
    name_or_path: str | Path,
    root: str | Path | None = None,
    choices: Choices | None = None,
    cache: Path | None = None,
    on_progress: OnTableProgress = lambda name, done, total: None,
) -> Mixture:
    """Open a mixture, or a single dataset. The first time, each dataset is read whole to make its table of steps.

    Args:
        name_or_path: name or path of a recipe.
        root: folder or URL that holds the datasets whose recipes have no location.
        choices: options of the samples.
        cache: folder for the tables of steps; None takes the user's cache folder.
        on_progress: called while a table is made.

    Raises:
        RecipeError: the name is unknown.
        DataError: a dataset is absent, damaged or does not fit its recipe.
    """
    chosen = choices or Choices()
    members = members_of(name_or_path, root)
    datasets = [open_dataset(member, chosen, cache, on_progress) for member in members]
    return Mixture(datasets, [member.weight for member in members], chosen.seed)


def open_dataset(
    member: Member,
    choices: Choices,
    cache: Path | None = None,
    on_progress: OnTableProgress = lambda name, done, total: None,
) -> Dataset:
    """Open one dataset of a mixture; see `open_mixture`."""
    parts, table = open_table_of(member, choices.skip_corrupt, cache, on_progress)
    dataset = Dataset(member.name, member.recipe, parts, table, choices)
    dataset.require_steps()
    return dataset


def open_table_of(
    member: Member,
    skip_corrupt: bool = False,
    cache: Path | None = None,
    on_progress: OnTableProgress = lambda name, done, total: None,
    runner: TaskRunner | None = None,
) -> tuple[dict[str, EpisodeSource], StepTable]:
    """Return split -> episodes of a dataset, and the table of its standard steps; see `open_mixture`.

    Args:
        member: the dataset.
        skip_corrupt: leave damaged episodes out.
        cache: folder for tables; None takes the user's cache folder.
        on_progress: called while the table is made.
        runner: where shards and episodes are read; None for this process.
    """
    progress = _progress_of(member.name, on_progress)
    if runner is not None and not runner.is_here and (member.recipe.format or format_at(member.location)) == "rlds":
        index_rlds(member.location, runner)
    parts = open_parts(member.location, skip_corrupt, member.recipe.format)
    return parts, step_table(member.name, member.recipe, tuple(parts.values()), cache, progress, runner)


def notes_of(parts: Iterable[EpisodeSource]) -> tuple[str, ...]:
    """Return the notes of a dataset's splits, each once."""
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def open_parts(location: str, skip_corrupt: bool = False, format: str | None = None) -> dict[str, EpisodeSource]:
    """Open all splits of a dataset; "val" is the last 5 % of "train" where the dataset has no split of that name.

    Args:
        location: path or URL.
        skip_corrupt: leave damaged episodes out.
        format: of its files; None recognises it.

    Raises:
        DataError: there is no dataset, or it is damaged.
    """
    opened = partial(open_source, location, format=format, skip_corrupt=skip_corrupt)
    splits = opened("all[:0]").splits  # reads no episode
    ranges = {name: name for name in splits}
    if "val" not in splits:
        ranges |= {"train": "train[:95%]", "val": "train[95%:]"}
    return {name: opened(part) for name, part in ranges.items()}


def _is_folder(name_or_path: str | Path) -> bool:
    return Path(name_or_path).expanduser().is_dir()


def _progress_of(name: str, on_progress: OnTableProgress) -> OnProgress:
    return lambda done, total: on_progress(name, done, total)


def _member(share: Share, root: str | Path | None) -> Member:
    path = find("datasets", share.name)
    if schema_for("datasets", path) is not SourceRecipe:
        raise RecipeError(f"{path} is not the recipe of a dataset that exists already, so no mixture can name it.")
    recipe = parse(SourceRecipe, read_table(SourceRecipe, path), path)
    return Member(path.stem, recipe, _location(path, recipe, root), share.weight)


def _location(path: Path, recipe: SourceRecipe, root: str | Path | None) -> str:
    if recipe.location is not None:
        is_whole = "://" in recipe.location or Path(recipe.location).is_absolute()
        folder = recipe.location if is_whole else str(path.parent / recipe.location)
    elif root is not None:
        folder = f"{root}/{_folder_in(root, path.stem, recipe)}"
    else:
        raise RecipeError(f"{path} has no location of the dataset; set location there, or name a folder with --root.")
    return f"{folder}/{recipe.version}" if recipe.version else folder


def _folder_in(root: str | Path, name: str, recipe: SourceRecipe) -> str:
    """Return the name of the dataset's folder in `root`: the recipe's name, or a name that it is published under.

    Raises:
        DataError: the recipe has several names, and `root` has none of these folders.
    """
    names = (name, *recipe.published.folders)
    if len(names) == 1:
        return name
    there = open_storage(root).folders()
    found = next((candidate for candidate in names if candidate in there), None)
    if found is None:
        raise DataError(f"{root} has none of the folders that may hold '{name}': {', '.join(names)}.")
    return found
