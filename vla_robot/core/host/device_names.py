"""Names of devices in recipes and on command lines. `vla_robot.policy.device` finds the device of a name."""

from __future__ import annotations

import re

AUTO = "auto"
"""The name of a GPU if torch sees one, and of the CPU otherwise."""
NAMES = "auto, cpu, cuda, cuda:N or mps"

_NAME = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def device_problem(name: object) -> str:
    """Return why this is no name of a device; empty if it is one, on whatever computer.

    >>> device_problem("cuda:1")
    ''
    >>> device_problem("gpu")
    "device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps"
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ""
    return f"device is {name!r:.40}; it must be {NAMES}"
