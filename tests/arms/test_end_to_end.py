"""`vla bridge` in a process of its own, lerobot's driver in it, emulated servos below, and a controller here."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.build import build_guard
from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED
from vla_robot.cli.main import main
from vla_robot.core.errors import ContractError, VlaError, WorldError
from vla_robot.core.ports import Policy
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.policy.scripted.waypoints import ReachPolicy
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.reading.load import read
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.testing import FunctionPolicy
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode
from vla_robot.world.sim.sim_embodiment import embodiment_of

pytest.importorskip("scservo_sdk")
conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("arms.conftest"))]

START_TIMEOUT_S = 150
PATIENT = ("--max-age-s", "10", "--hold-after-s", "60", "--stop-after-s", "120")
"""Limits that only a broken program exceeds, however busy the computer is."""

JOINTS_DEG = [
    (0, -30, 20, 90, 0),
    (15, -25, 25, 80, 10),
    (25, -15, 25, 70, 20),
    (25, -5, 5, 80, 0),
    (10, 5, -5, 75, -20),
    (-10, 0, 10, 65, -10),
    (-25, -15, 30, 65, 15),
    (-20, -35, 45, 70, 30),
    (-5, -40, 35, 85, 10),
    (0, -25, 30, 60, 0),
]
"""Ten poses of the tool, named by joints so that an arm of five joints can take each exactly."""


@dataclass
class Stage:
    """A running bridge and what it drives."""

    address: str
    bus: Any
    folder: Path
    output: list[str] = field(default_factory=list[str])


@contextlib.contextmanager
def bridge(folder: Path, recipe: Path, *more: str) -> Iterator[Stage]:
    """The bridge's process, until the block ends; the emulated servos outlive it."""
    own = {"PYTHONPATH": str(conftest.PLUGINS), "PYTHONUNBUFFERED": "1", "EMULATED_SERVOS": "1"}
    command = [sys.executable, "-m", "vla_robot.cli.main", "bridge", str(recipe), "--bind", "tcp://127.0.0.1:0", *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | own
    )
    stage = Stage("", None, folder)
    reader = threading.Thread(target=lambda: stage.output.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        stage.address = wait_for(lambda: listening(stage.output, process))
        yield stage
    finally:
        process.terminate()
        process.wait(timeout=120)


def listening(output: Sequence[str], process: subprocess.Popen[str]) -> str:
    if process.poll() is not None:
        raise AssertionError("".join(output))
    found = re.search(r"listening on (tcp://\S+),", "".join(output))
    return found.group(1) if found else ""


def wait_for[T](look: Callable[[], T], timeout_s: float = START_TIMEOUT_S) -> T:
    end_s = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end_s, "it took too long"
        threading.Event().wait(0.02)
    return found


def write_desk(folder: Path, more: str = "") -> Path:
    recipe = folder / "desk.toml"
    recipe.write_text(conftest.RECIPE.format(top="", robot=more, folder=folder, camera=0))
    return recipe


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("desk")
    conftest.write_calibration(folder / "calibration")
    bus = conftest.ServoProcess(folder / "port")
    with bridge(folder, write_desk(folder), *PATIENT, "--hold-after-s", "2") as stage:
        stage.bus = bus
        yield stage
    assert bus.tell()["torque"] == [1] * 6  # nothing falls when the bridge ends
    bus.close()


def forward(joints_deg: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Position and rotation of the tool, by the published frames alone."""
    import mujoco

    model = mujoco.MjModel.from_xml_path(str(Path(__file__).parents[2] / "envs" / "so101.xml"))
    data = mujoco.MjData(model)
    data.qpos[:5] = np.radians(joints_deg)
    mujoco.mj_forward(model, data)
    return data.site("tool").xpos.copy(), data.site("tool").xmat.reshape(3, 3).copy()


def emulated_tool(bus: Any) -> tuple[np.ndarray, np.ndarray]:
    return forward(list(conftest.angles_deg(bus).values())[:5])


def as_pose(joints_deg: Sequence[float]) -> list[float]:
    """x, y, z, axis times angle, gripper."""
    import mujoco

    position, rotation = forward(joints_deg)
    quat, turn = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, rotation.reshape(9))
    mujoco.mju_quat2Vel(turn, quat, 1.0)
    return [*position, *turn, 1.0]


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def test_ten_poses_are_reached_at_thirty_hertz(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    errors: list[tuple[float, float]] = []
    with RemoteRobot(stage.address) as robot:
        policy = ReachPolicy(robot.embodiment, [as_pose(joints) for joints in JOINTS_DEG])
        before = stage.bus.positions()

        def look(event: Event) -> None:
            if isinstance(event, StepDone) and policy.reached > len(errors):
                position, rotation = emulated_tool(stage.bus)
                wanted, turned = forward(JOINTS_DEG[len(errors)])
                errors.append((1000 * float(np.linalg.norm(position - wanted)), angle_deg(rotation, turned)))

        start_s = time.monotonic()
        result = run_live_episode(
            robot,
            policy,
            0,
            guard=build_guard(robot.embodiment.action),
            subscribers=[look],
            should_stop=lambda: len(errors) == len(JOINTS_DEG),
        )
        duration_s = time.monotonic() - start_s
        status = robot.status()
    rate_hz = status["step"] / result.duration_s
    with capsys.disabled():
        worst = np.max(errors, axis=0)
        print(
            f"\nten poses: worst {worst[0]:.1f} mm, {worst[1]:.2f} degrees; {rate_hz:.1f} Hz for {duration_s:.0f} s, "
            f"{status['counts']}"
        )
    assert result.error is None
    assert len(errors) == 10
    bounds_ms = status["arm_stages_ms"]["bounds"]
    assert 0 < bounds_ms["p50"] <= bounds_ms["p99"]
    assert all(mm <= 5 and degrees <= 3 for mm, degrees in errors)
    assert before != stage.bus.positions()


def test_the_watchdog_holds_an_arm_that_nobody_drives(stage: Stage) -> None:
    with RemoteRobot(stage.address) as robot:
        robot.begin(0)
        reason = wait_for(lambda: s["reason"] if "ago" in (s := robot.status())["reason"] else "")
        assert "the last action came" in reason
        robot.end()


BREAK: dict[str, dict[str, Any]] = {
    "unplugged": {"do": "unplug"},
    "silent": {"servo": 3, "set": {"silent": True}},
    "hot": {"servo": 2, "set": {"temperature_c": 65}},
    "damaged": {"bus": {"damaged_answers": -1}},
}
MEND: dict[str, dict[str, Any]] = {
    "unplugged": {"do": "plug"},
    "silent": {"servo": 3, "set": {"silent": False}},
    "hot": {"servo": 2, "set": {"temperature_c": 35}},
    "damaged": {"bus": {"damaged_answers": 0}},
}


def require_driven_again(robot: RemoteRobot, policy: Policy) -> None:
    """Arm a robot that was stopped, and drive it for ten steps."""
    robot.arm()
    steps: list[int] = []
    again = run_live_episode(
        robot,
        policy,
        1,
        guard=build_guard(robot.embodiment.action),
        subscribers=[lambda e: steps.append(1) if isinstance(e, StepDone) else None],
        should_stop=lambda: len(steps) >= 10,
    )
    assert (again.outcome, again.error) == ("stopped", None)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unplugged", "the arm 'desk' at .* does not"),
        ("silent", "There is no status packet"),
        ("hot", "motor 'shoulder_lift' has 65 °C, allowed are 60 °C"),
        ("damaged", "Incorrect status packet"),
    ],
)
def test_a_fault_stops_the_arm_supported_and_says_so_until_it_is_mended(stage: Stage, fault: str, words: str) -> None:
    still = FunctionPolicy(lambda seen: [0.0] * 6 + [1.0])
    with RemoteRobot(stage.address) as robot:

        def trip(event: Event) -> None:
            if isinstance(event, StepDone) and event.result.observation.step == 10:
                stage.bus.tell(BREAK[fault])

        guard = build_guard(robot.embodiment.action)
        result = run_live_episode(robot, still, 0, guard=guard, subscribers=[trip])
        assert result.outcome == "error"
        told = result.error or ""
        assert re.search(f"the bridge stopped the arm: emergency stop by a failure of the arm: .*{words}", told)
        status = robot.status()
        assert status["mode"] == "stopped" and re.search(words, status["reason"])
        assert stage.bus.tell()["torque"] == [1] * 6
        robot.arm()
        with pytest.raises(WorldError, match=r"there is no port|no answer from motor|motor 'shoulder_lift' has 65 °C"):
            robot.begin(0)  # nothing is mended yet
        with pytest.raises(ContractError, match="`arm` it first"):
            robot.begin(0)
        stage.bus.tell(MEND[fault])
        require_driven_again(robot, still)


def test_a_policy_that_was_made_for_another_arm_is_refused(stage: Stage) -> None:
    goals = stage.bus.tell()["goals"]
    wanted = embodiment_of(read(EnvRecipe, "lift"), "panda")
    with pytest.raises(ContractError, match="trained at 10 Hz, the world runs at 30 Hz; unknown camera 'wrist'"):
        RemoteRobot(stage.address, wanted=wanted)
    assert stage.bus.tell()["goals"] == goals


def test_a_dry_run_shows_what_would_be_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conftest.write_calibration(tmp_path / "calibration")
    bus = conftest.ServoProcess(tmp_path / "port")
    recipe = write_desk(tmp_path)
    recipe.write_text("horizon = 20\n" + recipe.read_text())
    with bridge(tmp_path, recipe, "--dry-run", "--speed", "0.5", *PATIENT) as stage:
        options = ["--policy", "first_motion", "--episodes", "1", "--dry-run", "--out", str(tmp_path / "run")]
        assert main(["run", "--robot", stage.address, *options]) == 0
    servos = bus.tell()
    assert (servos["goals"], servos["writes"], servos["torque"]) == (0, 0, [0] * 6)
    assert "would send  shoulder_pan" in "".join(stage.output)
    assert "dz" in capsys.readouterr().out
    bus.close()


@pytest.mark.slow
def test_a_first_motion_at_a_quarter_of_the_speed(tmp_path: Path) -> None:
    conftest.write_calibration(tmp_path / "calibration")
    bus = conftest.ServoProcess(tmp_path / "port")
    recipe = write_desk(tmp_path)
    recipe.write_text("horizon = 9000\n" + recipe.read_text())
    away_m: list[float] = []
    over = threading.Event()

    def watch(address: str) -> None:
        """Ctrl-C once it has moved from home: the test takes as long as the arm does."""
        try:
            wait_for(lambda: over.is_set() or status_by_another(address)["step"] > 0)
            home, _ = emulated_tool(bus)

            def moved() -> bool:
                away_m.append(float(np.linalg.norm(emulated_tool(bus)[0] - home)))
                return away_m[-1] > 0.015

            wait_for(lambda: over.is_set() or moved())
        finally:
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    with bridge(tmp_path, recipe, "--speed", "0.25", *PATIENT) as stage:
        options = ["--policy", "first_motion", "--episodes", "1", "--out", str(tmp_path / "run")]
        watcher = threading.Thread(target=watch, args=(stage.address,))
        watcher.start()
        try:
            assert main(["run", "--robot", stage.address, *options]) == EXIT_INTERRUPTED
        finally:
            over.set()
            watcher.join()
    assert 0.015 < max(away_m) < 0.06
    assert "at 25% of the recipe's speeds" in "".join(stage.output)
    bus.close()


def test_a_stop_from_the_network_reaches_an_arm_on_its_way_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conftest.write_calibration(tmp_path / "calibration")
    bus = conftest.ServoProcess(tmp_path / "port")
    far = (
        sum(conftest.USUAL_RANGE) / 2 + 60 * conftest.TICKS_PER_DEG
    )  # twenty seconds from home at a tenth of the speed
    bus.tell({"servo": 1, "set": {"position": far}})
    with bridge(tmp_path, write_desk(tmp_path), "--speed", "0.1") as stage, RemoteRobot(stage.address) as robot:
        failures: list[VlaError] = []
        home = threading.Thread(target=lambda: failures.append(failure_of(lambda: robot.begin(0))))
        home.start()
        wait_for(lambda: bus.positions()[1] < far - 2 * conftest.TICKS_PER_DEG)
        took_s = stop_by_another(stage.address, "a person stood up")
        home.join(timeout=60)
        assert "was interrupted" in str(failures[0])
        status = robot.status()
        assert status["mode"] == "stopped" and "a person stood up" in status["reason"]
        stood = bus.positions()[1]
        threading.Event().wait(1.0)
        assert abs(bus.positions()[1] - stood) < conftest.TICKS_PER_DEG, "the arm went on"
        assert stood > far - 30 * conftest.TICKS_PER_DEG and bus.tell()["torque"] == [1] * 6
    with capsys.disabled():
        print(f"\nstop on the way home: answered after {1000 * took_s:.0f} ms")
    bus.close()


def failure_of(call: Callable[[], object]) -> VlaError:
    try:
        call()
    except VlaError as error:
        return error
    raise AssertionError("it did not fail")


def status_by_another(address: str) -> dict[str, Any]:
    with ClientSocket(address) as socket:
        socket.send(encode(Message("status", 1, {})))
        return dict(decode(wait_for(lambda: socket.receive(0.1) or [])).body)


def stop_by_another(address: str, reason: str) -> float:
    """A client that never said hello stops the arm; how long it waited for the answer [s]."""
    with ClientSocket(address) as socket:
        begun_s = time.monotonic()
        socket.send(encode(Message("stop", 1, {"reason": reason})))
        wait_for(lambda: socket.receive(0.1))
        return time.monotonic() - begun_s


def test_a_dry_run_is_refused_where_the_arm_would_move(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    goals = stage.bus.tell()["goals"]
    options = ["--policy", "first_motion", "--episodes", "1", "--dry-run"]
    assert main(["run", "--robot", stage.address, *options]) == 2
    assert "does not run dry: start it with `vla bridge ENV --dry-run`" in " ".join(capsys.readouterr().err.split())
    assert stage.bus.tell()["goals"] == goals


def test_the_recipe_of_the_docs_is_the_one_that_is_tested(stage: Stage) -> None:
    recipe = read(EnvRecipe, stage.folder / "desk.toml")
    shipped = read(EnvRecipe, "desk_so101")
    assert (recipe.limits, recipe.rate_hz, recipe.max_step_m) == (shipped.limits, shipped.rate_hz, shipped.max_step_m)
