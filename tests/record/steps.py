"""Steps of an episode with frames and numbers of their own, the same in every run."""

from __future__ import annotations

import numpy as np

from vla_robot.core.messages import Clamp, Observation
from vla_robot.record.episode import EpisodeStep


def observation(step: int) -> Observation:
    rng = np.random.default_rng(step)
    images = {name: rng.integers(0, 256, (8, 6, 3), dtype=np.uint8) for name in ("front", "wrist")}
    truth = {"cube_pos": np.ones(3)}
    return Observation(images, rng.normal(size=7), "lift the cube", 1000 + step, step, privileged=truth)


def step_of(step: int) -> EpisodeStep:
    rng = np.random.default_rng(100 + step)
    clamps = (Clamp("dx", "range", 0.07, 0.05),) if step == 1 else ()
    return EpisodeStep(
        observation(step),
        rng.normal(size=7),
        rng.normal(size=7),
        1500 + step,
        step == 2,
        clamps,
        {"policy": 20.5},
        entropy=None if step == 1 else 1.25 + step,
        chunk_gap=None if step == 0 else 0.125 * step,
    )
