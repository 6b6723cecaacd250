"""Serves one world over a socket to one client at a time. As a program: the child process of `spawn_world`.

    request   hello {protocol}           answer   ok {protocol, embodiment, instruction}
              reset {seed}                        ok {observation, returned_ns}
              step {action, frames}               ok {result, returned_ns}; without frames, they may be left out
              close {}                            ok {}
                                         or       error {error: class name, message}

An answer has the number of its request. Numbers of one client only grow: a request that was replayed or is out of
order is refused, and the world does not move. The server answers every message and continues; `close` frees it for
the next client.
Simulated time moves only inside reset and step, so a slow client changes nothing in a simulation.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vla_robot.core.clock import Clock, MonotonicClock
from vla_robot.core.errors import TransportError, VlaError, WorldError, in_words, unknown
from vla_robot.core.host.console import steady_output
from vla_robot.core.ports import World
from vla_robot.core.ports.wrapped_world import step_without_frames
from vla_robot.safety.limits import require_action
from vla_robot.transport.codec import (
    MessageReader,
    pack_embodiment,
    pack_error,
    pack_observation,
    pack_step_result,
    require_protocol,
)
from vla_robot.transport.sockets import ANY_PORT, ServerSocket
from vla_robot.transport.wire import UNNUMBERED, Buffer, Message, decode, encode

PROTOCOL = 2
"""Version of requests and answers; the wire format has a version of its own."""

GRACE_S = 1.0
"""Time for the world to close after its parent is gone [s]."""

EXIT_NOT_BUILT = 2

_LOG = logging.getLogger(__name__)


class WorldServer:
    """Answers the requests of one client, in the thread that calls `serve`."""

    def __init__(self, world: World, socket: ServerSocket, clock: Clock | None = None) -> None:
        """
        Args:
            world: the world to serve; the caller closes it.
            socket: bound socket; the caller closes it.
            clock: the clock of the world's stamps.
        """
        self._world = world
        self._socket = socket
        self._clock = clock or MonotonicClock()
        self._owner: bytes | None = None
        self._last_seq = UNNUMBERED
        self._handlers: dict[str, Callable[[MessageReader], dict[str, Any]]] = {
            "reset": self._reset,
            "step": self._step,
            "close": self._close,
        }

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer until `should_stop`, which is called at least 20 times a second between requests."""
        while not should_stop():
            received = self._socket.receive()
            if received is not None:
                peer, frames = received
                self._socket.send(peer, self._answer(peer, frames))

    def _answer(self, peer: bytes, frames: Sequence[Buffer]) -> list[Buffer]:
        seq = UNNUMBERED
        try:
            request = decode(frames)
            seq = request.seq
            return encode(Message("ok", seq, self._handle(peer, request)))
        except VlaError as error:
            return encode(Message("error", seq, pack_error(error)))
        except Exception as error:  # a bug in a world is reported to the client and does not end the server
            _LOG.exception("a request failed")
            return encode(Message("error", seq, pack_error(WorldError(f"the world failed with {in_words(error)}."))))

    def _handle(self, peer: bytes, request: Message) -> dict[str, Any]:
        reader = MessageReader(request.body, request.kind)
        if request.kind == "hello":
            return self._hello(peer, request.seq, reader)
        if peer != self._owner:
            raise TransportError("this connection does not control the world; send hello first.")
        if request.kind not in self._handlers:
            raise TransportError(unknown("request", request.kind, ["hello", *self._handlers]))
        if request.seq <= self._last_seq:
            raise TransportError(
                f"request {request.seq} came after request {self._last_seq}: it is replayed or out of order, and was "
                "refused. The world did not move."
            )
        self._last_seq = request.seq
        return self._handlers[request.kind](reader)

    def _hello(self, peer: bytes, seq: int, reader: MessageReader) -> dict[str, Any]:
        require_protocol(reader, PROTOCOL, "the client", "the world's server")
        if self._owner not in (None, peer) and self._is_there(self._owner):
            raise TransportError(
                "the world has a client already, and accepts one at a time. Close that one, or start a second world."
            )
        self._owner, self._last_seq = peer, seq
        return {
            "protocol": PROTOCOL,
            "embodiment": pack_embodiment(self._world.embodiment),
            "instruction": self._world.instruction,
        }

    def _is_there(self, peer: bytes) -> bool:
        """Return whether a client is still connected, by sending it an answer that it ignores."""
        return self._socket.send(peer, encode(Message("probe", UNNUMBERED, {})))

    def _reset(self, reader: MessageReader) -> dict[str, Any]:
        observation = self._world.reset(reader.integer("seed"))
        return {"observation": pack_observation(observation), "returned_ns": self._clock.now_ns()}

    def _step(self, reader: MessageReader) -> dict[str, Any]:
        action = require_action(reader.array("action", np.float64, ndim=1), self._world.embodiment.action)
        shown = reader.flag("frames")
        command_ns = self._clock.now_ns()
        result = self._world.step(action) if shown else step_without_frames(self._world, action)
        stamped = replace(result, command_ns=result.command_ns or command_ns)
        return {"result": pack_step_result(stamped), "returned_ns": self._clock.now_ns()}

    def _close(self, _: MessageReader) -> dict[str, Any]:
        self._owner = None
        return {}


def run_child(build: Callable[[], World]) -> int:
    """Build a world, serve it until the parent process ends or closes stdin, and return the exit status.

    The first line on stdout is JSON: {"address"} when the world is built, or {"error", "message"} if it cannot be. The
    parent holds the other end of stdin and never writes: its end means that the parent closed it or died.
    """
    announcements = _claim_stdout()
    stop = threading.Event()
    # The parent decides when Ctrl-C or a hang-up ends the world; the terminal sends them to both.
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(stop,), name="parent watch", daemon=True).start()
    try:
        world = build()
    except VlaError as error:
        _announce(announcements, pack_error(error))
        return EXIT_NOT_BUILT
    try:
        with steady_output(waits=True), ServerSocket(ANY_PORT) as socket:  # a library's print cannot end an episode
            _announce(announcements, {"address": socket.address})
            WorldServer(world, socket).serve(stop.is_set)
    finally:
        world.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the world of one recipe."""
    parser = argparse.ArgumentParser(prog="python -m vla_robot.serve.world.server", description=main.__doc__)
    parser.add_argument("env", type=Path, help="recipe of the world")
    parser.add_argument("--privileged", action="store_true", help="put the simulator's state into observations")
    arguments = parser.parse_args(argv)
    return run_child(lambda: _build(arguments.env, arguments.privileged))


def _build(env: Path, privileged: bool) -> World:
    from vla_robot.recipe import read
    from vla_robot.recipe.env import EnvRecipe
    from vla_robot.world.kinds import build_world

    return build_world(read(EnvRecipe, env), privileged)


def _claim_stdout() -> TextIO:
    """Return the parent's pipe for announcements, and redirect all other output to stderr."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


def _announce(pipe: TextIO, what: Mapping[str, str]) -> None:
    with pipe:
        pipe.write(json.dumps(what) + "\n")


def _watch_parent(stop: threading.Event) -> None:
    """Stop the server when stdin ends, and end the process if it cannot stop: while a world is being built."""
    stdin = 0  # sys.stdin would hold a lock that the interpreter needs at exit
    while os.read(stdin, 4096):
        pass
    stop.set()
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
