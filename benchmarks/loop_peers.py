"""The peers of the bridge in `vla bench loop`: `python -m benchmarks.loop_peers controller ADDRESS`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_robot.core.clock import NS_PER_MS, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.data.demonstration import DemonstrationBuilder

CONTROLLER, RECORDER, INFERENCE = "controller", "recorder", "inference"

READY = "ready"
"""Line that a peer prints when it is ready."""

CONNECT_TIMEOUT_S = 60.0

EPISODE_STEPS = 400
"""Number of steps after which a recorded episode is dropped for a new one: 120 MB of noise frames."""


def control(address: str, records: bool = False) -> None:
    """Answer every observation at once, until the process is ended; with `records`, also collect them."""
    from vla_robot.serve.bridge.remote_robot import RemoteRobot

    print(READY, flush=True)
    with RemoteRobot(address, connect_timeout_s=CONNECT_TIMEOUT_S) as robot:
        observation = robot.begin(seed=0)
        clock, action = MonotonicClock(), np.zeros((1, len(robot.embodiment.action)))
        builder = DemonstrationBuilder(in_background=True) if records else None
        while True:
            way_ms = dict(robot.last_stages_ms)
            passed_ms = (clock.now_ns() - observation.stamp_ns) / NS_PER_MS
            stages_ms = {
                "publish": way_ms["render"],
                "way_to_controller": way_ms["transport_back"],
                "controller": max(passed_ms - sum(way_ms.values()), 0.0),  # the clocks are known within a bound
            }
            robot.send(ActionChunk(action, observation.stamp_ns, observation.step, stages_ms))
            before, tick = observation, None
            while tick is None:
                tick = robot.newest(after=observation.step, timeout_s=1.0)
            observation = tick.result.observation
            if builder is not None:
                builder.add(before, action[0], tick.result)
                builder = builder if len(builder) < EPISODE_STEPS else DemonstrationBuilder(in_background=True)


def infer(folder: Path) -> None:
    """Run inference repeatedly, until the process is ended."""
    _keep_to_one_core()
    from vla_robot.policy.openvla.policy import load

    policy = load(folder if folder.is_dir() else folder.parent)
    assert policy.embodiment is not None
    observation = imagined(policy.embodiment)
    policy.act([observation])
    print(READY, flush=True)
    while True:
        policy.act([observation])


def _keep_to_one_core() -> None:
    """Use only the last core, since the bridge and its controller need the others and torch takes every core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def imagined(embodiment: Embodiment) -> Observation:
    """Return an observation of noise for a policy."""
    rng = np.random.default_rng(0)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in embodiment.cameras}
    return Observation(images, np.zeros(len(embodiment.state)), "lift the red cube", stamp_ns=1, step=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the peers; it ends with its parent process."""
    what, where = sys.argv[1:] if argv is None else argv
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if what in (CONTROLLER, RECORDER):
        control(where, records=what == RECORDER)
    else:
        infer(Path(where))
    return 0


def _end_with_parent() -> None:
    """End this process when stdin closes: the parent holds its other end and never writes."""
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
