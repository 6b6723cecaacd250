"""Two computers that know each other: a robot that serves, and a desk whose key the robot allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_robot.transport.keys import KeyFolder


@pytest.fixture
def robot(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "robot")
    folder.create("robot")
    return folder


@pytest.fixture
def desk(tmp_path: Path, robot: KeyFolder) -> KeyFolder:
    folder = KeyFolder(tmp_path / "desk")
    robot.allow(folder.create("desk").public, "desk")
    folder.trust("127.0.0.1", robot.pair().public)
    return folder
