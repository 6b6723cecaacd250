"""The option `--cluster` of the data commands, and what it prints at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

from vla_robot.cli.build import open_runner
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.ports import TaskRunner

Cluster = Annotated[
    str | None,
    option(
        "local|auto|ray://HOST:10001",
        text="read the shards by tasks of a Ray cluster (docs/cluster.md); by default here",
    ),
]


@contextlib.contextmanager
def data_runner(cluster: str | None, console: Terminal) -> Iterator[TaskRunner]:
    """Open the place where the tasks run; at the end, say how much memory the largest worker took on a cluster.

    Raises:
        VlaError: as `open_runner`.
    """
    with open_runner(cluster, 1) as runner:
        yield runner
        if not runner.is_here and runner.peak_mb:
            console.print(f"The largest worker took {runner.peak_mb:.0f} MB of main memory.")
