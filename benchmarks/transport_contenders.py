"""Ways to send an observation to another process, for `vla bench transport`. As a program: the server of one.

- ours: the wire format of transport/ over ZeroMQ DEALER/ROUTER
- ours_with_keys: the same, encrypted and authenticated
- json_base64: arrays as base64 in JSON, over ZeroMQ REQ/REP: the simplest interface without pickle
- websockets_msgpack: arrays as bytes in msgpack, over a WebSocket without compression, with an asyncio server

Each server decodes the arrays, and answers with the number of values in the images.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from benchmarks.children import start_child
from vla_robot.core.errors import TransportError
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Image, Observation
from vla_robot.transport.codec import MessageReader, pack_observation, unpack_observation
from vla_robot.transport.jpeg import decode_jpeg, encode_jpeg
from vla_robot.transport.keys import ClientSecurity, KeyFolder, host_of
from vla_robot.transport.sockets import ANY_PORT, ClientSocket, ServerSocket
from vla_robot.transport.wire import Message, decode, encode

TIMEOUT_S = 10.0

Exchange = Callable[[Observation, int | None], int]
"""Send an observation, with frames as JPEG of a quality or raw, and wait for the answer; return the bytes sent."""

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A way to send observations.

    Attributes:
        serve: announces its address, and then answers for ever. The folder holds keys.
        connect: connects to a server's address during a `with` block. The folder is the server's.
    """

    serve: Callable[[Announce, Path], None]
    connect: Callable[[str, Path], contextlib.AbstractContextManager[Exchange]]


@contextlib.contextmanager
def running(name: str) -> Iterator[Exchange]:
    """Run a contender's server in its own process, and connect to it, during a `with` block.

    Raises:
        MissingDependencyError: it needs a package that is not installed.
        TransportError: its server did not start.
    """
    if name == "websockets_msgpack":
        require("websockets", "bench", "comparing with WebSockets")
    with (
        tempfile.TemporaryDirectory() as folder,
        start_child("transport_contenders", name, folder) as server,
    ):
        try:
            assert server.stdout is not None  # Popen was asked for it
            address = server.stdout.readline().strip()
            if not address:
                raise TransportError(f"the server of '{name}' ended before it was ready; its reason is on stderr.")
            with CONTENDERS[name].connect(address, Path(folder)) as exchange:
                yield exchange
        finally:
            server.kill()


def count(images: Mapping[str, Image]) -> int:
    return sum(image.size for image in images.values())


def serve_ours(announce: Announce, _: Path) -> None:
    with ServerSocket(ANY_PORT) as socket:
        _answer(socket, announce)


def connect_ours(address: str, _: Path) -> contextlib.AbstractContextManager[Exchange]:
    return _exchanging(address, None)


def serve_with_keys(announce: Announce, folder: Path) -> None:
    keys = KeyFolder(folder / "robot")
    keys.create("robot")
    with ServerSocket(ANY_PORT, keys.server_security()) as socket:
        _answer(socket, announce)


def connect_with_keys(address: str, folder: Path) -> contextlib.AbstractContextManager[Exchange]:
    robot, desk = KeyFolder(folder / "robot"), KeyFolder(folder / "desk")
    robot.allow(desk.create("desk").public, "desk")
    desk.trust(host_of(address), robot.pair().public)
    return _exchanging(address, desk.client_security(address))


