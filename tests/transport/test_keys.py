"""Key files: private, never overwritten, and every mistake explained."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import TransportError
from vla_robot.transport.keys import KEYS_VARIABLE, KeyFolder, KeyList, default_folder, host_of, read_public

KEY, OTHER_KEY = "ab" * 32, "cd" * 32


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.create("desk")
    assert mode(folder.path) == 0o700
    assert mode(folder.path / "desk.key") == 0o600


def test_a_pair_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    made = folder.create("desk")
    assert folder.pair("desk") == folder.pair() == made
    assert read_public(str(folder.public_file("desk"))) == (made.public, "desk")


def test_no_two_keys_are_alike(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    assert len({folder.create(name).secret for name in "abcd"}) == 4


def test_a_secret_key_is_never_printed(tmp_path: Path) -> None:
    pair = KeyFolder(tmp_path).create("desk")
    assert pair.secret not in repr(pair)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    made = folder.create("desk")
    with pytest.raises(TransportError, match="there is a key 'desk' already"):
        folder.create("desk")
    assert folder.pair("desk") == made


@pytest.mark.parametrize("name", ["", "../desk", "a/b", ".hidden", "-x", "a b", "x" * 65, "allowed\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TransportError, match="cannot name a key"):
        KeyFolder(tmp_path).create(name)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_others_can_read_is_refused_with_the_fix(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.create("desk")
    (tmp_path / "desk.key").chmod(0o644)
    with pytest.raises(TransportError, match=r"can be read by others \(mode 0644\).*chmod 600"):
        folder.pair("desk")


def test_without_a_key_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"has no key in .*`vla keys new NAME`"):
        KeyFolder(tmp_path).pair()


def test_of_several_keys_one_must_be_named(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.create("desk")
    folder.create("lab")
    with pytest.raises(TransportError, match="several keys: desk, lab"):
        folder.pair()
    assert folder.pair("lab").name == "lab"


def test_a_misspelt_key_gets_the_nearest(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.create("desk")
    with pytest.raises(TransportError, match="unknown key 'dsek'; did you mean 'desk'"):
        folder.pair("dsek")


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.create("desk")
    (tmp_path / "desk.key").write_text("truncated")
    with pytest.raises(TransportError, match="does not hold a secret key"):
        folder.pair("desk")


def test_what_is_allowed_is_in_the_list_and_what_is_revoked_is_not(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.allow(KEY, "desk")
    folder.allow(OTHER_KEY, "lab")
    assert folder.allowed.names() == {KEY: "desk", OTHER_KEY: "lab"}
    assert folder.allowed.remove("desk") == KEY
    assert folder.allowed.names() == {OTHER_KEY: "lab"}


def test_a_list_sees_what_another_process_changed(tmp_path: Path) -> None:
    open_list = KeyFolder(tmp_path).allowed
    assert open_list.names() == {}
    KeyFolder(tmp_path).allow(KEY, "desk")
    assert open_list.names() == {KEY: "desk"}
    KeyFolder(tmp_path).allowed.remove("desk")
    assert open_list.names() == {}


def test_allowing_twice_changes_nothing(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.allow(KEY, "desk")
    folder.allow(KEY, "desk")
    assert folder.allowed.names() == {KEY: "desk"}


def test_a_name_cannot_silently_get_another_key(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.allow(KEY, "desk")
    with pytest.raises(TransportError, match=r"'desk' is in .* with another key"):
        folder.allow(OTHER_KEY, "desk")
    with pytest.raises(TransportError, match=r"as 'desk'\. Revoke that first"):
        folder.allow(KEY, "lab")


def test_revoking_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.allow(KEY, "desk")
    with pytest.raises(TransportError, match="unknown name 'desc'; did you mean 'desk'"):
        folder.allowed.remove("desc")


@pytest.mark.parametrize(
    "line", ["desk", f"{KEY}", f"{KEY} desk extra", f"{KEY.upper()} desk", f"{KEY[1:]} desk", f"{OTHER_KEY} lab"]
)
def test_a_malformed_list_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"# computers of the lab\n\n{OTHER_KEY} lab\n{line}\n")
    with pytest.raises(TransportError, match="line 4: expected a public key of 64"):
        KeyList(tmp_path / "list").names()


@given(st.binary(max_size=200))
def test_whatever_stands_in_a_list_only_transport_error_comes_of_it(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk_list"
    path.write_bytes(junk)
    with contextlib.suppress(TransportError):
        KeyList(path).names()


def test_two_processes_that_change_a_list_at_once_undo_nothing(tmp_path: Path) -> None:
    """Half of them allow a key, half of them revoke one: `vla keys allow` beside `vla keys revoke`."""
    folder, names = KeyFolder(tmp_path), [f"desk{n}" for n in range(12)]
    keys = {name: f"{n:064x}" for n, name in enumerate([*names, *(f"new-{name}" for name in names)])}
    for name in names:
        folder.allow(keys[name], name)
    together = threading.Barrier(2 * len(names))

    def change(name: str) -> None:
        mine = KeyFolder(tmp_path)
        together.wait()
        if name in names:
            mine.allowed.remove(name)
        else:
            mine.allow(keys[name], name)

    with ThreadPoolExecutor(2 * len(names)) as pool:
        list(pool.map(change, keys))
    assert folder.allowed.keys() == {name: key for name, key in keys.items() if name.startswith("new-")}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "allowed_clients"]


def test_a_list_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = KeyFolder(tmp_path)
    folder.allow(KEY, "desk")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TransportError, match=r"cannot write .*No space left on device"):
            folder.allow(OTHER_KEY, "lab")
    assert folder.allowed.keys() == {"desk": KEY}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "allowed_clients"]


def test_a_key_that_cannot_be_written_does_not_take_its_name(
    tmp_path: Path, file_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    folder = KeyFolder(tmp_path)
    with file_limit(10), pytest.raises(TransportError, match=r"cannot write .*desk\.key: File too large"):
        folder.create("desk")
    assert list(tmp_path.iterdir()) == []
    assert folder.create("desk").name == "desk"


def test_keys_and_lists_survive_a_power_cut(tmp_path: Path, power_cut: Any) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.create("desk")
    folder.allow(KEY, "lab")
    survivors = power_cut.survivors(tmp_path)
    for name in ("desk.key", "desk.pub", "allowed_clients"):
        assert survivors[f"keys/{name}"] == (tmp_path / "keys" / name).read_bytes()


@pytest.mark.parametrize("what", ["list", "folder"])
def test_a_list_that_others_may_write_is_refused_with_the_fix(tmp_path: Path, what: str) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.allow(KEY, "desk")
    watched = folder.allowed
    assert watched.name_of(KEY) == "desk"
    place, before = (folder.path / "allowed_clients", 0o620) if what == "list" else (folder.path, 0o702)
    place.chmod(before)
    with pytest.raises(TransportError, match=r"can be written by others \(mode 0[67][02]2?0?\).*chmod go-w"):
        watched.names()
    assert watched.name_of(KEY) is None
    place.chmod(before & 0o700)
    assert watched.name_of(KEY) == "desk"


def test_a_folder_that_cannot_be_read_allows_no_one_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.allow(KEY, "desk")
    allowed = folder.allowed
    folder.path.rename(tmp_path / "away")
    folder.path.write_text("a file where the folder was")
    assert [allowed.name_of(KEY) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1 and "cannot read" in caplog.text
    folder.path.unlink()
    (tmp_path / "away").rename(folder.path)
    assert allowed.name_of(KEY) == "desk"


def test_one_server_may_be_known_under_two_names(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.create("desk")
    folder.trust("robot.local", KEY)
    folder.trust("192.168.1.20", KEY)
    assert folder.client_security("tcp://robot.local:5570").server_public == KEY
    assert folder.client_security("tcp://192.168.1.20:5570").server_public == KEY
    folder.trusted.remove("robot.local")
    assert folder.trusted.keys() == {"192.168.1.20": KEY}


def test_an_unknown_server_is_not_trusted_and_the_error_says_how_to(desk: KeyFolder) -> None:
    with pytest.raises(
        TransportError, match=r"public key of robot\.local is not known here.*`vla keys trust robot\.local"
    ):
        desk.client_security("tcp://robot.local:5570")


def test_a_trusted_server_is_known_by_its_host_on_any_port(desk: KeyFolder, robot: KeyFolder) -> None:
    assert desk.client_security("tcp://127.0.0.1:1").server_public == robot.pair().public
    assert desk.client_security("tcp://127.0.0.1:2").keys == desk.pair()


def test_a_server_with_a_malformed_list_does_not_start(robot: KeyFolder) -> None:
    (robot.path / "allowed_clients").write_text("everybody\n")
    with pytest.raises(TransportError, match="line 1"):
        robot.server_security()


@pytest.mark.parametrize(
    ("address", "host"), [("tcp://robot.local:5570", "robot.local"), ("tcp://[fe80::1]:1", "fe80::1")]
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_what_is_no_public_key_is_refused(tmp_path: Path) -> None:
    for text in ["desk.pub", KEY[:-1], KEY.upper(), "", str(tmp_path)]:
        with pytest.raises(TransportError, match="neither a public key"):
            read_public(text)


def test_the_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path))
    assert default_folder() == KeyFolder().path == tmp_path
    monkeypatch.delenv(KEYS_VARIABLE)
    assert default_folder() == Path.home() / ".config" / "vla_robot" / "keys"
