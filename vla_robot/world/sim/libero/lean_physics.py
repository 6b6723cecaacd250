"""Physics steps of robosuite 1.4.0 that compute positions, contacts and velocities once, with the same bits.

In each of the 25 physics steps of a control step, robosuite asks MuJoCo for all that follows from the state: before the
controller, in the controller, and in MuJoCo's own step. The state is the same each time. What follows from positions
and velocities alone is therefore the same, too. Accelerations are computed as often as there: their solver starts from
its last solution, and another number of solutions would change the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class LeanPhysics:
    """Takes the place of `forward` and `step` of robosuite's simulation while a control step runs."""

    def __init__(self, sim: Any) -> None:
        """
        Args:
            sim: robosuite's simulation (MjSim), whose model keeps its integrator.
        """
        self._mujoco: Any = import_module("mujoco")
        self._sim, self._model, self._data = sim, sim.model._model, sim.data._data
        self._done_for = b""
        self._is_euler = int(self._model.opt.integrator) == int(self._mujoco.mjtIntegrator.mjINT_EULER)

    @contextmanager
    def control_step(self) -> Iterator[None]:
        """Compute less within the block, in which the model does not change."""
        self._done_for = b""
        self._sim.forward, self._sim.step = self._forward, self._step
        try:
            yield
        finally:
            del self._sim.forward, self._sim.step

    def _forward(self) -> None:
        if self._state() == self._done_for:
            self._accelerations()
        else:
            self._mujoco.mj_forward(self._model, self._data)
            self._done_for = self._state()

    def _step(self, with_udd: bool = True) -> None:
        """Do what `mj_step` does: check the state, compute all that follows from it, check that, integrate."""
        self._mujoco.mj_checkPos(self._model, self._data)
        self._mujoco.mj_checkVel(self._model, self._data)
        if not self._is_euler or self._state() != self._done_for:
            self._mujoco.mj_step(self._model, self._data)
            return
        self._accelerations()
        self._mujoco.mj_checkAcc(self._model, self._data)
        self._mujoco.mj_Euler(self._model, self._data)

    def _accelerations(self) -> None:
        """Compute what also follows from controls and applied forces."""
        self._mujoco.mj_forwardSkip(self._model, self._data, int(self._mujoco.mjtStage.mjSTAGE_VEL), 0)

    def _state(self) -> bytes:
        return b"".join(values.tobytes() for values in (self._data.qpos, self._data.qvel, self._data.act))
