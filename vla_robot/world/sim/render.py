"""Renders the cameras of simulated worlds offscreen, fast enough for a control loop on a software renderer.

OpenGL starts with the first frame. The context is released after each frame, so that any thread may render the next
one. A process that was forked after OpenGL had started cannot render: its driver waits for threads that only the parent
has.

Measured on two cores of software EGL at 224 px, robosuite's Lift: 75 ms a frame with MuJoCo's defaults, 26 ms without
shadows and reflections, 18 ms without multisampling as well.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import math
import os
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import WorldError
from vla_robot.core.image import turned
from vla_robot.core.messages import Image
from vla_robot.world.sim.culling import only_in_sight
from vla_robot.world.sim.simplified_meshes import simplified_meshes

if TYPE_CHECKING:
    import mujoco

    from vla_robot.recipe.env import CameraRecipe

COLLISION_GEOMS = 0
"""MuJoCo's geom group of collision shapes in robosuite's models; hidden, since the visual meshes are in group 1."""


def choose_gl_backend() -> None:
    """Select EGL on Linux without a display, unless MUJOCO_GL is set."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or "MUJOCO_GL" in os.environ:
        return
    os.environ["MUJOCO_GL"] = "egl"
    if "mujoco.gl_context" in sys.modules:  # MuJoCo reads the variable when this module is imported
        importlib.reload(sys.modules["mujoco.gl_context"])


def start_mujoco() -> None:
    """Import mujoco with a backend that fits this machine.

    Raises:
        WorldError: the backend that MUJOCO_GL names cannot be loaded, which mujoco does while it is imported.
    """
    choose_gl_backend()
    try:
        importlib.import_module("mujoco")
    except Exception as error:  # OpenGL loaders raise ImportError, RuntimeError, AttributeError and others
        raise WorldError(_no_opengl(error)) from error


def _no_opengl(error: Exception) -> str:
    return (
        f"OpenGL cannot start here (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {error}. "
        "On a machine without a display install EGL (Debian: `apt-get install libegl1 libgl1-mesa-dri`), or "
        "install libosmesa6 and set MUJOCO_GL=osmesa. `vla doctor` tests it."
    )


class Renderer:
    """A renderer of the cameras of one model."""

    def __init__(
        self, model: mujoco.MjModel, shadows: bool, hide_group: int | None = None, mesh_cell_m: float = 0.0
    ) -> None:
        """
        Args:
            model: the model; its quality settings are changed in place.
            shadows: whether to render shadows, reflections and multisampling.
            hide_group: geom group that is not rendered.
            mesh_cell_m: edge of the cells in which a mesh's vertices are merged [m]; 0 draws meshes whole.
        """
        self._model = model
        self._shadows = shadows
        self._mesh_cell_m = mesh_cell_m
        self._hide_group = hide_group
        self._by_size: dict[tuple[int, int], mujoco.Renderer] = {}
        if not shadows:
            model.vis.quality.offsamples = 0

    def frame(self, data: mujoco.MjData, camera: CameraRecipe) -> Image:
        """Return the camera's picture of the scene in its present state, (H, W, 3) uint8 RGB.

        Raises:
            WorldError: OpenGL cannot start here, or another thread renders at this moment.
        """
        return turned(self._drawn(data, camera, lambda renderer: renderer.render()), camera.turn_deg, camera.mirror)

    def geoms(self, data: mujoco.MjData, camera: CameraRecipe) -> NDArray[np.int32]:
        """Return which geom each pixel of the camera's picture shows, (H, W) int32 ids; -1 for none.

        Raises:
            WorldError: as `frame`.
        """
        seen = self._drawn(data, camera, _segmentation)
        return turned(seen, camera.turn_deg, camera.mirror)

    def _drawn[A: np.generic](
        self, data: mujoco.MjData, camera: CameraRecipe, draw: Callable[[mujoco.Renderer], NDArray[A]]
    ) -> NDArray[A]:
        is_lying = camera.turn_deg in (90, 270)
        size = (camera.width, camera.height) if is_lying else (camera.height, camera.width)
        renderer = self._renderer(*size)
        if camera.source is not None:
            with self._only_in_sight(data, camera.source, size[1] / size[0]):
                renderer.update_scene(data, camera.source)
        else:
            self._model.vis.global_.fovy = camera.fovy_deg
            renderer.update_scene(data, _free_camera(camera))
        try:
            return draw(renderer)
        except Exception as error:  # OpenGL loaders raise errors of many types
            raise WorldError(f"a frame cannot be drawn: {error}. Use a world from one thread at a time.") from error
        finally:
            _let_go_of(renderer)

    def _only_in_sight(
        self, data: mujoco.MjData, source: str, aspect: float
    ) -> contextlib.AbstractContextManager[None]:
        if self._shadows:  # what is out of sight throws some, and is reflected
            return contextlib.nullcontext()
        return only_in_sight(self._model, data, source, aspect)

    def close(self) -> None:
        """Free the OpenGL contexts. May be called twice."""
        for renderer in self._by_size.values():
            renderer.close()
        self._by_size.clear()

    def abandon(self) -> None:
        """Drop the contexts without freeing them: after a fork, a call into their driver may never return."""
        for renderer in self._by_size.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(renderer))  # so that no finaliser runs
        self._by_size.clear()

    def _renderer(self, height: int, width: int) -> mujoco.Renderer:
        if (height, width) not in self._by_size:
            self._by_size[height, width] = self._create(height, width)
        return self._by_size[height, width]

    def _create(self, height: int, width: int) -> mujoco.Renderer:
        import mujoco

        _require_own_opengl()
        try:
            with simplified_meshes(self._model, self._mesh_cell_m):
                renderer = mujoco.Renderer(self._model, height, width)
        except Exception as error:  # as above
            raise WorldError(_no_opengl(error)) from error
        _let_go_of(renderer)
        _LIVE.add(self)
        _free_contexts_at_exit()
        if not self._shadows:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        if self._hide_group is not None:
            renderer._scene_option.geomgroup[self._hide_group] = 0  # mujoco 3.3 has no public setter
        return renderer


