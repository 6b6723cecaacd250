"""Frames of a recording with their labels, to ask a policy about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.image import resize_lanczos
from vla_robot.core.messages import Observation
from vla_robot.data.formats.open import open_source
from vla_robot.policy.vla.policy import AnyVLAPolicy


def frames(folder: Path, policy: AnyVLAPolicy, count: int) -> tuple[list[Observation], NDArray[np.float64]]:
    """Return observations of a recording, drawn at random with seed 0, and their (count, D) labels."""
    source, rng = open_source(folder), np.random.default_rng(0)
    seen, labels = list[Observation](), list[NDArray[np.float64]]()
    assert policy.embodiment is not None
    for index in rng.integers(0, len(source.lengths), count):
        episode = source.episode(int(index))
        step = int(rng.integers(len(episode)))
        images = {
            camera.name: resize_lanczos(
                episode.frames(f"observation/images/{camera.name}").decode(step), camera.height, camera.width
            )
            for camera in policy.embodiment.cameras
        }
        state = np.asarray(episode.numbers("observation/state")[step], dtype=np.float64).reshape(-1)
        seen.append(Observation(images, state, episode.instructions()[step], stamp_ns=1, step=step))
        labels.append(np.asarray(episode.numbers("action")[step], dtype=np.float64))
    return seen, np.stack(labels)
