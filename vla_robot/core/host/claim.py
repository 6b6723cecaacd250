"""Claim on a folder, which one process at a time may write. The system releases it when the process ends.

FOLDER/.lock    locked (flock) while the claim is held; names its holder; deleted when it is released

On a file system without locks, such as some mounts of Lustre, the file itself is the claim. The file of a dead process
is taken over on that process's computer only, since another computer cannot tell whether it runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, writing

LOCK = ".lock"

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_HOLDER = re.compile(r"process (\d{1,10}) \([\w. /-]{1,80}\) on ([\w.-]{1,80})")
"""Content of a lock file. Any user may have written it, so error messages show only text of this form."""

_held: weakref.WeakSet[Claim] = weakref.WeakSet()


class Claim:
    """Claim on a folder. Use it in a `with` block, or call `release`."""

    def __init__(self, folder: Path, lock: str = LOCK, made: Sequence[Path] = ()) -> None:
        """
        Args:
            folder: folder to claim, made if it is missing.
            lock: path of the lock file in it.
            made: folders that the caller has just made, innermost first; `release` removes those that are empty.

        Raises:
            DataError: another process holds it, which the message names; or writing failed.
        """
        self._path = folder / lock
        self._made = [p for p in (self._path.parent, *self._path.parent.parents) if not p.exists()]
        self._made = [*(p for p in self._made if p.is_relative_to(folder)), *made]
        with writing(folder):
            make_folder(self._path.parent)
            self._descriptor: int | None = _locked(self._path, folder)
            try:
                os.truncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"{_myself()}\n".encode(), 0)
            except OSError:
                self.release()
                raise
        _held.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the claim and remove the folders that it made if they are empty. May be called twice."""
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)  # while it is locked: a process that waits for it sees that it is gone
        self.forget()
        with contextlib.suppress(OSError):  # the folder is not empty
            for folder in self._made:
                folder.rmdir()

    def forget(self) -> None:
        """Release the lock and leave its file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path, folder: Path) -> int:
    """Return a locked descriptor of the lock file. Raises DataError if another process holds it."""
    while True:
        descriptor, is_new = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except OSError as error:
            if is_new and error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            if error.errno in _BUSY:
                raise DataError(f"{_written_by(path, folder)} Wait until it ends, or choose another folder.") from error
            if error.errno not in _NO_LOCKS:
                raise
            _remove_of_the_dead(path, folder)
            continue
        os.close(descriptor)  # the locked file was replaced: its holder released it


def _opened(path: Path) -> tuple[int, bool]:
    """Return a descriptor of the lock file, and whether it was made here."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), False


def _remove_of_the_dead(path: Path, folder: Path) -> None:
    """Delete the claim of a dead process of this computer; raise DataError for any other claim."""
    holder = _HOLDER.fullmatch(_holder(path))
    if holder is None or holder.group(2) != _host() or _lives(int(holder.group(1))):
        raise DataError(
            f"{_written_by(path, folder)} Wait until it ends, or choose another folder. If it has ended, delete {path}."
        )
    path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _host() -> str:
    return (re.sub(r"[^\w.-]", "_", socket.gethostname()) or "localhost")[:80]


def _written_by(path: Path, folder: Path) -> str:
    return f"{folder} is being written by {_holder(path)}."


def _myself() -> str:
    verb = [word for word in sys.argv[1:2] if not word.startswith("-")]
    command = " ".join([Path(sys.argv[0]).name, *verb])[:80]
    return f"process {os.getpid()} ({re.sub(r'[^\w. /-]', '_', command) or 'python'}) on {_host()}"


def _holder(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            said = file.read(300).strip()
    except OSError:
        said = ""
    return said if _HOLDER.fullmatch(said) else "another process"


def _forget_all() -> None:
    """Forget the parent's claims in a forked child: they end with the parent, not with a worker that outlives it."""
    for claim in list(_held):
        claim.forget()


os.register_at_fork(after_in_child=_forget_all)
