"""An SO-101 whose servos are emulated on a pseudo-terminal; lerobot, its drivers and pyserial are the real ones."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PLUGINS = HERE / "plugins"
MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
RANGES = {"wrist_roll": (0, 4095)}
USUAL_RANGE = (850, 3245)
"""Ticks, as a calibration finds them: 105 degrees to each side of the middle."""

REST_DEG = {"shoulder_pan": 2, "shoulder_lift": -33, "elbow_flex": 24, "wrist_flex": 86, "wrist_roll": 0}
"""Near the home of the recipe, so that tests do not wait for the way."""
TICKS_PER_DEG = 4095 / 360


def load_emulator() -> ModuleType:
    """tests/tools/feetech_emulator.py, which is a program too."""
    name = "feetech_emulator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE.parent / "tools" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def quick_threads() -> Iterator[None]:
    """The servo library polls in a loop of pure Python, which would keep the emulator's thread waiting."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session", autouse=True)
def plugins() -> Iterator[None]:
    """lerobot finds the emulated camera as an installed package."""
    sys.path.insert(0, str(PLUGINS))
    yield
    sys.path.remove(str(PLUGINS))


def write_calibration(folder: Path, name: str = "desk") -> None:
    """A calibration file as `lerobot-calibrate` leaves it."""
    ranges = {motor: RANGES.get(motor, USUAL_RANGE) for motor in MOTORS}
    rows = {
        motor: {
            "id": i,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": ranges[motor][0],
            "range_max": ranges[motor][1],
        }
        for i, motor in enumerate(MOTORS, start=1)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows))


def calibration_orders() -> Iterator[dict[str, Any]]:
    """What makes fresh servos hold that calibration, near the home pose, supported, and without torque."""
    emulator = load_emulator()
    for number, motor in enumerate(MOTORS, start=1):
        low, high = RANGES.get(motor, USUAL_RANGE)
        position = (low + high) / 2 + REST_DEG.get(motor, -50) * TICKS_PER_DEG
        # The goal register still holds an old goal: an arm that is enabled without care leaps to it.
        memory = {emulator.LOW_LIMIT: low, emulator.HIGH_LIMIT: high, emulator.GOAL: 2048}
        yield {"servo": number, "set": {"position": position, "fall": 0.0}, "put": memory}


def calibrated_bus(port: Path) -> Any:
    emulator = load_emulator()
    bus = emulator.FeetechBus(port)
    for order in calibration_orders():
        emulator.obey(bus, order)
    return bus


class ServoProcess:
    """The emulated bus in a process of its own, for tests whose process has more to do."""

    def __init__(self, port: Path) -> None:
        command = [sys.executable, str(HERE.parent / "tools" / "feetech_emulator.py"), str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for order in calibration_orders():
            self.tell(order)

    def tell(self, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Give an order, and learn how the servos stand: positions, torque, goals, writes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(order or {}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def positions(self) -> dict[int, float]:
        return {int(number): ticks for number, ticks in self.tell()["positions"].items()}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """See tests/arms/plugins/lerobot_camera_emulated.py, which does it for a bridge in a process of its own."""
    from lerobot.motors.feetech import feetech
    from lerobot_camera_emulated import wait_long  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", wait_long)


@pytest.fixture
def bus(tmp_path: Path, patience: None) -> Iterator[Any]:
    """The emulated bus at tmp_path/port, calibrated."""
    write_calibration(tmp_path / "calibration")
    bus = calibrated_bus(tmp_path / "port")
    yield bus
    bus.close()


RECIPE = """
base = "desk_so101"
{top}

[robot]
calibration_dir = "{folder}/calibration"
{robot}

[robot.fields]
port = "{folder}/port"

[robot.cameras.desk]
type = "emulated"
fields = {{ index_or_path = {camera}, width = 96, height = 72, fps = 30, stops_when = "{folder}/camera_stopped" }}
"""


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Path]:
    """Writes the recipe of the emulated arm; options go into it."""

    def write(top: str = "", robot: str = "", camera: int = 0) -> Path:
        path = tmp_path / "desk.toml"
        path.write_text(RECIPE.format(top=top, robot=robot, folder=tmp_path, camera=camera))
        return path

    return write


def angles_deg(bus: Any) -> dict[str, float]:
    """Joint -> where the emulated servos really are [degrees]."""
    middle = {m: sum(RANGES.get(m, USUAL_RANGE)) / 2 for m in MOTORS}
    return {m: (bus.positions()[i] - middle[m]) / TICKS_PER_DEG for i, m in enumerate(MOTORS, start=1)}
