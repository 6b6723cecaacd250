"""Serves our policies over openpi's WebSocket protocol to its clients. `OpenpiPolicy` is another client.

    ours      metadata          as soon as the connection is made: actions and cameras
    client    observation       one binary frame
    ours      {actions, policy_timing, server_timing}; or a text frame with the error, after which it disconnects

`GET /healthz` answers OK. Only programs on this computer can connect, and no web page: the protocol has no keys, so use
an SSH tunnel between computers.

Source: openpi @15a9616, src/openpi/serving/websocket_policy_server.py and src/openpi/policies.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.errors import TransportError
from vla_robot.core.messages import ActionChunk
from vla_robot.serve.interop.openpi_schema import Words
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.serve.interop.websocket_server import Protocol, WebSocketServer
from vla_robot.serve.policy.batcher import Batcher

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection


class OpenpiServer(WebSocketServer):
    """Serves a batcher over WebSockets, with one thread per connection."""

    def __init__(self, batcher: Batcher, name: str, words: Words, port: int) -> None:
        """
        Args:
            batcher: answers the requests.
            name: name of the policy.
            words: converts requests and answers.
            port: on the loopback interface; 0 means any free one.

        Raises:
            TransportError: the port is taken.
            MissingDependencyError: the package websockets is not installed.
        """
        self._batcher = batcher
        self._words = words
        self._metadata = pack({"server": "vla_robot", "policy": name, **words.describe()})
        super().__init__(Protocol("openpi", "--openpi", self._answer_all, str, "/healthz", "OK\n"), port)

    def _answer_all(self, connection: ServerConnection) -> None:
        connection.send(self._metadata)
        timing: dict[str, float] = {}
        while True:
            frame = connection.recv()
            began_ns = time.monotonic_ns()
            if not isinstance(frame, bytes):
                raise TransportError("an observation is a binary frame of msgpack, got text.")
            chunk = self._batcher.ask(self._words.read(unpack(frame)), client=connection)
            timing["infer_ms"] = _since_ms(began_ns)
            times = {"policy_timing": {"infer_ms": _policy_ms(chunk)}, "server_timing": timing}
            connection.send(pack({**self._words.write(chunk), **times}))
            timing["prev_total_ms"] = _since_ms(began_ns)


def _policy_ms(chunk: ActionChunk) -> float:
    return sum(ms for stage, ms in chunk.stages_ms.items() if stage != "wait_for_batch")


def _since_ms(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / NS_PER_MS
