"""The doctor names what is off and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_robot.cli.doctor import doctor
from vla_robot.cli.doctor.doctor import CHECKS, Finding, check_clashes, check_extras, examine


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A healthy set of installed packages that a test may change."""
    versions = {
        "numpy": "2.2.6",
        "mujoco": "3.3.7",
        "robosuite": "1.5.1",
        "mink": "0.0.13",
        "transformers": "5.23.0",
        "opencv-python-headless": "4.13.0.92",
    }
    monkeypatch.setattr(doctor, "installed", versions.get)
    return versions


def test_healthy_versions_do_not_clash(packages: dict[str, str]) -> None:
    assert [f.verdict for f in check_clashes()] == ["ok"]


@pytest.mark.parametrize(
    ("package", "version", "fix"),
    [
        ("numpy", "1.26.4", "numpy>=2"),
        ("mujoco", "3.17.0", "mujoco==3.3.*"),
        ("mujoco", "4.0.1", "mujoco==3.3.*"),
        ("robosuite", "1.5.2", "robosuite==1.5.1"),
        ("mink", "1.3.0", "mink<1"),
        ("transformers", "5.3.1", "transformers>=5.4"),
        ("opencv-python", "5.0.0.93", "uninstall opencv-python"),
    ],
)
def test_a_known_clash_names_its_fix(packages: dict[str, str], package: str, version: str, fix: str) -> None:
    packages[package] = version
    (finding,) = check_clashes()
    assert finding.verdict != "ok"
    assert version in finding.seen
    assert fix in finding.fix


def test_a_missing_package_names_the_extra_that_brings_it(packages: dict[str, str]) -> None:
    sim = next(f for f in check_extras() if f.name == "[sim]")
    assert sim.seen == "missing: gymnasium"
    assert "vla_robot[sim]" in sim.fix


def test_newer_mujoco_without_robosuite_is_fine(packages: dict[str, str]) -> None:
    packages["mujoco"] = "4.0.1"
    del packages["robosuite"]
    assert [f.verdict for f in check_clashes()] == ["ok"]


def test_whatever_is_not_ok_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", tuple(c for c in CHECKS if c is not doctor.check_rendering))
    assert all(f.fix for f in examine() if f.verdict != "ok")


def test_a_failing_line_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("[sim]", "no frame", "fail", "install it")],))
    assert doctor.main(doctor.DoctorArgs()) == 1
    out = capsys.readouterr().out
    assert "install it" in out and out.splitlines()[1].split()[:2] == ["fail", "[sim]"]


def test_the_findings_go_to_a_file_for_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("GL", "egl")],))
    doctor.main(doctor.DoctorArgs(json=tmp_path / "out.json"))
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["findings"] == [{"name": "GL", "seen": "egl", "verdict": "ok", "fix": ""}]


@pytest.mark.sim
def test_this_computer_renders() -> None:
    (finding,) = doctor.check_rendering()
    assert finding.verdict == "ok", finding
