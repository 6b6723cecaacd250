"""Frames that are cut into square parts, each of which the tower reads as an image of its own, as SmolVLM does.

    480 x 640 --longest edge 2048--> 1536 x 2048 --multiples of 512--> 3 x 4 parts of 512 px, and the whole at 512 x 512

Without splitting, only the whole is read. The parts of a frame lie behind one another in its channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.image import check_image
from vla_robot.core.messages import Image
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor, Scales
from vla_robot.policy.vla.json_files import shown, whole
from vla_robot.policy.vla.small_files import read_embodiment
from vla_robot.policy.vlm.square_images import image_processor_of, mean_and_std

LANCZOS = 1
"""Pillow's number of the only way of resizing that is done here."""
LARGEST_EDGE = 4096
"""Largest edge of a frame after its first resizing [px]; the library's own limit."""
USUAL = ((224, 224),)
"""Frames [px] of a policy that does not say which arm it was trained for."""


@dataclass(frozen=True)
class SplitPreprocessor(FramePreprocessor):
    """Resizes frames, cuts them and normalises the parts.

    Attributes:
        edge: edge of the tower's square input [px].
        longest: longest edge of a frame after its first resizing [px].
        grid: rows and columns of parts; None if only the whole frame is read.
        mean: by RGB channel, in [0, 1].
        std: by RGB channel, in [0, 1].
    """

    edge: int
    longest: int
    grid: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def images(self) -> int:
        """Images of a frame: its parts and the whole."""
        return 1 if self.grid is None else self.grid[0] * self.grid[1] + 1

    def after(self, image_preprocessing: str) -> SplitPreprocessor:
        """See `FramePreprocessor`. Only "none": parts depend on the aspect ratio, which the others change."""
        if image_preprocessing != NONE:
            raise ContractError(
                f"image_preprocessing is '{image_preprocessing}', which makes frames square; this model reads frames "
                "of their own aspect ratio: leave it out."
            )
        return self

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """See `FramePreprocessor`. All frames of a policy get one shape."""
        rows, columns = self.grid or (1, 1)
        return rows * self.edge, columns * self.edge

    def resized(self, image: Image) -> Image:
        """See `FramePreprocessor`. Raises ContractError for a frame that would be cut into another grid."""
        check_image(image)
        height, width, _ = image.shape
        first, shape = scaled(height, width, self.longest), self.shape(height, width)
        if self.grid is not None and (wanted := multiples(*first, self.edge)) != shape:
            rows, columns = (side // self.edge for side in wanted)
            raise ContractError(
                f"a frame of {height}x{width} px is cut into {rows} x {columns} parts, but the policy "
                f"reads {self.grid[0]} x {self.grid[1]}; give all cameras the aspect ratio of its training."
            )
        return _resize(_resize(image, first), shape)

    @property
    def scales(self) -> tuple[Scales, Scales]:
        return (self.mean,), (self.std,)

    def cut(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `FramePreprocessor`: a frame's parts row by row, then all of it, in (..., images, edge, edge, 3)."""
        if self.grid is None:
            return super().cut(frames)
        return np.concatenate([self._parts(frames), self._whole(frames)[..., None, :, :, :]], axis=-4)

    def _parts(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (..., rows * columns, edge, edge, 3) parts of frames, row by row."""
        assert self.grid is not None
        rows, columns = self.grid
        x = frames.reshape(*frames.shape[:-3], rows, self.edge, columns, self.edge, 3).swapaxes(-4, -3)
        return x.reshape(*frames.shape[:-3], rows * columns, self.edge, self.edge, 3)

    def _whole(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames resized to (..., edge, edge, 3)."""
        each = frames.reshape(-1, *frames.shape[-3:])
        small = np.stack([_resize(frame, (self.edge, self.edge)) for frame in each])
        return small.reshape(*frames.shape[:-3], *small.shape[1:])


def read_split(folder: Path, config: Mapping[str, Any]) -> SplitPreprocessor:
    """Read how frames become pixels. The grid of parts is that of the frames of the arm that the policy is for.

    Args:
        folder: with preprocessor_config.json, or processor_config.json, where newer versions put the same.
        config: content of config.json.

    Raises:
        CheckpointError: a file is missing or damaged, the image processor asks for something that is not done here,
            or the arm's cameras need different grids.
    """
    source, data = image_processor_of(folder)
    edge = whole(str(folder / "config.json"), "image_size", config["vision_config"].get("image_size"), LARGEST_EDGE)
    if data.get("resample", LANCZOS) != LANCZOS:
        raise CheckpointError(f"{source}: resample is {shown(data.get('resample'))}; only Lanczos (1) is done here.")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if data.get(key, True) is not True:
            raise CheckpointError(f"{source}: {key} is {shown(data.get(key))}; only true is done here.")
    longest, reads = (_longest_edge(source, data, key) for key in ("size", "max_image_size"))
    if reads != edge:
        raise CheckpointError(f"{source}: max_image_size is {reads} px, but the model reads {edge} px.")
    splits = data.get("do_image_splitting", True)
    if not isinstance(splits, bool):
        raise CheckpointError(f"{source}: do_image_splitting is {shown(splits)}; expected true or false.")
    grid = _grid_of(folder, edge, longest) if splits else None
    return SplitPreprocessor(edge, longest, grid, *mean_and_std(source, data))


def scaled(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the size with this longest edge, the other one even, as SmolVLM's processor does."""
    if width >= height:
        other = int(longest / (width / height))
        return max(1, other + other % 2), longest
    other = int(longest * (width / height))
    return longest, max(1, other + other % 2)


def multiples(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return the next multiples of an edge, first of the longer side, as SmolVLM's processor does."""
    ratio = width / height
    if width >= height:
        W = math.ceil(width / edge) * edge
        return math.ceil(int(W / ratio) / edge) * edge, W
    H = math.ceil(height / edge) * edge
    return H, math.ceil(int(H * ratio) / edge) * edge


def _grid_of(folder: Path, edge: int, longest: int) -> tuple[int, int] | None:
    arm = read_embodiment(folder)
    frames = [(camera.height, camera.width) for camera in arm.cameras] if arm else USUAL
    grids = {tuple(side // edge for side in multiples(*scaled(*frame, longest), edge)) for frame in frames}
    if len(grids) > 1:
        raise CheckpointError(
            f"{folder}: its image processor would cut the frames of the cameras into different grids, {sorted(grids)}; "
            'give all cameras one aspect ratio, or set "do_image_splitting" to false.'
        )
    (rows, columns), *_ = grids
    return None if rows == columns == 1 else (rows, columns)


def _longest_edge(source: str, data: Mapping[str, Any], key: str) -> int:
    size = data.get(key)
    if not isinstance(size, Mapping) or set(size) != {"longest_edge"}:
        raise CheckpointError(f'{source}: {key} is {shown(size)}; expected {{"longest_edge": PIXELS}}.')
    return whole(source, f"{key}.longest_edge", size["longest_edge"], LARGEST_EDGE)


def _resize(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.LANCZOS))
