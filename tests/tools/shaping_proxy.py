"""A bad network on one computer: forwards TCP with delay, jitter and loss, as `tc netem` would where the kernel has it.

    vla bridge envs/lift.toml --bind tcp://127.0.0.1:5570
    python tests/tools/shaping_proxy.py --listen 5571 --to 5570 --delay-ms 20 --jitter-ms 5 --loss 0.01
    vla run --robot tcp://127.0.0.1:5571 --policy openvla_nano

TCP delivers in order whatever is lost: a loss is a stall until the segment was sent again, of RETRANSMIT_MS and a round
trip, for everything behind it. The delay is that of each direction.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
from dataclasses import dataclass

SEGMENT_BYTES = 1448
"""What one packet carries on Ethernet; each is lost by itself."""

RETRANSMIT_MS = 10.0
"""A fast retransmit is triggered by the three packets that follow; frames are more than a hundred packets long."""

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Shape:
    """What a direction does to what passes.

    Attributes:
        delay_ms: one way.
        jitter_ms: standard deviation of the delay.
        loss: share of packets lost, 0 to 1.
    """

    delay_ms: float = 20.0
    jitter_ms: float = 5.0
    loss: float = 0.01


def way_ms(shape: Shape, size: int, rng: random.Random) -> float:
    """How long a piece of `size` bytes is on its way."""
    packets = -(-size // SEGMENT_BYTES)
    lost = any(rng.random() < shape.loss for _ in range(packets))
    stall_ms = RETRANSMIT_MS + 2 * shape.delay_ms if lost else 0.0
    return max(rng.gauss(shape.delay_ms, shape.jitter_ms), 0.0) + stall_ms


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shape: Shape, rng: random.Random) -> None:
    """One direction: pieces leave in order, each no earlier than its own way takes."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            at_s, piece = await pieces.get()
            await asyncio.sleep(max(at_s - loop.time(), 0.0))
            writer.write(piece)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        while piece := await reader.read(CHUNK_BYTES):
            pieces.put_nowait((loop.time() + way_ms(shape, len(piece), rng) / 1000, piece))
    except ConnectionError:
        pass  # either end is gone: so is the connection
    finally:
        delivery.cancel()
        writer.close()


async def serve(listen: int, to: int, shape: Shape, seed: int) -> None:
    """Forward until cancelled."""
    rng = random.Random(seed)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(
            forward(reader, there_writer, shape, rng), forward(there_reader, writer, shape, rng), return_exceptions=True
        )

    server = await asyncio.start_server(connect, "127.0.0.1", listen)
    print(f"forwarding 127.0.0.1:{listen} to :{to}, {shape}", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=int, required=True, help="port of this computer")
    parser.add_argument("--to", type=int, required=True, help="port of the bridge")
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--jitter-ms", type=float, default=5.0)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        shape = Shape(args.delay_ms, args.jitter_ms, args.loss)
        asyncio.run(serve(args.listen, args.to, shape, args.seed))


if __name__ == "__main__":
    main()
