"""The option --metrics of servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vla_robot.serve.metrics.process import MetricsProcess, metrics_address


@contextmanager
def metrics_at(address: str | None) -> Iterator[MetricsProcess | None]:
    """Start the metrics' process during a `with` block; None without an address.

    Raises:
        VlaError: the address is malformed or taken, or a package is not installed.
    """
    if address is None:
        yield None
        return
    with MetricsProcess(*metrics_address(address)) as process:
        yield process


def metrics_in_words(process: MetricsProcess | None) -> str:
    """Return the line of the metrics' address; empty without."""
    return "" if process is None else f"  metrics: {process.url}\n"
