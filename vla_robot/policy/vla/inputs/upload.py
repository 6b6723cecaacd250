"""What travels to a GPU: frames as uint8, once, and small tensors, from memory that the GPU reads by itself.

A frame's normalised pixels are 4 bytes for each channel of each tower; uint8 is one for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from vla_robot.core.messages import Image
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor

type Pixels = Callable[[Sequence[Sequence[Image]]], Tensor]
"""Maps frames by row and camera to (B, N, C, h, w) float32."""


def pixels_on(device: torch.device, preprocessor: FramePreprocessor) -> Pixels:
    """Return how frames become pixels on a device; the numbers are the preprocessor's."""
    if device.type == "cpu":
        return lambda images: torch.from_numpy(preprocessor(images))
    return _OnDevice(device, preprocessor)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of main memory on a device. The host does not wait for CUDA."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers(tensor: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor of main memory, also while tensors without numbers are made around it."""
    with unset_fake_temporarily():
        return tensor.numpy()


class _OnDevice:
    def __init__(self, device: torch.device, preprocessor: FramePreprocessor) -> None:
        self._device = device
        self._preprocessor = preprocessor
        self._means, self._stds = (torch.tensor(scale, device=device)[..., None, None] for scale in preprocessor.scales)

    def __call__(self, images: Sequence[Sequence[Image]]) -> Tensor:
        frames = upload(torch.from_numpy(self._preprocessor.cut(self._preprocessor.stacked(images))), self._device)
        x = frames.movedim(-1, -3).float() / 255  # (B, N, images, 3, h, w)
        return ((x.unsqueeze(-4) - self._means) / self._stds).flatten(-5, -3)
