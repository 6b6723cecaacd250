"""Writes that survive a power cut, and errors of the disk.

A file is on the disk when its content was forced there (fsync) and the folder that names it was forced as well:

    write_whole    new content   temporary file -> flush -> fsync -> rename -> fsync of the folder
    append_line    one more line write -> flush -> fsync
    rename         a new name    rename -> fsync of the folder; the content must have been forced before
    make_folder    a new folder  mkdir -> fsync of each parent that got a new name

Every function raises OSError. `writing` turns it into a DataError that says which data is safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vla_robot.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Buffer

TEMPORARY = ".tmp"
"""Suffix of a file that is being written. Only a process that was killed leaves such a file."""

LEFT_BY_THE_KILLED = f"*.{'[0-9a-f]' * 8}{TEMPORARY}"
"""Pattern of the temporary files of `write_whole`."""

FILE_MODE, FOLDER_MODE = 0o666, 0o777
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Some network file systems cannot fsync a folder."""

_ADVICE = {
    errno.ENOSPC: "Make room on that disk",
    errno.EDQUOT: "Your quota on that disk is used up: make room",
    errno.EFBIG: "The limit of a file's size (ulimit -f) is reached: raise it",
    errno.EIO: "The disk reports errors: copy what is there to another disk",
    errno.EROFS: "That disk is read-only: choose another folder",
    errno.EACCES: "You may not write there: choose another folder",
    errno.ENOTDIR: "A file is where a folder is needed: choose another folder",
    errno.EEXIST: "A file is where a folder is needed: choose another folder",
    errno.EISDIR: "A folder is where a file is needed: choose another name",
}
DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of the disk, independent of the data."""


def write_whole(path: Path, content: Buffer, mode: int = FILE_MODE) -> None:
    """Replace a file's content atomically: a reader, or a crash, finds the old content or the new one.

    Its folder is made if it is missing. Several processes may write the same path; the last one counts. A device or a
    pipe, such as /dev/stdout, is written to and never replaced.

    Args:
        path: path of the file.
        content: the whole content.
        mode: permissions, reduced by the process's umask; the file never has others.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as file:
            file.write(content)
        return
    with open_whole(path, mode) as file:
        file.write(content)


@contextlib.contextmanager
def open_whole(path: Path, mode: int = FILE_MODE) -> Generator[IO[bytes]]:
    """Write a file during a `with` block as `write_whole` does; after an error in the block, nothing was written."""
    target = path.resolve()  # the file behind a link is replaced, not the link
    make_folder(target.parent)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            sync_file(file)
        rename(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is made if it is missing, and wait for the disk.

    A last line without its newline is incomplete and is cut off first.
    """
    is_new = not path.exists()
    with path.open("a+b") as file:
        file.truncate(_end_of_lines(file))
        file.write(line.encode() + b"\n")
        sync_file(file)
    if is_new:
        sync_folder(path.parent)


def _end_of_lines(file: IO[bytes]) -> int:
    """Return the offset after the last newline."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) in (b"", b"\n"):
        return end
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing a file that is there, and wait for the disk."""
    os.replace(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def make_folder(path: Path, exist_ok: bool = True, mode: int = FOLDER_MODE) -> None:
    """Make a folder and its parents, and wait for the disk.

    Args:
        path: path of the folder.
        exist_ok: allow an existing folder, which is not changed.
        mode: the folder's permissions, reduced by the process's umask; parents get the usual ones.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=exist_ok)
    for folder in reversed(new):
        sync_folder(folder.parent)


def sync_file(file: IO[bytes]) -> None:
    """Force written data to the disk: Python's buffer first, then the system's."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    try:
        sync_path(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def sync_path(path: Path) -> None:
    """Force a closed file's content to the disk, but not its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Force all files below a folder and their names to the disk."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync_path(Path(folder, name))
        sync_folder(Path(folder))


@contextlib.contextmanager
def writing(what: object, safe: str | Callable[[], str] = "") -> Generator[None]:
    """Convert OSErrors of a block that writes to DataErrors.

    Args:
        what: name of what is written, for the message: a path, or text.
        safe: sentence about the data that is safe on the disk, or a function that returns it.

    Raises:
        DataError: writing failed.
    """
    try:
        yield
    except OSError as error:
        raise refusal(what, error, safe) from error


def refusal(what: object, error: OSError, safe: str | Callable[[], str] = "") -> DataError:
    """Return the error of a failed write: what, why, which data is safe, and advice. Arguments as in `writing`."""
    said = safe if isinstance(safe, str) else safe()
    advice = _ADVICE.get(error.errno or 0, "Choose another place")
    again = ", then run the same command again" if error.errno in DISK_FAILURES else ""
    return DataError(" ".join(filter(None, [f"cannot write {what}: {why(error)}.", said, f"{advice}{again}."])))


def why(error: OSError) -> str:
    """Return the system's message, without the number and the name of a temporary file."""
    return error.strerror or str(error)
