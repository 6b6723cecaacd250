"""Messages between a server and its replica over a socket pair, which ends at once when either process ends.

    message   number of frames (4 bytes), length of each (8 bytes each), frames

The pair has no address, so no other process can connect to a replica.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from vla_robot.core.errors import TransportError
from vla_robot.core.host.closeable import Closeable
from vla_robot.transport.wire import MAX_ARRAYS, MAX_FRAME_BYTES, Buffer, Message, decode


class Stream(Closeable):
    """One end of the pair; for one thread at a time."""

    def __init__(self, end: socket.socket) -> None:
        """
        Args:
            end: a connected socket, which is closed by `close`.
        """
        self._end = end

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send an encoded message. Raises OSError if the other process ended."""
        views = [memoryview(frame).cast("B") for frame in frames]
        self._end.sendall(struct.pack(f"<I{len(views)}Q", len(views), *(view.nbytes for view in views)))
        for view in views:
            self._end.sendall(view)

    def receive(self, timeout_s: float | None = None) -> Message:
        """Return the next message.

        Args:
            timeout_s: longest pause in which nothing arrives [s]; None: without limit.

        Raises:
            OSError: the other process ended (ConnectionError), or nothing arrived in time (TimeoutError).
            TransportError: the message is malformed.
        """
        self._end.settimeout(timeout_s)
        (count,) = struct.unpack("<I", self._read(4))
        if not 0 < count <= MAX_ARRAYS + 1:
            raise TransportError(f"a message of {count} frames; 1 to {MAX_ARRAYS + 1} are allowed.")
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count))
        if max(sizes) > MAX_FRAME_BYTES:
            raise TransportError(f"a frame of {max(sizes)} bytes; at most {MAX_FRAME_BYTES} are allowed.")
        return decode(self._frames(sizes))

    def close(self) -> None:
        self._end.close()

    def _frames(self, sizes: Sequence[int]) -> list[Buffer]:
        return [self._read(size) for size in sizes]

    def _read(self, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._end.recv_into(data[done:])
            if count == 0:
                raise ConnectionResetError("the other process ended")
            done += count
        return data.toreadonly()
