"""Opens demonstrations for training: one or several LeRobot datasets with an embodiment contract.

demos = open_demos(["data/lift", "data/lift_round_1"])
demos.actions                       (N, D) labels
demos.images(17)                    {"front": (H, W, 3), "wrist": (H, W, 3)}

`LeRobotSource` reads the datasets; the contract gives the meaning of their fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.episode import Frames
from vla_robot.core.errors import DataError, unknown
from vla_robot.core.messages import Image
from vla_robot.data.formats.lerobot.layout import (
    ACTION,
    EMBODIMENT,
    EXECUTED,
    IMAGES,
    INFO,
    STATE,
    SUCCESS,
    find_column,
    read_embodiment,
    require_same_embodiment,
)
from vla_robot.data.formats.lerobot.source import INSTRUCTION, LeRobotSource, field_name
from vla_robot.data.formats.source import require_finite
from vla_robot.data.pipeline.standardise import Trajectory, fields_of, misfits, standardise
from vla_robot.recipe.oxe import RecordedRecipe


@dataclass(frozen=True)
class DemoEpisode:
    """One episode among the frames of `Demos`.

    Attributes:
        source: the episode's dataset.
        index: index of the episode in its dataset.
        start: number of its first frame.
        stop: number after its last frame.
        instruction: the task in plain words, at its first step; `Demos.instruction_at` gives that of each step.
        success: whether the task was done at the end; None when the dataset does not say.
        seed: the episode's seed; None when the dataset was not recorded by `vla record`.
        driver: name of the driver of the arm; None when the dataset was not recorded by `vla record`.
        goes_on: whether it ends at a gap, after which the robot moved on without a record.
    """

    source: LeRobotSource
    index: int
    start: int
    stop: int
    instruction: str
    success: bool | None
    seed: int | None
    driver: str | None
    goes_on: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Demos:
    """N steps of demonstrations. Numbers are in memory; frames are read from the disk when they are needed.

    Attributes:
        parts: the datasets in order, each with its recipe.
        episodes: the episodes in order, which cover all steps.
        cameras: name -> (height, width) of the stored frames [px].
        states: (N, S) float64, the arm's state.
        actions: (N, D) float64, the labels.
        executed: (N, D) float64, the actions that were sent to the arm; None when a dataset lacks them.
        texts: all instructions, each once.
        text_of: (N,) index into `texts` of each step's instruction; one episode may have several.
    """

    parts: tuple[tuple[LeRobotSource, RecordedRecipe], ...]
    episodes: tuple[DemoEpisode, ...]
    cameras: Mapping[str, tuple[int, int]]
    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    executed: NDArray[np.float64] | None
    texts: tuple[str, ...]
    text_of: NDArray[np.int64]

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment of all datasets: meaning of the numbers."""
        return self.parts[0][1].embodiment

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    def instruction_at(self, index: int) -> str:
        """Return the instruction of a step."""
        return self.texts[self.text_of[index]]

    def film(self, episode: DemoEpisode, camera: str) -> Frames:
        """Return the frames of an episode by one camera.

        Raises:
            DataError: there is no such camera, or a file is damaged.
        """
        if camera not in self.cameras:
            raise DataError(unknown("camera", camera, self.cameras))
        recipe = next(recipe for source, recipe in self.parts if source is episode.source)
        field = recipe.camera_fields[camera]
        return episode.source.episode(episode.index, [field]).frames(field)

    def images(self, index: int) -> dict[str, Image]:
        """Read the frames of one step. Return camera -> (H, W, 3) uint8.

        Raises:
            IndexError: there is no such step.
            DataError: a file is damaged.
        """
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index} of {self.num_frames}")
        episode = next(episode for episode in self.episodes if index < episode.stop)
        return {name: self.film(episode, name).decode(index - episode.start) for name in self.cameras}


def open_demos(roots: Path | str | Sequence[Path | str]) -> Demos:
    """Open one dataset, or several as one.

    Args:
        roots: folders of LeRobot datasets. All must have the same embodiment and the same frame sizes.

    Raises:
        DataError: a folder is no dataset, is damaged, empty, or without meta/embodiment.json, or two datasets differ in
            embodiment or frame sizes.
        MissingDependencyError: the extra [data] is not installed.
    """
    folders = [Path(roots)] if isinstance(roots, (str, Path)) else [Path(root) for root in roots]
    if not folders:
        raise DataError("no dataset was named. `vla record` makes one.")
    parts = [_open(folder) for folder in folders]
    cameras = [_sizes(source, recipe) for source, recipe in parts]
    for (source, recipe), seen in zip(parts[1:], cameras[1:], strict=True):
        first, first_recipe = parts[0]
        require_same_embodiment(source.root, recipe.embodiment, first_recipe.embodiment)
        if seen != cameras[0]:
            raise DataError(
                f"{source.root} holds frames of {seen}, but {first.root} of {cameras[0]} (height, width). "
                "Record both with the same --image-size."
            )
    return _read(parts, cameras[0])


