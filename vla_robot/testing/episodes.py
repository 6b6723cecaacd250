"""A dataset in memory, for tests of code that reads datasets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode, Field
from vla_robot.core.errors import DataError, unknown
from vla_robot.data.formats import png


@dataclass(frozen=True)
class ToyFrames:
    """Frames of one camera, kept as pixels: (T, H, W, 3) uint8."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def encoded(self, step: int) -> bytes:
        return png.encode(self.pixels[step])

    def decode(self, step: int) -> NDArray[Any]:
        return self.pixels[step]

    def check(self) -> None:
        """Do nothing: all frames are complete."""


@dataclass(frozen=True)
class ToySource:
    """Episodes of random numbers and frames, the same for the same arguments. An `EpisodeSource`.

    Attributes:
        episode_lengths: steps of each episode.
        name: name of the dataset.
        instruction: instruction of every step.
        seed: seed of the numbers.
    """

    episode_lengths: Sequence[int] = (3, 5)
    name: str = "toy"
    instruction: str = "lift the cube"
    seed: int = 0

    @property
    def location(self) -> str:
        return f"memory:{self.name}"

    @property
    def fields(self) -> Mapping[str, Field]:
        fields = (
            Field("observation/front", "image", "uint8", (6, 8, 3)),
            Field("observation/state", "number", "float64", (3,)),
            Field("action", "number", "float64", (2,)),
            Field("language_instruction", "text", "str", ()),
        )
        return {field.name: field for field in fields}

    @property
    def metadata_fields(self) -> Mapping[str, Field]:
        return {"success": Field("success", "number", "bool", ())}

    @property
    def left_out(self) -> Mapping[str, str]:
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def skipped(self) -> Sequence[object]:
        return ()

    @property
    def num_skipped(self) -> int:
        return 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array(self.episode_lengths, np.int64)

    @property
    def splits(self) -> Mapping[str, int]:
        return {"train": len(self)}

    @property
    def rate_hz(self) -> float | None:
        return 10.0

    def __len__(self) -> int:
        return len(self.episode_lengths)

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        self._require(index, fields or ())
        length = self.episode_lengths[index]
        rng = np.random.default_rng([self.seed, index])
        columns: dict[str, Column] = {
            "observation/front": ToyFrames(rng.integers(0, 256, (length, 6, 8, 3), dtype=np.uint8)),
            "observation/state": rng.uniform(-1, 1, (length, 3)),
            "action": rng.uniform(-0.05, 0.05, (length, 2)),
            "language_instruction": (self.instruction,) * length,
        }
        steps = columns if fields is None else {name: columns[name] for name in fields}
        return Episode(index, {"success": True}, steps, length, f"{self.name}, episode {index}")

    def encoded(self, index: int, field: str, step: int) -> bytes:
        frames = self.episode(index, (field,)).frames(field)
        if not 0 <= step < len(frames):
            raise IndexError(f"step {step} of {len(frames)}")
        return frames.encoded(step)

    def _require(self, index: int, fields: Collection[str]) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        for name in fields:
            if name not in self.fields:
                raise DataError(f"{self.name}: " + unknown("field", name, self.fields))
