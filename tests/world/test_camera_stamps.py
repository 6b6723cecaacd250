"""Tests of a driver's stamps: which are used, what replaces the others, and what they mean by the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.messages import Image
from vla_robot.world.real.camera_stamps import DriverStamps, fault_of, moment_of

pytest.importorskip("cv2")

RAW = np.zeros((2, 3, 3), np.uint8)
times = st.integers(0, 4 * 10**18)


class Capture:
    """A stand-in for cv2.VideoCapture, with the stamp of the frame that it read last."""

    def __init__(self, told_ms: float, backend: str = "V4L2") -> None:
        self.told_ms, self.backend = told_ms, backend

    def getBackendName(self) -> str:  # noqa: N802
        return self.backend

    def get(self, prop: int) -> float:
        return self.told_ms


class Camera:
    """A stand-in for lerobot's camera, which calls its attribute `_postprocess_image` with each frame."""

    def __init__(self, capture: Capture, process: Callable[[Image], Image] = np.flipud) -> None:
        self.videocapture, self._postprocess_image = capture, process

    def read(self) -> None:
        self._postprocess_image(RAW)


@given(st.lists(st.tuples(st.integers(1, NS_PER_S), times), max_size=30), times)
def test_accepted_stamps_increase_from_the_opening_on_and_are_never_in_the_future(
    told: list[tuple[int, int]], opened_ns: int
) -> None:
    believed, arrived_ns = [opened_ns], opened_ns
    for waited_ns, told_ns in told:
        arrived_ns += waited_ns
        if not fault_of(told_ns, believed[-1], arrived_ns):
            believed.append(told_ns)
            assert told_ns <= arrived_ns
    assert believed == sorted(set(believed))


@given(st.lists(st.tuples(st.integers(1, 10 * NS_PER_S), st.floats(0, 1)), max_size=30), st.integers(1, 10**18))
def test_true_stamps_are_always_accepted_however_late_the_frames_come(
    frames: list[tuple[int, float]], opened_ns: int
) -> None:
    last_ns = opened_ns
    for later_ns, share in frames:
        taken_ns = last_ns + later_ns
        assert fault_of(taken_ns, last_ns, taken_ns + round(share * 3600 * NS_PER_S)) == ""
        last_ns = taken_ns


@pytest.mark.parametrize(
    ("told_s", "fault"),
    [
        (lambda: 0.0, "the driver's stamp is zero"),
        (lambda: time.monotonic() + 10**9, "the driver's stamp lies in the future"),
        (lambda: time.monotonic() - 3600, "the driver's stamp runs back"),
    ],
    ids=["zero", "another clock", "before it was opened"],
)
def test_a_stamp_that_cannot_be_true_is_replaced_by_the_arrival_and_logged_once(
    told_s: Callable[[], float], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    camera = Camera(Capture(told_s() * 1000))
    stamps = DriverStamps(camera, "desk")
    before_ns = time.monotonic_ns()
    camera.read()
    camera.read()
    frame = stamps.newest()
    assert frame is not None
    assert (frame.stamped_by, frame.fault, frame.stamp_ns) == ("arrival", fault, frame.arrived_ns)
    assert before_ns <= frame.stamp_ns <= time.monotonic_ns()
    assert caplog.messages == [f"camera 'desk': {fault}; such frames count from their arrival"]


def test_the_stamp_is_the_drivers_to_the_microsecond_and_the_image_is_lerobots() -> None:
    camera = Camera(Capture(0))
    stamps = DriverStamps(camera, "desk")
    assert stamps.newest() is None
    told_us = time.monotonic_ns() // 1000 + 1
    camera.videocapture.told_ms = 1000 * (told_us // 10**6) + (told_us % 10**6) / 1000  # as cap_v4l.cpp does it
    while time.monotonic_ns() < told_us * 1000:
        pass
    camera.read()
    frame = stamps.newest()
    assert frame is not None
    assert (frame.stamped_by, frame.stamp_ns, frame.fault) == ("driver", told_us * 1000, "")
    assert frame.stamp_ns <= frame.arrived_ns and frame.image.base is RAW


def test_frames_of_a_file_count_from_their_arrival_without_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    camera = Camera(Capture(time.monotonic() * 1000, backend="FFMPEG"))
    stamps = DriverStamps(camera, "desk")
    camera.read()
    frame = stamps.newest()
    assert frame is not None and (frame.stamped_by, frame.fault) == ("arrival", "")
    assert caplog.messages == []


def test_a_frame_that_lerobot_refuses_is_none_here_either() -> None:
    def refuse(image: Image) -> Image:
        raise RuntimeError("frame width=3 or height=2 do not match")

    camera = Camera(Capture(0), refuse)
    stamps = DriverStamps(camera, "desk")
    with pytest.raises(RuntimeError, match="do not match"):
        camera.read()
    assert stamps.newest() is None


def kernel(folder: Path, driver: str, hwtimestamps: str) -> Path:
    """Make the files of /sys that describe one camera and its driver."""
    device = folder / "class" / "video4linux" / "video2" / "device"
    parameters = folder / "module" / driver / "parameters"
    (folder / "drivers" / driver).mkdir(parents=True)
    device.mkdir(parents=True)
    parameters.mkdir(parents=True)
    (device / "driver").symlink_to(folder / "drivers" / driver)
    (parameters / "hwtimestamps").write_text(f"{hwtimestamps}\n")
    return folder


@pytest.mark.parametrize(
    ("driver", "hwtimestamps", "moment"),
    [
        ("uvcvideo", "0", "with the frame's first packet, after its exposure"),
        ("uvcvideo", "1", "at the frame's exposure, by the camera's clock"),
        ("another", "1", ""),
    ],
)
def test_the_meaning_of_a_stamp_is_read_from_the_kernel(
    tmp_path: Path, driver: str, hwtimestamps: str, moment: str
) -> None:
    sysfs = kernel(tmp_path / "sys", driver, hwtimestamps)
    (tmp_path / "video2").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "video2")
    assert moment_of(2, sysfs) == moment_of(tmp_path / "by-id", sysfs) == moment
    assert moment_of(7, sysfs) == ""
