"""Drive a robot over the bridge. The bridge keeps the arm's clock, limits, watchdog and e-stop, whatever is sent.

    .venv/bin/vla bridge envs/tabletop.toml                     in one terminal: here the arm is simulated
    .venv/bin/python examples/drive_robot.py tcp://127.0.0.1:5570

A simulated robot may be asked to wait for each action (`lockstep`), as here. A real one does not wait: `vla run
--robot ADDRESS` sends chunks while the next inference runs.
"""

import sys

import numpy as np

from vla_robot.cli.build import connect_robot
from vla_robot.core.messages import ActionChunk
from vla_robot.core.robot import Tick


def main(address: str, steps: int = 10) -> list[Tick]:
    ticks: list[Tick] = []
    with connect_robot(address) as robot:
        space = robot.embodiment.action
        print(f"{robot.embodiment.name}: {', '.join(space.names)} at {robot.embodiment.rate_hz:g} Hz")
        seen = robot.begin(seed=0, lockstep=True)
        for _ in range(steps):
            action = np.zeros(len(space))
            action[space.names.index("dz")] = 0.01  # metres up
            action[space.names.index("gripper")] = 1.0  # open
            tick = robot.play(ActionChunk(action[None], seen.stamp_ns, seen.step))
            clamps = ", ".join(clamp.cause for clamp in tick.result.clamps) or "nothing"
            seen = tick.result.observation
            print(f"step {seen.step}: {tick.mode}, executed {tick.result.executed}, limited by {clamps}")
            ticks.append(tick)
        robot.end()
    return ticks


if __name__ == "__main__":
    main(sys.argv[1])