def _segmentation(renderer: mujoco.Renderer) -> NDArray[np.int32]:
    import mujoco

    renderer.enable_segmentation_rendering()
    try:
        ids, kinds = np.moveaxis(renderer.render(), -1, 0)
    finally:
        renderer.disable_segmentation_rendering()
    return np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), ids, -1).astype(np.int32)


_LIVE: weakref.WeakSet[Renderer] = weakref.WeakSet()


@functools.cache
def _free_contexts_at_exit() -> None:
    """Free the contexts of unclosed worlds at exit. Call this after MuJoCo registers its handler, to run before it."""
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_LIVE):
        renderer.close()


def _release_egl(module: Any) -> None:
    none = module.EGL.EGL_NO_SURFACE
    module.EGL.eglMakeCurrent(module.EGL_DISPLAY, none, none, module.EGL.EGL_NO_CONTEXT)


def _release_osmesa(module: Any) -> None:
    module.osmesa.OSMesaMakeCurrent(None, None, module.GL.GL_FLOAT, 0, 0)


def _release_glfw(module: Any) -> None:
    module.glfw.make_context_current(None)


_RELEASE: dict[str, Callable[[Any], None]] = {
    "mujoco.egl": _release_egl,
    "mujoco.osmesa": _release_osmesa,
    "mujoco.glfw": _release_glfw,
}


def _let_go_of(renderer: mujoco.Renderer) -> None:
    """Release the renderer's context from this thread; mujoco makes it current again before it renders."""
    name = type(renderer._gl_context).__module__
    if release := _RELEASE.get(name):
        release(sys.modules[name])


_inherited_opengl = False
"""Whether this process was forked from one in which OpenGL had started."""


def _require_own_opengl() -> None:
    if _inherited_opengl:
        raise WorldError(
            "OpenGL had started in the process that this one was forked from, so it cannot draw here. Start the "
            'workers with the context "spawn": gymnasium.make_vec(..., vector_kwargs={"context": "spawn"}), or '
            'multiprocessing.get_context("spawn").'
        )


def _after_fork() -> None:
    """Drop the parent's contexts in a forked child, so that the child does not free them, also not when it exits."""
    global _inherited_opengl
    egl: Any = sys.modules.get("mujoco.egl")
    if not _LIVE and getattr(egl, "EGL_DISPLAY", None) is None:
        return
    _inherited_opengl = True
    for renderer in list(_LIVE):
        renderer.abandon()
    atexit.unregister(_close_all)
    if egl is not None:
        atexit.unregister(egl.EGL.eglTerminate)


os.register_at_fork(after_in_child=_after_fork)


def _free_camera(camera: CameraRecipe) -> mujoco.MjvCamera:
    import mujoco

    assert camera.pos is not None and camera.target is not None
    view = np.subtract(camera.target, camera.pos)  # from the eye to the point looked at
    free = mujoco.MjvCamera()
    free.type = mujoco.mjtCamera.mjCAMERA_FREE
    free.lookat[:] = camera.target
    free.distance = float(np.linalg.norm(view))
    free.azimuth = math.degrees(math.atan2(view[1], view[0]))
    free.elevation = math.degrees(math.asin(view[2] / free.distance))
    return free
