"""Fixtures: demonstrations with known content, and a measure of memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.messages import Observation, StepResult
from vla_robot.data.demonstration import Demonstration, DemonstrationBuilder
from vla_robot.testing import toy_embodiment

STATE = (Dim("x", "m", -1, 1), Dim("y", "m", -1, 1), Dim("width", "m", 0, 0.1))
EMBODIMENT = toy_embodiment(state=STATE, cameras=("front", "wrist"), height=24, width=32)

MakeDemo = Callable[..., Demonstration]


def demonstration(
    seed: int = 0,
    steps: int = 4,
    driver: str = "expert",
    instruction: str = "lift the cube",
    success: bool = True,
    image_size: int | None = None,
    embodiment: Embodiment = EMBODIMENT,
) -> Demonstration:
    """Return random frames and numbers; the same arguments give the same ones."""
    rng = np.random.default_rng(seed)
    builder = DemonstrationBuilder(image_size)
    for step in range(steps):
        images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in embodiment.cameras}
        observation = Observation(images, rng.uniform(-1, 1, 3), instruction, stamp_ns=1000 + step, step=step)
        label, executed = rng.uniform(-0.05, 0.05, (2, 2))
        done = success and step == steps - 1
        result = StepResult(observation, executed, success=done, terminated=done, truncated=False)
        builder.add(observation, label, result)
    return builder.finish(embodiment, seed, driver)


@pytest.fixture
def make_demo() -> MakeDemo:
    return demonstration


@dataclass
class Traced:
    """The memory that a block of code allocated.

    Attributes:
        peak_bytes: largest memory of numpy and Python in the block, set at its end.
    """

    peak_bytes: int = 0


@contextlib.contextmanager
def traced() -> Generator[Traced]:
    """Measure the memory of a block: `with traced() as memory:`."""
    memory = Traced()
    tracemalloc.start()
    try:
        yield memory
    finally:
        memory.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
