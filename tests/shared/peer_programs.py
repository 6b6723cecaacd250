"""Servers in a peer's protocol in the test's process, and the peer's own client in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import pytest

from vla_robot.serve.policy.batcher import Act, Batcher, Line
from vla_robot.serve.policy.server import answering

UV = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)


class Server(Protocol):
    """A server that is open."""

    @property
    def url(self) -> str: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def served(policy: Act, build: Callable[[Batcher], Server], max_wait_ns: int = 0) -> Generator[str]:
    """The address at which a policy answers until the block ends, in batches of up to eight rows."""
    batcher = Batcher(policy, Line(8, max_wait_ns))
    thread = answering(batcher)
    try:
        with contextlib.closing(build(batcher)) as server:
            yield server.url
    finally:
        batcher.close()
        thread.join()


def published_client(folder: Path, variable: str, packages: tuple[str, ...], python: str = sys.executable) -> Path:
    """The Python of an environment with a client as its authors published it, made in an empty folder.

    The environment variable `variable` names one that exists already. Where none can be made the test is skipped.
    """
    if given := os.environ.get(variable):
        return Path(given)
    if UV is None:
        pytest.skip(f"there is no uv here to install {packages[0]}")
    inside = folder / "bin" / "python"
    for command in (
        [UV, "venv", "--quiet", "--python", python, str(folder)],
        [UV, "pip", "install", "--quiet", "--python", str(inside), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{packages[0]} cannot be installed here: {done.stderr.strip()[-200:]}")
    return inside
