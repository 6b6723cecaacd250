"""Stamps camera frames with the time of the kernel's driver, where it gives one, else with the time of arrival.

    exposure starts   first packet   last packet   lerobot's thread has it
    -------|---------------|--------------|------------------|-------------> monotonic clock
           '------ one of these is the driver's stamp        '- arrival

Linux' camera drivers stamp each buffer with CLOCK_MONOTONIC, which is the clock of every other stamp here. OpenCV's
V4L2 backend gives that stamp, to the microsecond, of the frame that it read last. Which of the three moments the stamp
stands for depends on the driver. Each lies before the arrival, so that the frame's age is estimated better.

Source: OpenCV 4.13, modules/videoio/src/cap_v4l.cpp, read_frame_v4l2 and CAP_PROP_POS_MSEC in getProperty; Linux,
drivers/media/usb/uvc/uvc_video.c, uvc_video_decode_start (first packet) and uvc_video_clock_update (hwtimestamps).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_robot.core.messages import Image

NS_PER_US = 1000
US_PER_MS = 1000

UVC_MOMENTS = {
    False: "with the frame's first packet, after its exposure",
    True: "at the frame's exposure, by the camera's clock",
}
"""uvcvideo's parameter hwtimestamps -> meaning of its stamp; the buffers' flag says "start of exposure" for both."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """A camera's frame and its stamps.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        stamp_ns: capture time, the earliest that is known [ns, monotonic].
        arrived_ns: time of arrival in this process [ns, monotonic].
        stamped_by: source of `stamp_ns`: the camera's driver in the kernel, or the arrival, which is later than the
            capture by exposure and transfer.
        fault: why the driver's stamp was not used although there is one; else "".
    """

    image: Image
    stamp_ns: int
    arrived_ns: int
    stamped_by: Literal["driver", "arrival"]
    fault: str = ""


class DriverStamps:
    """The driver's stamps for the frames of a lerobot OpenCV camera, which itself gives only times of arrival.

    OpenCV keeps a stamp until the next frame is read. It is therefore fetched in lerobot's reading thread, in the
    camera's method `_postprocess_image`, which is wrapped on this instance.
    """

    def __init__(self, camera: Any, name: str) -> None:
        """
        Args:
            camera: lerobot's OpenCVCamera, not connected yet.
            name: the camera's name in log messages.
        """
        self._camera, self._name = camera, name
        self._process = camera._postprocess_image
        self._newest: Frame | None = None
        self._last_ns = time.monotonic_ns()
        self._warned = False
        camera._postprocess_image = self._stamped

    def newest(self) -> Frame | None:
        """Return the frame that was read last, None before the first; its image is lerobot's."""
        return self._newest

    def _stamped(self, raw: Image) -> Image:
        """Process a frame in place of `_postprocess_image`; lerobot's reading thread calls this after each read."""
        arrived_ns = time.monotonic_ns()
        told_ns = self._told_ns()
        image = self._process(raw)
        # One assignment, so that another thread never reads a frame with another frame's stamp.
        self._newest = self._judged(image, told_ns, arrived_ns)
        return image

    def _told_ns(self) -> int | None:
        """Return the driver's stamp of the frame that was read last [ns]; None where no V4L2 driver is used."""
        from cv2 import CAP_PROP_POS_MSEC

        capture = self._camera.videocapture
        if capture.getBackendName() != "V4L2":
            return None
        return round(capture.get(CAP_PROP_POS_MSEC) * US_PER_MS) * NS_PER_US

    def _judged(self, image: Image, told_ns: int | None, arrived_ns: int) -> Frame:
        if told_ns is None:
            return Frame(image, arrived_ns, arrived_ns, "arrival")
        if fault := fault_of(told_ns, self._last_ns, arrived_ns):
            self._warn(fault)
            return Frame(image, arrived_ns, arrived_ns, "arrival", fault)
        self._last_ns = told_ns
        return Frame(image, told_ns, arrived_ns, "driver")

    def _warn(self, fault: str) -> None:
        if not self._warned:
            _LOG.warning("camera '%s': %s; such frames count from their arrival", self._name, fault)
            self._warned = True


def fault_of(told_ns: int, last_ns: int, arrived_ns: int) -> str:
    """Return why a driver's stamp cannot be true; "" where it can.

    A true stamp is later than that of the frame before and not later than the arrival. There is no limit on the age:
    frames may have waited in the driver's queue because this process was busy.

    Args:
        told_ns: the stamp [ns].
        last_ns: the last stamp that could be true, or the time when the camera was opened [ns, monotonic].
        arrived_ns: the frame's time of arrival [ns, monotonic].
    """
    if told_ns == 0:
        return "the driver's stamp is zero"
    if told_ns > arrived_ns:
        return "the driver's stamp lies in the future"
    if told_ns <= last_ns:
        return "the driver's stamp runs back"
    return ""


def moment_of(index_or_path: int | Path, sysfs: Path = Path("/sys")) -> str:
    """Return the meaning of a driver's stamp in words; "" where it is not known.

    Args:
        index_or_path: index or path of the camera, as in lerobot's field of that name.
        sysfs: folder in which the kernel describes its drivers.
    """
    device = f"video{index_or_path}" if isinstance(index_or_path, int) else index_or_path.resolve().name
    driver = (sysfs / "class" / "video4linux" / device / "device" / "driver").resolve().name
    by_camera = sysfs / "module" / driver / "parameters" / "hwtimestamps"
    if driver != "uvcvideo" or not by_camera.is_file():
        return ""
    return UVC_MOMENTS[by_camera.read_text().strip() != "0"]
