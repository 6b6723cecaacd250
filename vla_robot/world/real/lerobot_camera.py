"""Cameras through lerobot's own classes: the newest frame at any time, and when it was taken."""

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
"""lerobot registers a class when its module is imported."""

LAST_FRAME_MS = 10**9
"""Any age will do: how old a frame may be is decided where its stamp is looked at."""


class LerobotCamera:
    """One of lerobot's cameras: the newest frame and its stamp, at any time, without waiting."""

    def __init__(self, name: str, recipe: RobotCameraRecipe) -> None:
        """
        Args:
            name: in [robot.cameras], for messages.
            recipe: type and fields.

        Raises:
            RecipeError: lerobot has no such camera class or field.
            WorldError: the camera is not there, or does not do what is asked for.
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
            raise RecipeError(f"camera '{name}': lerobot's class '{recipe.type}' does not tell when a frame was taken.")
        self._newest: Frame | None = None

    def newest(self) -> Frame:
        """The newest frame, and when it was taken; a stopped camera's is old.

        Raises:
            WorldError: there never was a frame.
        """
        with contextlib.suppress(*DEVICE_FAULTS):  # a camera that died: its last frame tells by its age
            self._newest = self._take() or self._newest
        if self._newest is None:
            raise WorldError(f"camera '{self.name}' is open and gives no frame. Unplug it, plug it in again.")
        return self._newest

    def moment(self) -> str:
        """What the driver's stamps stand for, in words; "" where it is not known, or gives none."""
        return moment_of(self._camera.index_or_path) if self.newest().stamped_by == "driver" else ""

    def close(self) -> None:
        with contextlib.suppress(*DEVICE_FAULTS):
            self._camera.disconnect()

    def _source(self) -> Callable[[], Frame | None]:
        """Where frames with stamps come from."""
        from lerobot.cameras.opencv import OpenCVCamera

        return DriverStamps(self._camera, self.name).newest if isinstance(self._camera, OpenCVCamera) else self._arrived

    def _arrived(self) -> Frame | None:
        stamp_s = self._camera.latest_timestamp  # before the frame: never younger than what it stands for
        image = self._camera.read_latest(max_age_ms=LAST_FRAME_MS)
        if stamp_s is None:
            return None
        stamp_ns = round(stamp_s * NS_PER_S)
        return Frame(image, stamp_ns, stamp_ns, "arrival")


def fitted(frame: Image, height: int, width: int) -> Image:
    """The middle of a frame in the shape that the policy sees, not stretched.

    Args:
        frame: (H, W, 3) uint8.
        height: wanted [px].
        width: wanted [px].
    """
    from vla_robot.core.image import resize

    scale = min(frame.shape[0] / height, frame.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    return np.ascontiguousarray(resize(frame[top : top + rows, left : left + columns], height, width))


def camera_clock_offset_ns() -> int:
    """lerobot's camera clock (perf_counter) minus ours (monotonic); 0 on Linux, where both are one."""
    before = time.monotonic_ns()
    theirs = time.perf_counter_ns()
    return theirs - (before + time.monotonic_ns()) // 2


def _make_camera_config(name: str, recipe: RobotCameraRecipe) -> Any:
    from lerobot.cameras.configs import CameraConfig

    schema = choice(CameraConfig, "camera type", recipe.type, "lerobot.cameras", CAMERA_MODULES)
    return decoded(schema, recipe.fields, f"[robot.cameras.{name}] fields")


def _brief(recipe: RobotCameraRecipe) -> str:
    return ", ".join([recipe.type, *(f"{name} {value}" for name, value in recipe.fields.items())])
