"""A webcam of Linux's, emulated below OpenCV and lerobot, which are the real ones: frames have the kernel's stamps.

Each test runs a program with tests/tools/v4l2_emulator.c before its C library. The emulator writes down which stamp it
gave to which frame, and each frame shows its number.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.doctor.robot import judge_camera
from vla_robot.core.clock import NS_PER_MS
from vla_robot.world.real.camera_stamps import Frame

pytest.importorskip("scservo_sdk")
conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("arms.conftest"))]

EMULATOR = Path(__file__).parents[1] / "tools" / "v4l2_emulator.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
EXPOSURE_MS = 35

emulated = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="the emulated webcam needs Linux and a C compiler"
)

WATCHED = {
    "by index": (42, "true"),
    "by path": ("/dev/video42", "true"),
    "zero": (42, "zero"),
    "wall": (42, "wall"),
    "back": (42, "back"),
}
"""How the camera is opened, and which stamps the emulator gives."""

SHARED = """
import json, os, sys, time
from pathlib import Path
from vla_robot.recipe.robot import RobotCameraRecipe
from vla_robot.world.real.lerobot_camera import LerobotCamera

def number(image):
    # Sixteen stripes, the highest bit on top.
    rows = (image.shape[0] * (2 * k + 1) // 32 for k in range(16))
    return int("".join(str(int(image[row, image.shape[1] // 2].mean() > 128)) for row in rows), 2)

def told(frame):
    return [number(frame.image), frame.stamp_ns, frame.arrived_ns, frame.stamped_by, frame.fault]

def open_camera(device):
    fields = {"index_or_path": device, "width": 640, "height": 480, "fps": 30}
    return LerobotCamera("desk", RobotCameraRecipe("opencv", fields))
"""

WATCH = """
def watch(device, stamps, log):
    os.environ.update(EMULATED_V4L2_STAMPS=stamps, EMULATED_V4L2_LOG=log)
    camera, last = open_camera(device), None
    for _ in range(15):
        while (frame := camera.newest()) is last:
            pass
        yield told(last := frame)
    camera.close()

def last_of_one_that_stops(stops_when, log):
    os.environ.update(EMULATED_V4L2_STAMPS="true", EMULATED_V4L2_LOG=log)
    camera = open_camera(42)
    Path(stops_when).touch()
    last, since = camera.newest(), time.monotonic()
    while time.monotonic() - since < 1:
        if (frame := camera.newest()) is not last:
            last, since = frame, time.monotonic()
    camera.close()
    return told(last)

folder, stops_when, watched = *sys.argv[1:3], json.loads(sys.argv[3])
seen = {name: list(watch(*how, f"{folder}/{name}")) for name, how in watched.items()}
print(json.dumps(seen | {"stopped": [last_of_one_that_stops(stops_when, f"{folder}/stopped")]}))
"""

ARM = """
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.lerobot_arm import LerobotArm
arm = LerobotArm(read(RealArmRecipe, sys.argv[1]))
seen = [arm.hold().observation for _ in range(5)]
print(json.dumps([[number(o.images["front"]), o.stamps_ns["front"], o.stamp_ns] for o in seen]))
arm.close()
"""

RECIPE = """
base = "desk_so101"

[robot]
calibration_dir = "{folder}/calibration"

[robot.fields]
port = "{folder}/port"

[robot.cameras.desk.fields]
index_or_path = 42
"""


@dataclass(frozen=True)
class Webcam:
    """An emulated camera for programs that are started through it.

    Attributes:
        library: what is loaded before the program's C library.
        folder: for what the emulator writes, and for the file that stops it.
    """

    library: Path
    folder: Path

    @property
    def stops_when(self) -> Path:
        return self.folder / "camera_stopped"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A Python program that has this camera as /dev/video42."""
        env = {
            "LD_PRELOAD": str(self.library),
            "EMULATED_V4L2_LOG": str(self.folder / "stamps"),
            "EMULATED_V4L2_EXPOSURE_MS": str(EXPOSURE_MS),
            "EMULATED_V4L2_STOPS_WHEN": str(self.stops_when),
            "EMULATED_SERVOS": "1",
            "PYTHONPATH": str(conftest.PLUGINS),
            "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": "1",
            "COLUMNS": "300",
        }
        return subprocess.run([sys.executable, *command], env=os.environ | env, capture_output=True, text=True)

    def told(self, program: str, *arguments: str) -> Any:
        """What one of the programs above prints."""
        done = self.run("-c", SHARED + program, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stamps_ns(self, log: str = "stamps") -> dict[int, int]:
        """Number of a frame -> the stamp that the emulator gave to it."""
        rows = (line.split() for line in (self.folder / log).read_text().splitlines())
        return {int(number): int(stamp_us) * 1000 for number, stamp_us in rows}


@dataclass(frozen=True)
class Watched:
    """What a camera's owner sees, and what is true.

    Attributes:
        rows: of each frame its number, stamp and arrival [ns], by whom it is stamped, and the fault.
        given_ns: number of a frame -> the driver's stamp.
    """

    rows: list[tuple[int, int, int, str, str]]
    given_ns: dict[int, int]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("webcam") / "camera.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(path), str(EMULATOR)]
    subprocess.run([*command, "-ldl"], check=True)
    return path


@pytest.fixture
def webcam(library: Path, tmp_path: Path) -> Webcam:
    return Webcam(library, tmp_path)


@pytest.fixture(scope="module")
def watched(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    """All of WATCHED, and "stopped": the last frame of a camera that stopped. One process: to start it takes longer."""
    webcam = Webcam(library, tmp_path_factory.mktemp("watched"))
    told = webcam.told(WATCH, str(webcam.folder), str(webcam.stops_when), json.dumps(WATCHED))
    return {name: Watched([tuple(row) for row in rows], webcam.stamps_ns(name)) for name, rows in told.items()}


@emulated
@pytest.mark.parametrize("name", ["by index", "by path"])
def test_each_frame_has_the_stamp_that_the_driver_gave_to_it(watched: dict[str, Watched], name: str) -> None:
    seen = watched[name]
    assert len({number for number, *_ in seen.rows}) == 15
    for number, stamp_ns, arrived_ns, stamped_by, fault in seen.rows:
        assert (stamp_ns, stamped_by, fault) == (seen.given_ns[number], "driver", "")
        assert arrived_ns - stamp_ns >= EXPOSURE_MS * NS_PER_MS


@emulated
@pytest.mark.parametrize(
    ("name", "fault"), [("zero", "the driver's stamp is zero"), ("wall", "the driver's stamp lies in the future")]
)
def test_frames_whose_stamps_are_nonsense_are_stamped_at_arrival_and_say_so(
    watched: dict[str, Watched], name: str, fault: str
) -> None:
    rows = watched[name].rows
    assert {(stamped_by, told) for *_, stamped_by, told in rows} == {("arrival", fault)}
    assert all(stamp_ns == arrived_ns for _, stamp_ns, arrived_ns, *_ in rows)


@emulated
def test_a_stamp_that_jumps_back_costs_its_own_frame_only(watched: dict[str, Watched]) -> None:
    seen = watched["back"]
    assert {stamped_by for *_, stamped_by, _ in seen.rows} == {"arrival", "driver"}
    for number, stamp_ns, arrived_ns, stamped_by, fault in seen.rows:
        if number % 3 == 2:
            assert (stamp_ns, stamped_by, fault) == (arrived_ns, "arrival", "the driver's stamp runs back")
        else:
            assert (stamp_ns, stamped_by, fault) == (seen.given_ns[number], "driver", "")


@emulated
def test_a_camera_that_stopped_keeps_the_stamp_of_its_last_frame(watched: dict[str, Watched]) -> None:
    [(number, stamp_ns, _, stamped_by, _)], given_ns = watched["stopped"].rows, watched["stopped"].given_ns
    assert (number, stamp_ns, stamped_by) == (max(given_ns), given_ns[number], "driver")


@emulated
def test_an_observations_age_counts_from_the_drivers_stamp(bus: Any, webcam: Webcam) -> None:
    rows = webcam.told(ARM, str(recipe(webcam.folder)))
    given_ns = webcam.stamps_ns()
    assert [camera_ns for _, camera_ns, _ in rows] == [given_ns[number] for number, *_ in rows]
    assert all(stamp_ns <= camera_ns for _, camera_ns, stamp_ns in rows)


@emulated
def test_the_doctor_tells_whose_stamps_they_are(bus: Any, webcam: Webcam) -> None:
    findings = webcam.folder / "findings.json"
    robot = str(recipe(webcam.folder))
    done = webcam.run("-m", "vla_robot.cli.main", "doctor", "--robot", robot, "--json", str(findings))
    assert "stamped by the driver" in done.stdout, done.stderr
    [seen] = [f["seen"] for f in json.loads(findings.read_text())["findings"] if f["name"] == "camera desk"]
    assert re.fullmatch(
        r"640x480 at \d+ Hz, stamped by the driver \d+ ms before it came, newest frame \d+ ms old", seen
    )


def recipe(folder: Path) -> Path:
    """The emulated arm with the emulated webcam."""
    path = folder / "desk.toml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def frames(*faults: str, driver: bool = True) -> list[Frame]:
    """Thirty-one frames at 30 Hz, each 20 ms on its way where a driver tells, the first ones with faults."""
    image = np.zeros((480, 640, 3), np.uint8)
    arrivals_ns = [1_000_000_000 + k * 33_333_333 for k in range(31)]
    at_arrival = [Frame(image, at, at, "arrival", fault) for at, fault in zip(arrivals_ns, faults, strict=False)]
    return at_arrival + [
        Frame(image, at - 20_000_000, at, "driver") if driver else Frame(image, at, at, "arrival")
        for at in arrivals_ns[len(faults) :]
    ]


@pytest.mark.parametrize(
    ("seen_frames", "moment", "seen", "fix"),
    [
        (frames(), "", "stamped by the driver 20 ms before it came", ""),
        (
            frames(),
            "with the frame's first packet, after its exposure",
            "stamped by the driver with the frame's first packet, after its exposure, 20 ms before it came",
            "",
        ),
        (
            frames(driver=False),
            "",
            "stamped at arrival, which leaves out exposure and transfer: the driver gives no capture time",
            "",
        ),
        (
            frames("the driver's stamp runs back", "the driver's stamp runs back"),
            "",
            "2 of 31 frames stamped at arrival, which leaves out exposure and transfer: the driver's stamp runs back",
            "clock in /sys/module/uvcvideo/parameters/",
        ),
    ],
    ids=["driver", "uvcvideo", "no driver", "faults"],
)
def test_the_verdict_on_stamps(seen_frames: list[Frame], moment: str, seen: str, fix: str) -> None:
    told, verdict, advice = judge_camera(seen_frames, moment, age_ms=34, needed_hz=30)
    assert told == f"640x480 at 30 Hz, {seen}, newest frame 34 ms old"
    assert verdict == ("warn" if fix else "ok") and fix in advice


def test_a_camera_that_is_slow_or_late_is_told_before_its_stamps() -> None:
    assert judge_camera(frames()[:9], "", age_ms=34, needed_hz=30)[2].startswith("The arm runs at 30 Hz")
    assert judge_camera(frames(), "", age_ms=300, needed_hz=30)[2].startswith("Frames are queued")
