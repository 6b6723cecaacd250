"""Turns frames into the towers' input, pixel for pixel as the reference does.

    (H, W, 3) uint8 --image_preprocessing, square by strategy--> (S, S, 3) uint8
                                    --/255, normalise by tower-->                (3 * towers, S, S) float32

Means and standard deviations are read from preprocessor_config.json and never assumed: the published ones are rounded
to bfloat16.

Source: openvla/openvla @c8f03f48, prismatic/extern/hf/processing_prismatic.py (PrismaticImageProcessor).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.image import check_image, resize
from vla_robot.core.messages import Image
from vla_robot.policy.vla.inputs.image_preprocessing import NONE, preprocessed
from vla_robot.policy.vla.json_files import read_json

WORTH_SHARING = 8
"""Frames of a batch that are resized on two cores: half a millisecond each, to 84 px."""

type Scales = tuple[tuple[float, float, float], ...]


class FramePreprocessor(ABC):
    """Turns frames of a camera into what a model perceives: resized, then normalised."""

    @abstractmethod
    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a frame of (height, width) after resizing [px]."""

    @abstractmethod
    def resized(self, image: Image) -> Image:
        """Return a (H, W, 3) uint8 frame resized to `shape`. Raises ContractError for another shape or dtype."""

    @property
    @abstractmethod
    def scales(self) -> tuple[Scales, Scales]:
        """Means and standard deviations, each (towers, 3), by RGB channel in [0, 1]."""

    def cut(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut (..., H, W, 3) resized frames into (..., images, h, w, 3); by default into one each."""
        return frames[..., None, :, :, :]

    def normalise(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (..., H, W, 3) resized frames to (..., C, h, w) float32, C = 3 * images * towers.

        numpy uses one core here. torch splits even this work among threads; while another program used one of
        the cores, three operations of 0.1 ms each waited 6 ms for their other half.
        """
        means, stds = (np.array(scale, np.float32)[..., None, None] for scale in self.scales)
        x = np.ascontiguousarray(np.moveaxis(self.cut(frames), -1, -3)).astype(np.float32)  # (..., images, 3, h, w)
        x /= np.float32(255)
        x = x[..., None, :, :, :]
        y = np.subtract(x, means, out=x if len(means) == 1 else None)  # (..., images, towers, 3, h, w)
        y /= stds
        return y.reshape(*y.shape[:-5], -1, *y.shape[-2:])

    @abstractmethod
    def after(self, image_preprocessing: str) -> FramePreprocessor:
        """Return this one, after one of `image_preprocessing.PREPROCESSINGS`. Raises ContractError if it cannot be."""

    def __call__(self, images: Sequence[Sequence[Image]]) -> NDArray[np.float32]:
        """Return frames, given by row and camera, as (B, N, C, h, w) float32. Raises ContractError as `stacked`."""
        return self.normalise(self.stacked(images))

    def stacked(self, images: Sequence[Sequence[Image]]) -> NDArray[np.uint8]:
        """Return frames, given by row and camera, as (B, N, H, W, 3) uint8, resized.

        Raises:
            ContractError: frames of one batch have different sizes after resizing.
        """
        frames = self._all_resized(images)
        require_one_size(frame.shape[:2] for row in frames for frame in row)
        return np.stack([np.stack(row) for row in frames])

    def _all_resized(self, images: Sequence[Sequence[Image]]) -> list[list[Image]]:
        """Resize all frames, many of them on two cores: Pillow needs Python for none of its work."""
        if sum(map(len, images)) < WORTH_SHARING:
            return [[self.resized(image) for image in row] for row in images]
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(lambda row: [self.resized(image) for image in row], images))


def require_one_size(sizes: Iterable[Sequence[int]]) -> None:
    """Raise ContractError unless all resized frames of a batch have one height and width [px]."""
    if len(different := sorted({tuple(size) for size in sizes})) > 1:
        raise ContractError(
            f"the frames of a batch have different sizes after resizing: {different}; give all cameras one aspect "
            "ratio."
        )


