"""A replica without a model, as a program: doubles the state. Some states make it fail, die or hang.

usage: toy_replica.py FOLDER --fd N      FOLDER/ACT gets a file named after the process while it computes
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.replicas.program import Ready, answer_all
from vla_robot.serve.replicas.stream import Stream
from vla_robot.testing import toy_embodiment

BAD, FATAL, HANGS = -1.0, -2.0, -3.0
"""States that are refused, that end the process, and that are never answered."""


def act(folder: Path, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
    states = [float(o.state[0]) for o in observations]
    if FATAL in states:
        os._exit(3)
    if HANGS in states:
        (folder / f"hangs_{os.getpid()}").touch()
        threading.Event().wait(None if not (folder / "go_on").exists() else 0)
    if BAD in states:
        raise ContractError("this state is bad.")
    return [ActionChunk(2 * o.state[None], o.stamp_ns, o.step, {"pid": float(os.getpid())}) for o in observations]


def load(folder: Path) -> Ready:
    if (folder / "damaged").exists():
        raise CheckpointError("the weights are damaged.")
    return Ready(lambda rows, keys: act(folder, rows, keys), embodiment(folder), "a toy")


def embodiment(folder: Path) -> Embodiment:
    named = toy_embodiment()
    return Embodiment.from_dict({**named.to_dict(), "name": "other"}) if (folder / "other_arm").exists() else named


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fd", type=int)
    arguments = parser.parse_args()
    try:
        answer_all(Stream(socket.socket(fileno=arguments.fd)), lambda: load(arguments.folder))
    except OSError:
        sys.exit(0)
