"""Reads cameras through lerobot's own classes: the newest frame and its capture time, without waiting."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Image
from vla_robot.recipe.robot import RobotCameraRecipe
from vla_robot.world.real.camera_stamps import DriverStamps, Frame, moment_of
from vla_robot.world.real.lerobot_common import DEVICE_FAULTS, choice, decoded, in_one_line

CAMERA_MODULES = ("opencv", "realsense", "zmq", "reachy2_camera")
"""Modules to import: lerobot registers a camera class when its module is imported."""

LAST_FRAME_MS = 10**9
"""Age limit for lerobot, large enough to accept any frame: the bridge and the loop judge a frame by its stamp."""


class LerobotCamera:
    """One of lerobot's cameras, which gives its newest frame and stamp without waiting."""

    def __init__(self, name: str, recipe: RobotCameraRecipe) -> None:
        """
        Args:
            name: the camera's name in [robot.cameras].
            recipe: lerobot's type and fields of the camera.

        Raises:
            RecipeError: lerobot has no such camera class or field.
            WorldError: the camera is missing, or does not support the fields.
        """
        require("lerobot", "arm", "a camera")
        from lerobot.cameras.utils import make_cameras_from_configs

        self.name = name
        config = _make_camera_config(name, recipe)
        try:
            self._camera: Any = make_cameras_from_configs({name: config})[name]
            self._take = self._source()
            self._camera.connect()
        except DEVICE_FAULTS as error:
            told = in_one_line(error)
            raise WorldError(
                f"camera '{name}' ({_brief(recipe)}) cannot be opened: {told} `lerobot-find-cameras {recipe.type}` "
                f"lists what is there; write it to [robot.cameras.{name}]. Nothing was moved."
            ) from error
        if not hasattr(self._camera, "latest_timestamp"):
            self.close()
            raise RecipeError(f"camera '{name}': lerobot's class '{recipe.type}' gives no time of a frame.")
        self._newest: Frame | None = None

    def newest(self) -> Frame:
        """Return the newest frame and its stamp; a stopped camera returns its last frame.

        Raises:
            WorldError: the camera has given no frame yet.
        """
        with contextlib.suppress(*DEVICE_FAULTS):  # the stamp of a dead camera's last frame shows its age
            self._newest = self._take() or self._newest
        if self._newest is None:
            raise WorldError(f"camera '{self.name}' is open and gives no frame. Unplug it, plug it in again.")
        return self._newest

    def moment(self) -> str:
        """Return the meaning of the driver's stamps in words; "" where it is not known, or the driver gives none."""
        return moment_of(self._camera.index_or_path) if self.newest().stamped_by == "driver" else ""

    def close(self) -> None:
        with contextlib.suppress(*DEVICE_FAULTS):
            self._camera.disconnect()

    def _source(self) -> Callable[[], Frame | None]:
        """Return the function that gives the newest frame with its stamp."""
        from lerobot.cameras.opencv import OpenCVCamera

        return DriverStamps(self._camera, self.name).newest if isinstance(self._camera, OpenCVCamera) else self._arrived

    def _arrived(self) -> Frame | None:
        stamp_s = self._camera.latest_timestamp  # read before the frame, so that the stamp is never too young
        image = self._camera.read_latest(max_age_ms=LAST_FRAME_MS)
        if stamp_s is None:
            return None
        stamp_ns = round(stamp_s * NS_PER_S)
        return Frame(image, stamp_ns, stamp_ns, "arrival")


def fitted(frame: Image, height: int, width: int) -> Image:
    """Crop a frame about its centre to the wanted aspect ratio, and resize it.

    Args:
        frame: (H, W, 3) uint8.
        height: wanted height [px].
        width: wanted width [px].

    Returns:
        (height, width, 3) uint8.
    """
    from vla_robot.core.image import resize

    scale = min(frame.shape[0] / height, frame.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    return np.ascontiguousarray(resize(frame[top : top + rows, left : left + columns], height, width))


def camera_clock_offset_ns() -> int:
    """Return lerobot's camera clock (perf_counter) minus ours (monotonic) [ns]; on Linux both are the same clock."""
    before = time.monotonic_ns()
    theirs = time.perf_counter_ns()
    return theirs - (before + time.monotonic_ns()) // 2


def _make_camera_config(name: str, recipe: RobotCameraRecipe) -> Any:
    from lerobot.cameras.configs import CameraConfig

    schema = choice(CameraConfig, "camera type", recipe.type, "lerobot.cameras", CAMERA_MODULES)
    return decoded(schema, recipe.fields, f"[robot.cameras.{name}] fields")


def _brief(recipe: RobotCameraRecipe) -> str:
    return ", ".join([recipe.type, *(f"{name} {value}" for name, value in recipe.fields.items())])