@dataclass(frozen=True)
class Preprocessor(FramePreprocessor):
    """Makes frames square and normalises them.

    Attributes:
        size: edge of the tower input [px].
        strategy: "resize-naive" ignores the aspect ratio, "letterbox" pads to a square first, "resize-crop" resizes
            the short side and crops the middle.
        means: per tower, per RGB channel, in [0, 1].
        stds: per tower, per RGB channel, in [0, 1].
        image_preprocessing: what is done before a frame is made square; one of `image_preprocessing.PREPROCESSINGS`.
    """

    size: int
    strategy: str
    means: tuple[tuple[float, float, float], ...]
    stds: tuple[tuple[float, float, float], ...]
    image_preprocessing: str = NONE

    @classmethod
    def read(cls, folder: Path, size: int, towers: int, strategy: str) -> Preprocessor:
        """Read `folder/preprocessor_config.json`.

        Args:
            folder: folder of the checkpoint.
            size: edge of the tower input [px].
            towers: number of the model's towers.
            strategy: strategy if the file names none.

        Raises:
            CheckpointError: the file is missing or does not fit config.json.
        """
        path = folder / "preprocessor_config.json"
        return cls.from_dict(read_json(path), size, towers, strategy, str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], size: int, towers: int, strategy: str, source: str) -> Preprocessor:
        """Do the same as `read` with the content of the file at `source`."""
        try:
            means = tuple((float(r), float(g), float(b)) for r, g, b in data["means"])
            stds = tuple((float(r), float(g), float(b)) for r, g, b in data["stds"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{source}: means and stds must be lists of RGB triples: {error}.") from error
        if len(means) != towers or len(stds) != towers:
            raise CheckpointError(f"{source}: {len(means)} means and {len(stds)} stds for {towers} towers.")
        return cls(size, data.get("image_resize_strategy", strategy), means, stds)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of preprocessor_config.json, with every field that the reference's processor reads."""
        towers = range(len(self.means))
        shape = [3, self.size, self.size]
        return {
            "image_processor_type": "PrismaticImageProcessor",
            "processor_class": "PrismaticProcessor",
            "use_fused_vision_backbone": len(self.means) == 2,
            "image_resize_strategy": self.strategy,
            "input_sizes": [shape for _ in towers],
            "interpolations": ["bicubic" for _ in towers],
            "means": [list(mean) for mean in self.means],
            "stds": [list(std) for std in self.stds],
            "tvf_crop_params": [{"output_size": [self.size, self.size]} for _ in towers],
            "tvf_do_letterbox": self.strategy == "letterbox",
            "tvf_letterbox_fill": list(_letterbox_fill(self.means[0])) if self.strategy == "letterbox" else None,
            "tvf_normalize_params": [
                {"inplace": False, "mean": list(mean), "std": list(std)}
                for mean, std in zip(self.means, self.stds, strict=True)
            ],
            "tvf_resize_params": [
                {"antialias": True, "interpolation": 3, "max_size": None, "size": self._resize_size()} for _ in towers
            ],
        }

    def _resize_size(self) -> int | list[int]:
        return self.size if self.strategy == "resize-crop" else [self.size, self.size]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def after(self, image_preprocessing: str) -> Preprocessor:
        return replace(self, image_preprocessing=image_preprocessing)

    def resized(self, image: Image) -> Image:
        check_image(image)
        image = preprocessed(image, self.size, self.image_preprocessing)
        if self.strategy == "letterbox":
            image = _letterbox(image, _letterbox_fill(self.means[0]))
        elif self.strategy == "resize-crop":
            return _resize_crop(image, self.size)
        return resize(image, self.size, self.size)

    @property
    def scales(self) -> tuple[Scales, Scales]:
        return self.means, self.stds


def _letterbox_fill(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue


def _letterbox(image: Image, fill: tuple[int, int, int]) -> Image:
    """Pad to a square with `fill`; as in the reference, an odd pixel is dropped (floor on both sides)."""
    height, width, _ = image.shape
    edge = max(height, width)
    rows, columns = (edge - height) // 2, (edge - width) // 2
    canvas = np.empty((height + 2 * rows, width + 2 * columns, 3), dtype=np.uint8)
    canvas[:] = fill
    canvas[rows : rows + height, columns : columns + width] = image
    return canvas


def _resize_crop(image: Image, size: int) -> Image:
    """Resize the short side to `size`, then crop the middle."""
    height, width, _ = image.shape
    if height <= width:
        image = resize(image, size, int(size * width / height))
    else:
        image = resize(image, int(size * height / width), size)
    top, left = (round((length - size) / 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])
