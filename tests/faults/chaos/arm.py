"""`vla bridge` with an emulated arm that keeps a journal of its own: what the program under test sent, in its words.

    python arm.py FOLDER BRIDGE_ARGUMENTS...

FOLDER/journal.jsonl gets one line for each call, written before the call has any effect: {"t": monotonic ns, "do":
"command" | "hold" | "stop" | "reset" | "look" | "close", "a": the action}. FOLDER/arm.json makes the arm misbehave:
{"on": ["command", ...], "raise": name of an exception, "slow_s": seconds}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.cli import bridge
from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.testing.embodiments import WIDTH, toy_embodiment

RATE_HZ = 20.0
HORIZON = 60
"""Ticks of an episode: 3 s, so that episodes also begin and end under faults."""
RANGE_M = 0.05
EMBODIMENT = toy_embodiment(
    name="journal",
    axes=("dx", "dy", "dz"),
    step_m=RANGE_M,
    state=(*(Dim(axis, "m", -1.0, 1.0) for axis in "xyz"), WIDTH),
    height=32,
    width=32,
    rate_hz=RATE_HZ,
)
FAILURES: dict[str, type[BaseException]] = {
    "WorldError": WorldError,
    "OSError": OSError,
    "ValueError": ValueError,
    "KeyError": KeyError,
    "RuntimeError": RuntimeError,
}


class JournalArm:
    """Goes where it is sent at once, and writes down each call first."""

    embodiment = EMBODIMENT
    instruction = "move about"
    can_wait = False

    def __init__(self, folder: Path) -> None:
        self._journal = os.open(folder / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._orders = folder / "arm.json"
        self._position, self._step = np.zeros(3), 0
        self.camera_stamps_ns: Mapping[str, int] = {}

    def reset(self, seed: int) -> Observation:
        self._position, self._step = np.zeros(3), 0
        self._note("reset")
        return self._observe()

    def command(self, action: Vector) -> StepResult:
        self._note("command", action)
        self._position = self._position + action[:3]
        return self._after(action)

    def hold(self) -> StepResult:
        self._note("hold")
        return self._after(np.array([0.0, 0.0, 0.0, 1.0]))

    def look(self) -> Observation:
        self._note("look")
        return self._observe()

    def stop(self) -> None:
        self._note("stop")

    def close(self) -> None:
        self._note("close")

    def _after(self, action: Vector) -> StepResult:
        self._step += 1
        return StepResult(self._observe(), action, False, False, self._step >= HORIZON)

    def _observe(self) -> Observation:
        stamp_ns = time.monotonic_ns()
        self.camera_stamps_ns = {"front": stamp_ns}
        image = np.full((32, 32, 3), self._step % 256, np.uint8)
        state = np.append(self._position, 0.05)
        return Observation({"front": image}, state, self.instruction, stamp_ns, self._step)

    def _note(self, what: str, action: Vector | None = None) -> None:
        line = {"t": time.monotonic_ns(), "do": what, "a": None if action is None else action.tolist()}
        os.write(self._journal, json.dumps(line).encode() + b"\n")
        self._misbehave(what)

    def _misbehave(self, what: str) -> None:
        try:
            orders = json.loads(self._orders.read_text())
        except (FileNotFoundError, ValueError):
            return
        if what in orders.get("on", ()):
            time.sleep(orders.get("slow_s", 0.0))
            if "raise" in orders:
                raise FAILURES[orders["raise"]](f"the arm was told to fail in {what}")


def main(folder: str, *arguments: str) -> int:
    from vla_robot.cli.main import main as vla

    def build_arm(*_: Any, **__: Any) -> JournalArm:
        return JournalArm(Path(folder))

    bridge.build_arm = build_arm
    return vla(["bridge", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
