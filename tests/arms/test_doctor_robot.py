"""`vla doctor --robot`: one verdict a line, and no servo gets torque, a goal or any other word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli.doctor.doctor import Finding
from vla_robot.cli.doctor.robot import _users_of, examine_robot
from vla_robot.cli.main import main as vla
from vla_robot.core.errors import RecipeError

pytest.importorskip("scservo_sdk")
Desk = Callable[..., Path]


@pytest.fixture(autouse=True)
def only_looked_at(bus: Any) -> Iterator[None]:
    yield
    assert bus.goals == [] and 3 not in bus.asked


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_healthy_arm_is_well_in_every_line(desk: Desk) -> None:
    findings = by_name(examine_robot(str(desk())))
    assert [f for f in findings.values() if f.verdict != "ok"] == []
    assert findings["motor elbow_flex"].seen == "32 °C, 12.1 V"
    assert findings["largest step"].seen == "17.2° a joint, lerobot's max_relative_target 17.2°"
    assert findings["calibration"].seen.startswith("0 days old")
    assert "workspace (0.08, -0.25, 0.01) to (0.40, 0.25, 0.40) m, 0.3 m/s" in findings["limits"].seen
    assert "96x72 at" in findings["camera desk"].seen and "ms old" in findings["camera desk"].seen
    assert "ms from ours" in findings["camera clock offset"].seen


def test_what_is_wrong_is_told_with_its_fix(bus: Any, desk: Desk, tmp_path: Path) -> None:
    bus.servos[2].temperature_c = 65
    bus.servos[3].temperature_c = 55
    bus.servos[4].voltage_v = 9.0
    file = tmp_path / "calibration" / "desk.json"
    rows = json.loads(file.read_text())
    rows["shoulder_pan"]["range_min"] += 30
    file.write_text(json.dumps(rows))
    os.utime(file, (1e9, 1e9))
    findings = by_name(examine_robot(str(desk(camera=9))))
    assert findings["motor shoulder_lift"].verdict == "fail"
    assert findings["motor shoulder_lift"].fix == "Let it cool below 60 °C."
    assert (findings["motor elbow_flex"].verdict, findings["motor wrist_flex"].verdict) == ("warn", "warn")
    assert "The others have 12.1 V" in findings["motor wrist_flex"].fix
    assert findings["calibration"].verdict == "warn"
    assert findings["calibration in the motors"].verdict == "fail"
    assert "lerobot-calibrate --robot.type=so101_follower" in findings["calibration in the motors"].fix
    assert "cannot be opened" in findings["camera desk"].seen and findings["camera desk"].verdict == "fail"


def test_a_port_that_is_not_there_and_a_servo_that_is_silent_are_findings(bus: Any, desk: Desk) -> None:
    bus.servos[6].silent = True
    assert "no answer from motor 'gripper' (id 6)" in by_name(examine_robot(str(desk())))["arm"].seen
    bus.unplug()
    assert "there is no port" in by_name(examine_robot(str(desk())))["arm"].seen
    bus.plug()


def test_a_home_outside_of_the_workspace_fails(desk: Desk) -> None:
    findings = by_name(examine_robot(str(desk(top="[limits]\nworkspace_low = [0.08, -0.25, 0.2]"))))
    assert findings["home"].verdict == "fail" and "[robot.home_deg]" in findings["home"].fix


def test_who_else_uses_the_port_is_found(bus: Any, tmp_path: Path) -> None:
    assert _users_of(str(tmp_path / "port")) == []  # this process does not count


def test_the_command_prints_a_table_and_says_what_comes_next(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vla(["doctor", "--robot", str(desk()), "--json", str(tmp_path / "out.json")]) == 0
    assert f"Next: `vla bridge {tmp_path}/desk.toml --dry-run`" in capsys.readouterr().out.replace("\n", " ").replace(
        "  ", " "
    )
    assert any(f["name"] == "port" for f in json.loads((tmp_path / "out.json").read_text())["findings"])


def test_a_simulation_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"lift.toml is a simulation; `vla doctor` without --robot"):
        examine_robot("lift")


def test_a_bridge_that_does_not_run_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert vla(["doctor", "--robot", "tcp://127.0.0.1:9"]) == 1
    assert "did not answer" in " ".join(capsys.readouterr().out.split())
