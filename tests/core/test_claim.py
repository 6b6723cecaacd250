"""A folder has one writer; the second one is told who it is, and a dead one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import LOCK, Claim

HOLD = """
import sys
from pathlib import Path
from vla_robot.core.host.claim import Claim
claim = Claim(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
FORK_AND_DIE = """
import os, sys, time
from pathlib import Path
from vla_robot.core.host.claim import Claim
claim = Claim(Path(sys.argv[1]))
ready, told = os.pipe()
worker = os.fork()
if worker == 0:
    os.write(told, b".")
    sys.stdin.read()  # outlives its parent
    os._exit(0)
os.read(ready, 1)
print(worker, flush=True)
os.kill(os.getpid(), 9)
"""


def started(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_second_is_told_which_process_writes(tmp_path: Path) -> None:
    with started(HOLD, tmp_path / "run") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=rf"run is being written by process {holder.pid} \(-c .*\) on "):
            Claim(tmp_path / "run")
        holder.send_signal(signal.SIGKILL)
    with Claim(tmp_path / "run"):  # what a killed process left does not hold anybody up
        pass


def test_two_claims_of_one_process_are_two_as_well(tmp_path: Path) -> None:
    with Claim(tmp_path), pytest.raises(DataError, match=f"is being written by process {os.getpid()} "):
        Claim(tmp_path)


def test_a_worker_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    with started(FORK_AND_DIE, tmp_path) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        assert Path(f"/proc/{worker}").exists()
        with Claim(tmp_path):
            pass


def test_what_is_released_leaves_nothing_but_what_was_written(tmp_path: Path) -> None:
    with Claim(tmp_path / "empty" / "deep", "meta/.lock"):
        pass
    assert not (tmp_path / "empty" / "deep").exists()
    with Claim(tmp_path / "full"):
        (tmp_path / "full" / "a").touch()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]
    (tmp_path / "mine").mkdir()
    with Claim(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir(), "a folder that was there before stays"


def test_a_lock_file_of_somebody_elses_is_not_repeated_in_a_message(tmp_path: Path) -> None:
    with Claim(tmp_path):
        (tmp_path / LOCK).write_text("process 1 (\x1b[2J) on x\nrm -rf /")
        with pytest.raises(DataError, match="is being written by another process"):
            Claim(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*run: .*A file is where a folder is needed"):
        Claim(tmp_path / "run")


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_where_there_are_no_locks_the_file_is_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    with Claim(tmp_path), pytest.raises(DataError, match=f"process {os.getpid()} .* If it has ended, delete .*lock"):
        Claim(tmp_path)
    with Claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("host", "is_taken_over"), [(socket.gethostname(), True), ("another.computer", False)])
def test_where_there_are_no_locks_a_dead_process_is_known_on_its_own_computer_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_taken_over: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    (tmp_path / LOCK).write_text(f"process {dead.pid} (vla finetune) on {host}\n")
    if is_taken_over:
        with Claim(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
    else:
        with pytest.raises(DataError, match=rf"process {dead.pid} \(vla finetune\) on another\.computer"):
            Claim(tmp_path)
