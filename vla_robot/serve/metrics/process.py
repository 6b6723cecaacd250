"""The metrics' process, seen from the server that it tells of."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from vla_robot.core.errors import RecipeError, TransportError
from vla_robot.core.host.child_process import end_child
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.optional import require

LOOPBACK = "127.0.0.1"

MAX_BYTES = 1 << 16
"""Largest snapshot [bytes]; a larger one is not sent."""

EVERY_S = 1.0
"""Period of the snapshots [s]."""

START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 2.0

_ADDRESS = re.compile(r"(?:(?P<host>[^:\s]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>\d{1,5})")
_LOG = logging.getLogger(__name__)


def metrics_address(text: str) -> tuple[str, int]:
    """Return host and port of the option --metrics.

    Raises:
        RecipeError: it is neither a port nor HOST:PORT.

    >>> metrics_address("9101"), metrics_address("0.0.0.0:9101")
    (('127.0.0.1', 9101), ('0.0.0.0', 9101))
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) >= 1 << 16:
        raise RecipeError(
            f"--metrics {text}: a port of this computer, such as 9101 (0 takes a free one), or HOST:PORT for an "
            "address that others can reach."
        )
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


class MetricsProcess(Closeable):
    """Process that serves snapshots; if it ends, the caller continues without metrics."""

    def __init__(self, host: str, port: int) -> None:
        """Start it and wait until its address is bound.

        Raises:
            MissingDependencyError: the package prometheus_client is not installed.
            TransportError: the port is taken, or the address does not exist.
        """
        require("prometheus_client", "serve", "--metrics")
        # Packets: one is sent whole or not at all, without waiting.
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "vla_robot.serve.metrics.program", "--fd", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*command, "--host", host, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in a terminal is for the server
            )
        try:
            self.url = self._await_url(f"{host}:{port}")
        except BaseException:
            self.close()
            raise
        self._end.setblocking(False)
        self._is_lost = False

    def publish(self, snapshot: Mapping[str, Any]) -> None:
        """Send a snapshot as `families` takes it, without its time; never wait and never raise for the process."""
        packet = json.dumps({**snapshot, "time_s": time.time()}).encode()
        if self._is_lost or len(packet) > MAX_BYTES:
            return
        try:
            self._end.send(packet)
        except BlockingIOError:
            return  # it is busy: the next snapshot is newer
        except OSError as error:
            self._is_lost = True
            _LOG.error("the metrics at %s ended: %s; the server continues without them", self.url, error)

    def close(self) -> None:
        """End the process. May be called twice."""
        self._end.close()
        end_child(self._process, STOP_TIMEOUT_S)

    def _await_url(self, where: str) -> str:
        self._end.settimeout(START_TIMEOUT_S)
        packet = self._end.recv(MAX_BYTES)
        said: dict[str, str] = json.loads(packet) if packet else {"error": "their process ended at its start"}
        if "error" in said:
            raise TransportError(f"cannot serve metrics on {where}: {said['error']}. Choose another --metrics.")
        return said["url"]


class Periodic:
    """Publishes a snapshot once in EVERY_S, in the thread that calls it; a call between costs a look at the clock."""

    def __init__(self, process: MetricsProcess, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._process, self._snapshot = process, snapshot
        self._next_s = 0.0

    def __call__(self) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + EVERY_S
            self._process.publish(self._snapshot())
