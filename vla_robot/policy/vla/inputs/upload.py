"""What travels to a GPU: frames as uint8, once, and small tensors, from memory that the GPU reads by itself.

A frame's normalised pixels are 4 bytes for each channel of each tower; uint8 is one for each channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from vla_robot.core.messages import Image
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor, require_one_size


class Pixels(ABC):
    """Turns frames into pixels on a device; the numbers are the preprocessor's."""

    @abstractmethod
    def __call__(self, images: Sequence[Sequence[Image]]) -> Tensor:
        """Map frames by row and camera to (B, N, C, h, w) float32. Raises ContractError as `stacked`."""

    @abstractmethod
    def frames(self, images: Sequence[Image]) -> Tensor:
        """Return one row's frames, resized, as uint8 on the device, for `of`. Raises ContractError as `stacked`."""

    def of(self, rows: Sequence[Tensor]) -> Tensor:
        """Map the `frames` of B rows to (B, N, C, h, w) float32. Raises ContractError if their sizes differ."""
        require_one_size(row.shape[-3:-1] for row in rows)
        return self._normalised(torch.stack(list(rows)))

    @abstractmethod
    def _normalised(self, frames: Tensor) -> Tensor:
        """Map stacked `frames` to (B, N, C, h, w) float32."""


def pixels_on(device: torch.device, preprocessor: FramePreprocessor) -> Pixels:
    """Return how frames become pixels on a device."""
    return _InMainMemory(preprocessor) if device.type == "cpu" else _OnDevice(device, preprocessor)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of main memory on a device. The host does not wait for CUDA."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers(tensor: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor of main memory, also while tensors without numbers are made around it."""
    with unset_fake_temporarily():
        return tensor.numpy()


class _InMainMemory(Pixels):
    def __init__(self, preprocessor: FramePreprocessor) -> None:
        self._preprocessor = preprocessor

    def __call__(self, images: Sequence[Sequence[Image]]) -> Tensor:
        return torch.from_numpy(self._preprocessor(images))

    def frames(self, images: Sequence[Image]) -> Tensor:
        return torch.from_numpy(self._preprocessor.stacked([images])[0])

    def _normalised(self, frames: Tensor) -> Tensor:
        return torch.from_numpy(self._preprocessor.normalise(frames.numpy()))


class _OnDevice(Pixels):
    def __init__(self, device: torch.device, preprocessor: FramePreprocessor) -> None:
        self._device = device
        self._preprocessor = preprocessor
        self._means, self._stds = (torch.tensor(scale, device=device)[..., None, None] for scale in preprocessor.scales)

    def __call__(self, images: Sequence[Sequence[Image]]) -> Tensor:
        return self._normalised(self._uploaded(images))

    def frames(self, images: Sequence[Image]) -> Tensor:
        return self._uploaded([images])[0]

    def _uploaded(self, images: Sequence[Sequence[Image]]) -> Tensor:
        """Return (B, N, images, h, w, 3) uint8 on the device."""
        return upload(torch.from_numpy(self._preprocessor.cut(self._preprocessor.stacked(images))), self._device)

    def _normalised(self, frames: Tensor) -> Tensor:
        x = frames.movedim(-1, -3).float() / 255  # (B, N, images, 3, h, w)
        return ((x.unsqueeze(-4) - self._means) / self._stds).flatten(-5, -3)
