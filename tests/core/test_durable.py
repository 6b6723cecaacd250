"""What is said to be on the disk survives a power cut at any moment; what the disk refuses is told in words."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import DataError
from vla_robot.core.host import durable
from vla_robot.core.host.durable import append_line, make_folder, rename, sync_tree, write_whole, writing


def test_a_file_is_forced_to_the_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, power_cut: Any
) -> None:
    write_whole(tmp_path / "a.json", b"12345")
    content, renamed, name = power_cut.calls
    assert content.startswith("fsync a.json.") and content.endswith(".tmp (5)")
    assert renamed.startswith("rename a.json.") and renamed.endswith(".tmp a.json")
    assert name == f"fsync {tmp_path.name}/"
    assert power_cut.survivors(tmp_path) == {"a.json": b"12345"}


def test_wherever_the_power_is_cut_the_old_content_or_the_new_one_is_there(
    tmp_path: Path, power_cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a.json", b"old")
    seen: list[bytes] = []

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def before_and_after(*arguments: object) -> None:
            seen.append(power_cut.survivors(tmp_path)["a.json"])
            call(*arguments)
            seen.append(power_cut.survivors(tmp_path)["a.json"])

        return before_and_after

    monkeypatch.setattr(os, "fsync", watched(power_cut.fsync))
    monkeypatch.setattr(os, "replace", watched(power_cut.replace))
    write_whole(tmp_path / "a.json", b"new")
    assert seen == [b"old"] * (len(seen) - 1) + [b"new"]


def test_lines_and_new_folders_survive(tmp_path: Path, power_cut: Any) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    for number in range(3):
        append_line(tmp_path / "a" / "b" / "c" / "lines.jsonl", f'{{"n": {number}}}')
        assert power_cut.survivors(tmp_path)["a/b/c/lines.jsonl"].count(b"\n") == number + 1


def test_a_line_that_was_never_finished_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for torn in (b"", b"tor", b"one\ntwo\n", b"one\ntwo\ntor", b"one\n\0\0\0"):
        path.write_bytes(torn)
        append_line(path, "three")
        assert path.read_bytes() == torn[: torn.rfind(b"\n") + 1] + b"three\n"


def test_files_that_a_library_wrote_survive_the_rename_of_their_folder(tmp_path: Path, power_cut: Any) -> None:
    building = tmp_path / "building"
    (building / "deep").mkdir(parents=True)
    (building / "a.bin").write_bytes(b"a")
    (building / "deep" / "b.bin").write_bytes(b"b")
    sync_tree(building)
    rename(building, tmp_path / "made")
    assert power_cut.survivors(tmp_path) == {"made/a.bin": b"a", "made/deep/b.bin": b"b"}


def test_a_device_or_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"{}\n")
    assert os.read(reader, 100) == b"{}\n"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "a.json")
    write_whole(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "a.json").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_content_and_no_litter(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    write_whole(disk / "a.bin", b"old")
    message = r"a\.bin: No space left on device\. 3 are safe\. Make room"
    with pytest.raises(DataError, match=message), writing(disk / "a.bin", "3 are safe."):
        write_whole(disk / "a.bin", bytes(200_000))
    assert (disk / "a.bin").read_bytes() == b"old"
    assert [path.name for path in disk.iterdir()] == ["a.bin"]


def test_a_full_disk_leaves_the_lines_before(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(64) / "lines.jsonl"
    append_line(path, "one")
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "x" * 200_000)
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room on that disk, then run the same command again."),
        (errno.EDQUOT, "Your quota on that disk is used up: make room, then run the same command again."),
        (errno.EIO, "The disk reports errors: copy what is there to another disk, then run the same command again."),
        (errno.EACCES, "You may not write there: choose another folder."),
        (errno.EXDEV, "Choose another place."),
    ],
)
def test_a_refusal_says_what_why_what_is_safe_and_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(DataError) as caught, writing("out/a.json", lambda: "2 episodes are safe."):
        raise OSError(number, os.strerror(number), "out/a.json.1f2e.tmp")
    assert str(caught.value) == f"cannot write out/a.json: {os.strerror(number)}. 2 episodes are safe. {advice}"


def test_a_file_system_that_cannot_force_a_folder_is_served_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(durable.os, "fsync", fsync)
    write_whole(tmp_path / "a.json", b"1")
    assert (tmp_path / "a.json").read_bytes() == b"1"
