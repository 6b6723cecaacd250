"""One demonstration: observations, labels and executed actions. Its builder encodes frames as they come."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError
from vla_robot.core.image import resize
from vla_robot.core.messages import Image, Observation, StepResult, Vector
from vla_robot.data.formats import png
from vla_robot.data.pipeline.stats import PIXEL_VALUES, count_pixels


@dataclass(frozen=True)
class Camera:
    """One camera's frames of an episode.

    Attributes:
        png: one PNG file per step.
        height: height of each frame [px].
        width: width of each frame [px].
        pixel_counts: (3, 256) number of pixels with each value in each channel, over all frames.
    """

    png: tuple[bytes, ...]
    height: int
    width: int
    pixel_counts: NDArray[np.int64]


@dataclass(frozen=True)
class Corrections:
    """The driver of each step, policy or person, where a person may take over.

    Attributes:
        intervention: (T,) bool, whether a person drove, so that the action is a correction.
        policy_actions: (T, D) the policy's actions; the step's own action where the policy was not asked.
        policy_asked: (T,) bool, whether the policy was asked.
    """

    intervention: NDArray[np.bool_]
    policy_actions: NDArray[np.float64]
    policy_asked: NDArray[np.bool_]


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps, complete.

    Attributes:
        embodiment: meaning of the numbers.
        seed: the episode's seed.
        driver: name of the driver of the arm, e.g. "expert".
        instruction: the task in plain words.
        cameras: name -> frames, one before each action.
        states: (T, S) the arm's state before each action, in the embodiment's units.
        actions: (T, D) the labels that a policy learns, in the embodiment's units.
        executed: (T, D) the actions that were sent to the arm; steps without one are not part of a demonstration.
        success: (T,) bool, whether the task's success test held after the step.
        stamps_ns: (T,) int64, capture time of the oldest frame of each step.
        steps: (T,) int64, number of each control step in the episode as it was driven. The numbers jump where the arm
            rested in between. Where steps were lost, a demonstration ends and another one begins.
        other_labels: other instruction -> (T, D) labels for it.
        corrections: the driver of each step; None where one driver drove all of them.
        frame_stamps_ns: camera -> (T,) int64, capture time of each of its frames, on the clock of `stamps_ns`.
        facts: further numbers of the episode, by name, e.g. the measured rate.
        world: name of the world, e.g. "lift" or "libero_spatial/3"; empty where it is not known.
    """

    embodiment: Embodiment
    seed: int
    driver: str
    instruction: str
    cameras: Mapping[str, Camera]
    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    executed: NDArray[np.float64]
    success: NDArray[np.bool_]
    stamps_ns: NDArray[np.int64]
    steps: NDArray[np.int64]
    other_labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])
    corrections: Corrections | None = None
    frame_stamps_ns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict[str, NDArray[np.int64]])
    facts: Mapping[str, float] = field(default_factory=dict[str, float])
    world: str = ""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Whether the task was done at the end."""
        return bool(self.success[-1])

    def asked_otherwise(self) -> list[Demonstration]:
        """Return an episode for each other instruction: the same frames, its labels, and no success."""
        return [
            replace(
                self,
                instruction=instruction,
                driver=f"{self.driver}, asked to {instruction}",
                actions=actions,
                success=np.zeros_like(self.success),
                other_labels={},
            )
            for instruction, actions in self.other_labels.items()
        ]


class _Row(NamedTuple):
    """The numbers of one step."""

    state: Vector
    action: Vector
    executed: Vector
    success: bool
    stamp_ns: int
    frame_stamps_ns: Mapping[str, int]
    step: int


BACKLOG = 64
"""Number of steps whose frames may wait to be encoded: 20 MB with two cameras of 224 x 224."""


class DemonstrationBuilder:
    """A builder that collects the steps of one episode in memory: 20 kB a step with two cameras of 112 x 112.

    Where steps are missing, `cut` begins a new part, which becomes an episode of its own: every reader of every format
    respects an episode's end, so that none takes the steps on both sides for consecutive ones.

    Attributes:
        dropped: number of steps left out because frames came faster than they were encoded; only `in_background`.
    """

    def __init__(self, image_size: int | None = None, in_background: bool = False) -> None:
        """
        Args:
            image_size: edge in pixels to which frames are resized, as a policy resizes them; None keeps their size.
            in_background: encode frames in another thread, for callers that may not wait: `add` returns at once; when
                BACKLOG steps wait already it leaves the step out and cuts. Otherwise `add` encodes them itself.
        """
        self.dropped = 0
        self._succeeded = False
        self._slots = threading.Semaphore(BACKLOG)
        self._encoder = ThreadPoolExecutor(1, "frames") if in_background else None
        self._encoded: list[Future[None]] = []
        self._image_size = image_size
        self._parts = [_Part()]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._parts)

    def add(self, observation: Observation, label: Vector, result: StepResult) -> None:
        """Add one control step.

        Args:
            observation: the observation before the step.
            label: (D,) the action to be learned.
            result: the world's result of the step.

        Raises:
            DataError: no action was executed in this step.
        """
        if result.executed is None:
            raise DataError(f"step {observation.step} cannot be recorded: nothing was sent to the arm in it.")
        self._succeeded = result.success
        if not self._film(observation.images):
            self.dropped += 1
            self.cut()
            return
        stamps_ns = {name: observation.stamps_ns.get(name, observation.stamp_ns) for name in observation.images}
        row = _Row(
            observation.state,
            label,
            result.executed,
            result.success,
            observation.stamp_ns,
            stamps_ns,
            observation.step,
        )
        self._parts[-1].rows.append(row)
        self._parts[-1].instruction = observation.instruction

    def cut(self) -> None:
        """Begin a new part, since steps are missing between the last step and the next one."""
        if self._parts[-1].rows:
            self._parts.append(_Part())

    def finish(self, embodiment: Embodiment, seed: int, driver: str) -> Demonstration:
        """Return the episode as one demonstration. It must have at least one step and no cut between steps."""
        (demonstration,) = self.finish_parts(embodiment, seed, driver)
        return demonstration

    def finish_parts(self, embodiment: Embodiment, seed: int, driver: str) -> list[Demonstration]:
        """Return a demonstration for each part between cuts, in order; none when no step was added.

        Only the last one can have succeeded, since it holds the end of the episode.
        """
        for encoded in self._encoded:
            encoded.result()  # raises the errors of the encoding thread
        parts = [part for part in self._parts if part.rows]
        made = [part.finish(embodiment, seed, driver) for part in parts]
        if made:  # the last step itself may have been left out
            made[-1].success[-1] = self._succeeded
        if len(made) < 2:
            return made
        return [replace(d, facts={"part": k, "parts": len(made)}) for k, d in enumerate(made, start=1)]

    def _film(self, images: Mapping[str, Image]) -> bool:
        """Encode the frames of a step, or queue them. Return False when the queue is full."""
        films = self._parts[-1].films
        if self._encoder is None:
            self._encode(images, films)
            return True
        if not self._slots.acquire(blocking=False):
            return False
        self._encoded.append(self._encoder.submit(self._encode_and_let_go, images, films))
        return True

    def _encode_and_let_go(self, images: Mapping[str, Image], films: dict[str, _Film]) -> None:
        try:
            self._encode(images, films)
        finally:
            self._slots.release()

    def _encode(self, images: Mapping[str, Image], films: dict[str, _Film]) -> None:
        for name, image in images.items():
            films.setdefault(name, _Film()).add(self._sized(image))

    def _sized(self, image: Image) -> Image:
        return image if self._image_size is None else resize(image, self._image_size, self._image_size)


@dataclass
class _Part:
    """Consecutive steps without a gap."""

    rows: list[_Row] = field(default_factory=list[_Row])
    films: dict[str, _Film] = field(default_factory=lambda: dict[str, _Film]())
    instruction: str = ""

    def finish(self, embodiment: Embodiment, seed: int, driver: str) -> Demonstration:
        states, actions, executed, success, stamps_ns, frames_ns, steps = zip(*self.rows, strict=True)
        return Demonstration(
            embodiment=embodiment,
            seed=seed,
            driver=driver,
            instruction=self.instruction,
            cameras={name: film.finish() for name, film in self.films.items()},
            states=np.stack(states),
            actions=np.stack(actions),
            executed=np.stack(executed),
            success=np.array(success, dtype=np.bool_),
            stamps_ns=np.array(stamps_ns, dtype=np.int64),
            frame_stamps_ns={name: np.array([at[name] for at in frames_ns], dtype=np.int64) for name in self.films},
            steps=np.array(steps, dtype=np.int64),
        )


class _Film:
    """One camera's frames while an episode is built."""

    def __init__(self) -> None:
        self._png: list[bytes] = []
        self._size = (0, 0)
        self._counts = np.zeros((3, PIXEL_VALUES), dtype=np.int64)

    def add(self, image: Image) -> None:
        self._png.append(png.encode(image))
        self._size = image.shape[0], image.shape[1]
        self._counts += count_pixels(image)

    def finish(self) -> Camera:
        return Camera(tuple(self._png), *self._size, self._counts)
