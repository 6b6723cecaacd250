"""An arm with all six axes at 10 Hz, and a pseudo-terminal whose other end the test holds."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.messages import Observation
from vla_robot.core.teleop_device import AXES

STEP_M, STEP_RAD = 0.05, 0.5


def embodiment(rate_hz: float = 10.0, kind: Any = "eef_delta") -> Embodiment:
    moves = [Dim(n, "m", -STEP_M, STEP_M) for n in AXES[:3]] + [Dim(n, "rad", -STEP_RAD, STEP_RAD) for n in AXES[3:]]
    return Embodiment(
        name="panda",
        action=ActionSpace(kind, "base", (*moves, Dim("gripper", "1", 0.0, 1.0))),
        state=(Dim("x", "m", -1.0, 1.0),),
        cameras=(CameraSpec("front", 6, 8),),
        rate_hz=rate_hz,
    )


def observation(step: int = 1) -> Observation:
    return Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(1), "lift the red cube", step, step)


class Pty:
    """Both ends of a terminal."""

    def __init__(self) -> None:
        self.person, self.fd = os.openpty()

    def type(self, data: bytes) -> None:
        """Returns when the other end has it: a pseudo-terminal passes it on at once."""
        os.write(self.person, data)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.fd)

    def hang_up(self) -> None:
        os.close(self.person)
        self.person = -1

    def close(self) -> None:
        for fd in (self.person, self.fd):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def pty() -> Iterator[Pty]:
    both = Pty()
    yield both
    both.close()
