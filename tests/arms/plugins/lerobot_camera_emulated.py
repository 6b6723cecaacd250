"""A camera that lerobot finds as it finds any installed plug-in: frames on time, without hardware.

It dies when the file `stops_when` appears, as a camera does whose cable is pulled: no error, no new frames.

lerobot waits 50 ms for a servo's answer. Emulated servos share two cores with whatever else is tested, and answer later
than that: where EMULATED_SERVOS is set, lerobot waits longer, and is as it is in all else.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras import Camera, CameraConfig

CAMERAS = 4
LONG_WAIT_MS = 400


def wait_long(port: Any, packet_length: int) -> None:
    """What lerobot calls before it waits for an answer."""
    port.packet_start_time = port.getCurrentTime()
    port.packet_timeout = LONG_WAIT_MS


if "EMULATED_SERVOS" in os.environ:
    from lerobot.motors.feetech import feetech

    feetech.patch_setPacketTimeout = wait_long


@CameraConfig.register_subclass("emulated")
@dataclass
class EmulatedCameraConfig(CameraConfig):
    index_or_path: int = 0
    stops_when: Path | None = None


class EmulatedCamera(Camera):
    """A grey frame with the number of the frame in its corner."""

    def __init__(self, config: EmulatedCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._start_s: float | None = None
        self._last_s = 0.0

    @property
    def is_connected(self) -> bool:
        return self._start_s is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return [{"id": index} for index in range(CAMERAS)]

    def connect(self, warmup: bool = True) -> None:
        if self.config.index_or_path >= CAMERAS:
            raise ConnectionError(f"Failed to open EmulatedCamera({self.config.index_or_path}).")
        self._start_s = time.perf_counter()

    @property
    def latest_timestamp(self) -> float:
        assert self._start_s is not None
        if self.config.stops_when is None or not self.config.stops_when.exists():
            frame_s = 1 / (self.fps or 30)
            self._last_s = time.perf_counter() - (time.perf_counter() - self._start_s) % frame_s
        return self._last_s

    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        frame = np.full((self.height or 480, self.width or 640, 3), 96, np.uint8)
        frame[:16, :16] = round(self.latest_timestamp * 30) % 256
        return frame

    def read(self) -> np.ndarray:
        return self.read_latest()

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        return self.read_latest()

    def disconnect(self) -> None:
        self._start_s = None