def serve_json(announce: Announce, _: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(ANY_PORT)
        announce(socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        while True:
            body = json.loads(socket.recv())
            images = _unpacked(body["images"], base64.b64decode)
            socket.send(json.dumps({"count": count(images)}).encode())


@contextlib.contextmanager
def connect_json(address: str, _: Path) -> Iterator[Exchange]:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, round(TIMEOUT_S * 1000))
        socket.connect(address)

        def exchange(observation: Observation, quality: int | None) -> int:
            images = _packed(observation, quality, lambda data: base64.b64encode(data).decode())
            request = json.dumps(_request(observation, images)).encode()
            socket.send(request)
            _check(observation, json.loads(socket.recv())["count"])
            return len(request)

        yield exchange


def serve_websockets(announce: Announce, _: Path) -> None:
    from websockets.asyncio.server import ServerConnection, serve

    async def answer(connection: ServerConnection) -> None:
        async for request in connection:
            assert isinstance(request, bytes)
            images = _unpacked(msgpack.unpackb(request)["images"], lambda data: data)
            await connection.send(msgpack.packb({"count": count(images)}))

    async def run() -> None:
        async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
            announce(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
            await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def connect_websockets(address: str, _: Path) -> Iterator[Exchange]:
    from websockets.sync.client import connect

    with connect(address, compression=None, max_size=None) as connection:

        def exchange(observation: Observation, quality: int | None) -> int:
            images = _packed(observation, quality, lambda data: data.tobytes())
            request = msgpack.packb(_request(observation, images))
            connection.send(request)
            answer = connection.recv(TIMEOUT_S)
            assert isinstance(answer, bytes)
            _check(observation, msgpack.unpackb(answer)["count"])
            return len(request)

        yield exchange


CONTENDERS = {
    "ours": Contender(serve_ours, connect_ours),
    "ours_with_keys": Contender(serve_with_keys, connect_with_keys),
    "json_base64": Contender(serve_json, connect_json),
    "websockets_msgpack": Contender(serve_websockets, connect_websockets),
}


def _answer(socket: ServerSocket, announce: Announce) -> None:
    announce(socket.address)
    while True:
        received = socket.receive(TIMEOUT_S)
        if received is None:
            continue
        peer, frames = received
        message = decode(frames)
        observation = unpack_observation(MessageReader(message.body, message.kind))
        socket.send(peer, encode(Message("ok", message.seq, {"count": count(observation.images)})))


@contextlib.contextmanager
def _exchanging(address: str, security: ClientSecurity | None) -> Iterator[Exchange]:
    with ClientSocket(address, security) as socket:

        def exchange(observation: Observation, quality: int | None) -> int:
            jpeg = None if quality is None else dict.fromkeys(observation.images, quality)
            frames = encode(Message("observation", 1, pack_observation(observation, jpeg)))
            socket.send(frames)
            answer = socket.receive(TIMEOUT_S)
            _check(observation, None if answer is None else decode(answer).body["count"])
            return sum(len(frame) for frame in frames)

        yield exchange


def _packed(
    observation: Observation, quality: int | None, pack: Callable[[NDArray[np.uint8]], Any]
) -> dict[str, dict[str, Any]]:
    """Return images for the contenders without a format of their own; an image without shape is JPEG."""
    return {
        name: {"shape": list(image.shape), "data": pack(image)}
        if quality is None
        else {"shape": None, "data": pack(encode_jpeg(image, quality))}
        for name, image in observation.images.items()
    }


def _unpacked(images: Mapping[str, Mapping[str, Any]], unpack: Callable[[Any], bytes]) -> dict[str, Image]:
    arrays = {name: (np.frombuffer(unpack(image["data"]), np.uint8), image["shape"]) for name, image in images.items()}
    return {
        name: decode_jpeg(array) if shape is None else array.reshape(shape) for name, (array, shape) in arrays.items()
    }


def _request(observation: Observation, images: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "images": images,
        "state": observation.state.tolist(),
        "instruction": observation.instruction,
        "stamp_ns": observation.stamp_ns,
        "step": observation.step,
    }


def _check(observation: Observation, counted: int | None) -> None:
    if counted != count(observation.images):
        raise TransportError(f"sent images of {count(observation.images)} numbers, the server counted {counted}.")


def main() -> None:
    name, folder = sys.argv[1:]
    CONTENDERS[name].serve(lambda address: print(address, flush=True), Path(folder))


if __name__ == "__main__":
    main()
