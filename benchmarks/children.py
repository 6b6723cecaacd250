"""Starts the processes beside a benchmark: modules of this folder, each in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def start_child(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python -P -m benchmarks.MODULE ARGUMENTS` from any working folder; its output is a pipe of text.

    Args:
        module: name of a module of this folder.
        arguments: its command line.
        options: further options of `subprocess.Popen`.
    """
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-P", "-m", f"{__package__}.{module}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)
