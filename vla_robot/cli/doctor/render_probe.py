"""Renders a frame as the simulated worlds do, and prints its time: `python -m vla_robot.cli.doctor.render_probe`.

A separate program, because a broken OpenGL driver may kill the process that uses it. Used by `vla doctor`.
"""

from __future__ import annotations

import os
import sys
import time

from vla_robot.core.errors import VlaError, WorldError
from vla_robot.recipe.env import CameraRecipe
from vla_robot.world.sim.render import Renderer, start_mujoco

_SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 2"/>
    <geom type="plane" size="1 1 0.1" rgba="0.3 0.3 0.3 1"/>
    <geom type="box" size="0.1 0.1 0.1" pos="0 0 0.1" rgba="0.9 0.2 0.2 1"/>
  </worldbody>
</mujoco>
"""
_CAMERA = CameraRecipe("front", pos=(0.8, 0.0, 0.6), target=(0.0, 0.0, 0.1))


def main() -> int:
    """Print "<backend> <milliseconds per frame>"; on failure one line on stderr and status 1."""
    try:
        frame_ms = _time_a_frame()
    except VlaError as error:
        print(error, file=sys.stderr)
        return 1
    print(os.environ.get("MUJOCO_GL", "window-system"), f"{frame_ms:.1f}")
    return 0


def _time_a_frame() -> float:
    start_mujoco()
    import mujoco

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, shadows=False)
    # The first frame also compiles shaders; the second is as slow as in a control step.
    renderer.frame(data, _CAMERA)
    start_ns = time.monotonic_ns()
    frame = renderer.frame(data, _CAMERA)
    frame_ms = (time.monotonic_ns() - start_ns) / 1e6
    renderer.close()
    if frame.max() == frame.min():
        raise WorldError("OpenGL started, but the frame is blank; update the graphics driver or use MUJOCO_GL=osmesa.")
    return frame_ms


if __name__ == "__main__":
    sys.exit(main())
