"""A policy server whose policy misbehaves as a file says.

    python policy.py ADDRESS FILE

FILE holds {"mode": "steady" | "huge" | "nan" | "shape" | "raise" | "chunk", "delay_s": seconds}, and is read anew for
each answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

STEP_M = 0.012
CHUNK = 6


class Policy:
    """Moves to and fro along each axis, so that almost every action is a motion."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders

    def act(self, observations: Sequence[Observation], keys: object = None) -> list[ActionChunk]:
        orders = json.loads(self._orders.read_text())
        time.sleep(orders.get("delay_s", 0.0))
        return [self._chunk(each, orders.get("mode", "steady")) for each in observations]

    def _chunk(self, seen: Observation, mode: str) -> ActionChunk:
        rows = [self._row(seen.step + k) for k in range(CHUNK if mode == "chunk" else 1)]
        match mode:
            case "huge":
                rows = [[1e6, -1e6, 0.3, 5.0]]
            case "nan":
                rows = [[math.nan, 0.0, 0.0, 1.0]]
            case "shape":
                rows = [[0.0, 0.0]]
            case "raise":
                raise ValueError("the policy was told to fail")
        return ActionChunk(np.array(rows, dtype=np.float64), seen.stamp_ns, seen.step)

    @staticmethod
    def _row(step: int) -> list[float]:
        phase = 2 * math.pi * step / 20
        return [STEP_M * math.sin(phase), STEP_M * math.cos(phase), STEP_M * math.sin(phase + 1), 0.5]


def main(address: str, orders: str) -> None:
    parent = os.getppid()
    with contextlib.closing(Wake()) as wake, ServerSocket(address, None, wake) as socket:
        batcher = Batcher(Policy(Path(orders)).act, Line(4, 0))
        answering(batcher)
        print("serving", flush=True)
        PolicyServer(Served("chaos", None, 4), batcher, socket, wake).serve(lambda: os.getppid() != parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
