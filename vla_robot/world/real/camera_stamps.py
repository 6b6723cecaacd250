"""When a camera's frame was taken: what the kernel says, where it says so, else when the frame came.

    exposure starts   first packet   last packet   lerobot's thread has it
    -------|---------------|--------------|------------------|-------------> monotonic clock
           '------ one of these is the driver's stamp        '- arrival

Linux' camera drivers stamp each buffer with CLOCK_MONOTONIC, which is the clock of every other stamp here, and OpenCV's
V4L2 backend tells that stamp, to the microsecond, of the frame that it read last; which of the moments it is, only the
driver knows. Each lies before the arrival: an age that counts from it is never smaller, and leaves out less.

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
"""What uvcvideo's stamp is, by its parameter hwtimestamps; it flags its buffers "start of exposure" in both cases."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """A picture and its time.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        stamp_ns: when it was taken, by the earliest stamp that is known [ns, monotonic].
        arrived_ns: when it was there in this process [ns, monotonic].
        stamped_by: whose time `stamp_ns` is: the camera's driver's in the kernel, or that of the arrival, which leaves
            out exposure and transfer.
        fault: why the driver's stamp was not taken although there is one; else "".
    """

    image: Image
    stamp_ns: int
    arrived_ns: int
    stamped_by: Literal["driver", "arrival"]
    fault: str = ""


class DriverStamps:
    """Joins the driver's stamps to the frames of one of lerobot's OpenCV cameras, which itself tells arrivals only.

    A stamp can be had until the next frame is read, so it is fetched where lerobot's reading thread passes between two
    reads: on the way through the camera's `_postprocess_image`, which is wrapped on this one instance.
    """

    def __init__(self, camera: Any, name: str) -> None:
        """
        Args:
            camera: lerobot's OpenCVCamera, not connected yet.
            name: for the log.
        """
        self._camera, self._name = camera, name
        self._process = camera._postprocess_image
        self._newest: Frame | None = None
        self._last_ns = time.monotonic_ns()
        self._warned = False
        camera._postprocess_image = self._stamped

    def newest(self) -> Frame | None:
        """The frame that was read last, None before the first; its image is the one that lerobot gives."""
        return self._newest

    def _stamped(self, raw: Image) -> Image:
        """What lerobot calls, in its reading thread, with each frame before it reads the next."""
        arrived_ns = time.monotonic_ns()
        told_ns = self._told_ns()
        image = self._process(raw)
        # In one assignment: a reader meanwhile has a frame with its own stamp.
        self._newest = self._judged(image, told_ns, arrived_ns)
        return image

    def _told_ns(self) -> int | None:
        """The driver's stamp of the frame that was read last; None where frames come from no V4L2 driver."""
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
    """Why a driver's stamp cannot be true; "" where it can.

    A frame was taken after the one before it and before it came. There is no limit of age besides: frames that waited
    in the driver's queue because this process was busy are as old as their stamps say.

    Args:
        told_ns: the stamp [ns].
        last_ns: the last one that could be true, or when the camera was opened [ns, monotonic].
        arrived_ns: when the frame came [ns, monotonic].
    """
    if told_ns == 0:
        return "the driver's stamp is zero"
    if told_ns > arrived_ns:
        return "the driver's stamp lies in the future"
    if told_ns <= last_ns:
        return "the driver's stamp runs back"
    return ""


def moment_of(index_or_path: int | Path, sysfs: Path = Path("/sys")) -> str:
    """What a driver's stamp stands for, in words; "" where it is not known.

    Args:
        index_or_path: the camera, as lerobot's field of that name.
        sysfs: where the kernel tells of its drivers.
    """
    device = f"video{index_or_path}" if isinstance(index_or_path, int) else index_or_path.resolve().name
    driver = (sysfs / "class" / "video4linux" / device / "device" / "driver").resolve().name
    by_camera = sysfs / "module" / driver / "parameters" / "hwtimestamps"
    if driver != "uvcvideo" or not by_camera.is_file():
        return ""
    return UVC_MOMENTS[by_camera.read_text().strip() != "0"]
