"""Fixtures: an embodiment with all six axes at 10 Hz, and a pseudo-terminal whose other end the test holds."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation
from vla_robot.testing import TOOL_AXES, toy_embodiment, toy_observation

STEP_M, STEP_RAD = 0.05, 0.5


def embodiment(rate_hz: float = 10.0, kind: Any = "eef_delta") -> Embodiment:
    return toy_embodiment(axes=TOOL_AXES, step_m=STEP_M, step_rad=STEP_RAD, kind=kind, rate_hz=rate_hz)


def observation(step: int = 1) -> Observation:
    return toy_observation(embodiment(), step, instruction="lift the red cube")


class Pty:
    """Both ends of a pseudo-terminal: `person` types, the program under test reads `fd`."""

    def __init__(self) -> None:
        self.person, self.fd = os.openpty()

    def type(self, data: bytes) -> None:
        """Type bytes. They are at the other end when this returns: a pseudo-terminal passes them on at once."""
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
