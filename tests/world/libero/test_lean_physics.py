"""Fewer passes over the same state give the same bits, whatever happens between them."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_robot.world.sim.libero.lean_physics import LeanPhysics

mujoco: Any = pytest.importorskip("mujoco")

SCENE = """
<mujoco>
  <option timestep="0.002" cone="elliptic" impratio="20" density="1.2" viscosity="0.00002" integrator="{integrator}"/>
  <worldbody>
    <geom type="plane" size="1 1 0.1"/>
    <body pos="0 0 0.05"><freejoint/><geom type="box" size="0.03 0.03 0.03" mass="0.1"/></body>
    <body pos="0.01 0 0.12"><freejoint/><geom type="box" size="0.02 0.03 0.02" mass="0.1"/></body>
    <body pos="-0.2 0 0.1">
      <joint name="hinge" axis="0 0 1"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge"/></actuator>
  <sensor><jointpos joint="hinge"/><jointvel joint="hinge"/></sensor>
</mujoco>
"""
EVERYTHING = ("qpos", "qvel", "qacc", "qacc_warmstart", "qfrc_constraint", "sensordata", "xpos")


class Sim:
    """What robosuite's simulation is to the physics: `forward` and `step` of a model, as robosuite 1.4.0 has them."""

    def __init__(self, integrator: str) -> None:
        self.model = SimpleNamespace(_model=mujoco.MjModel.from_xml_string(SCENE.format(integrator=integrator)))
        self.data = SimpleNamespace(_data=mujoco.MjData(self.model._model))

    def forward(self) -> None:
        mujoco.mj_forward(self.model._model, self.data._data)

    def step(self, with_udd: bool = True) -> None:
        mujoco.mj_step(self.model._model, self.data._data)


def episode(lean: bool, integrator: str = "Euler", shoved: bool = False) -> list[bytes]:
    """Run 12 control steps of 25 physics steps, as robosuite's loop and controller do."""
    sim, rng = Sim(integrator), np.random.default_rng(0)
    physics, data, seen = LeanPhysics(sim), sim.data._data, []
    for _ in range(12):
        with physics.control_step() if lean else nullcontext():
            for _ in range(25):
                sim.forward()
                if shoved:
                    data.qvel[0] += rng.normal(0, 0.01)  # the passes before do not count any more
                sim.forward()
                data.ctrl[0] = rng.normal(0, 0.3)
                data.qfrc_applied[1] = rng.normal(0, 0.1)
                sim.step()
        sim.forward()
        seen.append(b"".join(getattr(data, name).tobytes() for name in EVERYTHING))
    assert data.ncon > 0, "there are contacts"
    return seen


@pytest.mark.parametrize("shoved", [False, True])
@pytest.mark.parametrize("integrator", ["Euler", "RK4", "implicitfast"])
def test_an_episode_is_the_same_to_the_bit(integrator: str, shoved: bool) -> None:
    assert episode(True, integrator, shoved) == episode(False, integrator, shoved)


def test_positions_are_computed_once_in_a_physics_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = dict.fromkeys(("mj_forward", "mj_forwardSkip", "mj_step"), 0)
    for name in calls:
        original = getattr(mujoco, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> None:
            calls[name] += 1
            original(*args)

        monkeypatch.setattr(mujoco, name, counted)
    episode(lean=True)
    assert calls == {"mj_forward": 12 * 26, "mj_forwardSkip": 12 * 50, "mj_step": 0}


def test_robosuites_own_calls_are_back_after_a_control_step() -> None:
    sim = Sim("Euler")
    with LeanPhysics(sim).control_step():
        assert "forward" in vars(sim) and "step" in vars(sim)
    assert "forward" not in vars(sim) and "step" not in vars(sim)
