"""`vla keys`, as two people use it who connect a desk to a robot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.transport.keys import KEYS_VARIABLE, KeyFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / "keys"))
    return KeyFolder()


def test_a_new_key_is_shown_with_what_to_do_next(folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "desk"]) == 0
    out = capsys.readouterr().out
    keys = folder.pair("desk")
    assert out.startswith(f"{keys.public} desk\n")
    assert f"`vla keys allow {keys.public} --name desk`" in out
    assert keys.secret not in out


def test_show_prints_the_public_line_and_nothing_else(folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    keys = folder.create("desk")
    assert main(["keys", "show"]) == 0
    assert capsys.readouterr().out == f"{keys.public} desk\n"


def test_two_computers_get_to_know_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, desk = KeyFolder(tmp_path / "robot"), KeyFolder(tmp_path / "desk")
    for folder, name in ((robot, "robot"), (desk, "desk")):
        monkeypatch.setenv(KEYS_VARIABLE, str(folder.path))
        assert main(["keys", "new", name]) == 0
    assert main(["keys", "trust", "robot.local", str(robot.public_file("robot"))]) == 0
    monkeypatch.setenv(KEYS_VARIABLE, str(robot.path))
    assert main(["keys", "allow", str(desk.public_file("desk"))]) == 0
    assert robot.server_security().allowed.names() == {desk.pair().public: "desk"}
    assert desk.client_security("tcp://robot.local:5570").server_public == robot.pair().public


def test_what_was_allowed_and_trusted_can_be_taken_back(folder: KeyFolder) -> None:
    public = folder.create("desk").public
    for argv in (["allow", public, "--name", "lab"], ["trust", "robot.local", public]):
        assert main(["keys", *argv]) == 0
    for argv in (["revoke", "lab"], ["distrust", "robot.local"]):
        assert main(["keys", *argv]) == 0
    assert not folder.allowed.names()
    assert not folder.trusted.names()


def test_the_list_tells_all_but_the_secret(
    folder: KeyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = folder.create("desk")
    folder.allow(keys.public, "lab")
    folder.trust("robot.local", keys.public)
    assert main(["keys", "list", "--json", str(tmp_path / "out.json")]) == 0
    out, written = capsys.readouterr().out, (tmp_path / "out.json").read_text()
    assert [line.split()[::2] for line in out.splitlines()[:3]] == [
        ["own", "desk"],
        ["allowed", "lab"],
        ["trusted", "robot.local"],
    ]
    assert json.loads(written)["trusted"] == {"robot.local": keys.public}
    assert keys.secret not in out + written


def test_one_key_is_trusted_for_two_hosts(folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    public = folder.create("desk").public
    for host in ("robot.local", "192.168.1.20"):
        assert main(["keys", "trust", host, public]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert f"trusted  {public} robot.local\n" in out and f"trusted  {public} 192.168.1.20\n" in out


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["allow", "ab" * 32], "give one with --name"),
        (["allow", "desk.pub"], "neither a public key"),
        (["revoke", "lab"], "unknown name 'lab'"),
        (["trust", "no host!", "ab" * 32], "is not a host"),
        (["new", "../desk"], "cannot name a key"),
        (["show"], "has no key"),
    ],
)
def test_a_mistake_is_explained(
    folder: KeyFolder, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *argv]) == EXIT_USER_ERROR
    assert reason in capsys.readouterr().err
