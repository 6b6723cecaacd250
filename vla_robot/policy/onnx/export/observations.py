"""Observations with which an export is compared with torch, always the same: shipped frames, and random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from vla_robot.core.messages import Image, Observation
from vla_robot.policy.onnx.export.source import Source

SHIPPED = Path(__file__).with_name("frames.jpg")
"""Eight frames beside one another: two cameras' views of four moments of Lift and of its colour task."""
INSTRUCTIONS = ("lift the red cube", "put the mug in the drawer and close it")
CELLS = 7


def observations(source: Source, count: int, frame: tuple[int, int]) -> list[Observation]:
    """Return observations for a policy: half with shipped frames, half with coarse random ones, random states.

    Args:
        source: the policy; its statistics give the range of the state.
        count: number of observations.
        frame: height and width of frames of cameras whose size the policy does not say [px].
    """
    rng, shipped = np.random.default_rng(0), _shipped()
    sizes = _cameras(source, frame)
    states = _states(source, count, rng)
    found = list[Observation]()
    for number in range(count):
        frames = (
            _coarse(rng, len(sizes))
            if number % 2
            else [shipped[(number + n) % len(shipped)] for n in range(len(sizes))]
        )
        images = {name: _resized(image, size) for image, (name, size) in zip(frames, sizes.items(), strict=True)}
        found.append(Observation(images, states[number], INSTRUCTIONS[number // 2 % 2], stamp_ns=0, step=0))
    return found


def _shipped() -> list[Image]:
    sheet = np.asarray(PIL.Image.open(SHIPPED).convert("RGB"))
    side = len(sheet)
    return [sheet[:, left : left + side] for left in range(0, sheet.shape[1], side)]


def _coarse(rng: np.random.Generator, count: int) -> list[Image]:
    return [rng.integers(0, 256, (CELLS, CELLS, 3)).astype(np.uint8) for _ in range(count)]


def _resized(image: Image, size: tuple[int, int]) -> Image:
    height, width = size
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.NEAREST))


def _cameras(source: Source, frame: tuple[int, int]) -> dict[str, tuple[int, int]]:
    if source.embodiment is not None:
        sizes = {camera.name: (camera.height, camera.width) for camera in source.embodiment.cameras}
        return {name: sizes[name] for name in source.cameras}
    names = source.cameras or [f"camera_{n}" for n in range(source.model.config.inputs.num_images)]
    return dict.fromkeys(names, frame)


def _states(source: Source, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, P) states between the bounds of the statistics; (count, 0) for a policy that reads none."""
    dim = source.model.config.inputs.proprio_dim
    if dim is None:
        return np.zeros((count, 0))
    stats = source.state_stats()
    return rng.uniform(stats.q01, stats.q99, (count, dim))
