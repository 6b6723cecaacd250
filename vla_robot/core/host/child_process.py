"""Ends child processes."""

from __future__ import annotations

import subprocess
from typing import Any


def end_child(process: subprocess.Popen[Any], within_s: float) -> None:
    """Wait for a child that was told to end; kill one that takes longer, or when the waiting is interrupted.

    Args:
        process: the child; it may have ended already.
        within_s: how long to wait [s].
    """
    try:
        process.wait(within_s)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
