"""Gives each camera of a simulated world its own rate, as the cameras of a real robot have.

control at 30 Hz    0   1   2   3   4   5   6
wrist, 30 Hz        x   x   x   x   x   x   x
base, 10 Hz         x           x           x       in between: its last frame, with that frame's stamp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vla_robot.core.messages import Image, Observation, StepResult, Vector
from vla_robot.core.ports import VisibleWorld


class PacedCameras:
    """A world whose cameras are paced by counting control steps, so that a seed still gives the same frames."""

    def __init__(self, world: VisibleWorld, rates_hz: Mapping[str, float]) -> None:
        """
        Args:
            world: the wrapped world, which renders every camera at every step, whether or not the frame is due.
            rates_hz: camera -> rate [Hz], at most the world's rate; other cameras give a frame at each step.
        """
        self._world, self.embodiment = world, world.embodiment
        self._rates_hz = rates_hz
        self._frames: dict[str, tuple[Image, int]] = {}

    @property
    def instruction(self) -> str:
        return self._world.instruction

    def reset(self, seed: int) -> Observation:
        self._frames.clear()
        return self._seen(self._world.reset(seed))

    def step(self, action: Vector) -> StepResult:
        result = self._world.step(action)
        return replace(result, observation=self._seen(result.observation))

    def look(self) -> Observation:
        """Return an observation with a new frame of every camera, since rates count only in steps."""
        return self._world.look()

    def close(self) -> None:
        self._world.close()

    def _seen(self, observation: Observation) -> Observation:
        """Return the observation with each camera's last due frame and its stamp."""
        for name, image in observation.images.items():
            if name not in self._frames or self._is_due(name, observation.step):
                self._frames[name] = image, observation.stamp_ns
        stamps_ns = {name: stamp_ns for name, (_, stamp_ns) in self._frames.items()}
        return replace(
            observation,
            images={name: image for name, (image, _) in self._frames.items()},
            stamp_ns=min(stamps_ns.values(), default=observation.stamp_ns),
            stamps_ns=stamps_ns,
        )

    def _is_due(self, name: str, step: int) -> bool:
        """Return whether a frame of the camera is due at this step."""
        if name not in self._rates_hz:
            return True
        frames_per_step = self._rates_hz[name] / self.embodiment.rate_hz
        # 1e-9 is added since 3 * (10 / 30) may be rounded to a number below 1.
        return int(step * frames_per_step + 1e-9) > int((step - 1) * frames_per_step + 1e-9)
