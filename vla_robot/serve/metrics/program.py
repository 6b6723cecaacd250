"""The program of the metrics' process: answers `GET /metrics` with the newest snapshot that its parent sent.

    parent   {"kind", "time_s", "status", ..}   JSON, one packet each
    ours     {"url"} or {"error"}               the first packet, once the address is bound or cannot be

It is a process of its own so that no number of requests takes the interpreter from a control loop. Connections are
bounded as those of the page (`vla_robot.transport.listener`), and a request's head must arrive within ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vla_robot.core.errors import TransportError
from vla_robot.serve.metrics.families import families
from vla_robot.serve.metrics.process import MAX_BYTES
from vla_robot.transport.sockets import is_loopback
from vla_robot.web.http_json import BoundedServer, JsonHandler, Serving

PATH = "/metrics"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Host names of a request to this computer; a page whose site was rebound to it uses another one."""

POLL_S = 0.05
STDOUT, STDERR = 1, 2


class Newest(Collector):
    """Collector of the newest snapshot."""

    def __init__(self) -> None:
        self.snapshot: Mapping[str, Any] | None = None

    def collect(self) -> Iterator[Metric]:
        if self.snapshot is not None:
            yield from families(self.snapshot)


class MetricsServer(BoundedServer):
    """HTTP server of one collector."""

    def __init__(self, host: str, port: int, newest: Newest) -> None:
        """
        Raises:
            OSError: the port is taken, or the address does not exist.
        """
        super().__init__(host, port, _Handler)
        self.is_local = is_loopback(f"tcp://{host}:{port}")
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(newest)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Handler(JsonHandler):
    server: MetricsServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:  # noqa: N802
        if self.server.is_local and self.is_foreign(NAMES, any_port=True):
            self.reply(403, b"This address answers programs on this computer only.\n", TEXT)
        elif self.path.partition("?")[0] != PATH:
            self.reply(404, f"Not found. GET {PATH}.\n".encode(), TEXT)
        else:
            self.reply(200, self.server.text(), TEXT)


def serve(parent: socket.socket, host: str, port: int) -> None:
    """Serve the parent's snapshots until it closes its end."""
    newest = Newest()
    try:
        server = MetricsServer(host, port, newest)
    except (OSError, TransportError) as error:
        parent.send(json.dumps({"error": getattr(error, "strerror", None) or str(error)}).encode())
        return
    with closing(Serving(server, "metrics", POLL_S)):
        parent.send(
            json.dumps({"url": f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}{PATH}"}).encode()
        )
        while packet := parent.recv(MAX_BYTES):
            newest.snapshot = json.loads(packet)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve metrics."""
    parser = argparse.ArgumentParser(prog="python -m vla_robot.serve.metrics.program", description=main.__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the socket to the parent")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args(argv)
    for each in (signal.SIGINT, signal.SIGHUP):  # the parent decides when it ends
        signal.signal(each, signal.SIG_IGN)
    os.dup2(STDERR, STDOUT)
    with socket.socket(fileno=arguments.fd) as parent:
        serve(parent, arguments.host, arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