def _open(root: Path) -> tuple[LeRobotSource, RecordedRecipe]:
    """Open a dataset. Return it with its recipe."""
    embodiment = read_embodiment(root)
    if not (root / INFO).is_file():
        raise DataError(f"{root} holds no finished episode. `vla record` makes some.")
    source = LeRobotSource(root, None)
    if not len(source):
        raise DataError(f"{root} holds no step: its episodes are empty. `vla record` makes some.")
    recipe = recipe_of(source, embodiment)
    if problems := misfits(recipe, source.fields):
        raise DataError(
            f"{root} does not fit its {EMBODIMENT}: {'; '.join(problems)}. Available: {', '.join(source.fields)}."
        )
    return source, recipe


def recipe_of(source: LeRobotSource, embodiment: Embodiment) -> RecordedRecipe:
    """Return the recipe for recordings of this embodiment."""

    def field(column: str) -> str:
        return field_name(find_column(source.lerobot_features, column))

    return RecordedRecipe(
        "source",
        (field(ACTION),),
        state=(field(STATE),) if embodiment.state else (),
        instruction=INSTRUCTION,
        embodiment=embodiment,
        fields={camera.name: field(IMAGES + camera.name) for camera in embodiment.cameras},
    )


def _sizes(source: LeRobotSource, recipe: RecordedRecipe) -> dict[str, tuple[int, int]]:
    """Return camera -> (height, width) of its stored frames [px]."""
    shapes = {name: source.fields[field].shape for name, field in recipe.camera_fields.items()}
    return {name: (height or 0, width or 0) for name, (height, width, _) in shapes.items()}


@dataclass(frozen=True)
class _Numbers:
    """The numbers of one episode; `executed` and `success` are None where the dataset lacks them."""

    source: LeRobotSource
    index: int
    steps: Trajectory
    executed: NDArray[np.float64] | None
    success: bool | None

    def episode(self, stop: int) -> DemoEpisode:
        """Return the episode, given the number after its last step."""
        note, start = self.source.note(self.index), stop - len(self.steps)
        told = note.get("seed"), note.get("driver"), self.source.goes_on(self.index)
        return DemoEpisode(self.source, self.index, start, stop, self.steps.instructions[0], self.success, *told)


def _read(parts: Sequence[tuple[LeRobotSource, RecordedRecipe]], cameras: Mapping[str, tuple[int, int]]) -> Demos:
    """Read all numbers of some datasets."""
    read = [_numbers(source, recipe, index) for source, recipe in parts for index in range(len(source))]
    told = [text for each in read for text in each.steps.instructions]
    texts = {text: number for number, text in enumerate(dict.fromkeys(told))}
    executed = [each.executed for each in read if each.executed is not None]
    stops = np.cumsum([len(each.steps) for each in read]).tolist()
    return Demos(
        parts=tuple(parts),
        episodes=tuple(each.episode(stop) for each, stop in zip(read, stops, strict=True)),
        cameras=cameras,
        states=np.concatenate([each.steps.state for each in read], dtype=np.float64),
        actions=np.concatenate([each.steps.actions for each in read], dtype=np.float64),
        executed=np.concatenate(executed, dtype=np.float64) if len(executed) == len(read) else None,
        texts=tuple(texts),
        text_of=np.array([texts[text] for text in told], dtype=np.int64),
    )


def _numbers(source: LeRobotSource, recipe: RecordedRecipe, index: int) -> _Numbers:
    executed, success = (field_name(name) for name in (EXECUTED, SUCCESS))
    wanted = [*fields_of(recipe), *(name for name in (executed, success) if name in source.fields)]
    episode = source.episode(index, wanted)
    given = episode.numbers(executed) if executed in episode.steps else None
    if given is not None:
        require_finite(given, f"{episode.where}: field '{executed}'")
    done = bool(episode.numbers(success)[-1]) if success in episode.steps else None
    return _Numbers(source, index, standardise(recipe, episode), given, done)
