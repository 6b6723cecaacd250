"""Reads files of a dataset on disk, or behind a URL that fsspec knows (gs://, s3://, hf://, http://, memory://).

A file is opened for each read: a mixture has thousands of shards, more than a process may hold open, and an open file
cannot be used after a fork. Opening takes some microseconds; decoding a frame takes hundreds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.core.host.durable import open_whole, writing
from vla_robot.core.host.optional import require
from vla_robot.core.untrusted import require_inside, require_name

PLAIN_READ_BYTES = 2**20
"""Largest read whose size is not first compared with the file's, since it allocates little memory."""


class Stamp(NamedTuple):
    """Size and change of a file; it differs when the file has changed.

    Attributes:
        size: size of the file [bytes].
        token: time of the last change, or a remote store's equivalent.
    """

    size: int
    token: str


class Storage(Protocol):
    """The port of a folder of files."""

    @property
    def location(self) -> str:
        """Path or URL of the folder."""
        ...

    @property
    def local(self) -> Path | None:
        """Path of the folder; None when it is not on this computer's disk."""
        ...

    def files(self) -> Mapping[str, Stamp]:
        """Return name -> stamp of the folder's files. Raise DataError for a symbolic link that leaves the folder."""
        ...

    def folders(self) -> list[str]:
        """Return the names of the folders inside."""
        ...

    def inside(self, name: str) -> Storage:
        """Return a folder inside, by name."""
        ...

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes of a file from an offset, fewer at its end; all bytes from the offset without a size.

        Raises:
            DataError: the file cannot be read.
        """
        ...

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file during a `with` block. It appears whole at the end, and not at all after an error.

        Raises:
            DataError: the file cannot be written, or its name could leave the folder.
        """
        ...


def open_storage(location: str | Path) -> Storage:
    """Open the folder at a path or URL.

    Raises:
        MissingDependencyError: the package for this kind of URL is not installed.
    """
    text = str(location)
    if "://" not in text:
        return LocalFolder(Path(text))
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    require("fsspec", "data", f"reading {text}")
    return RemoteFolder(text.rstrip("/"))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this computer's disk."""

    path: Path

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def local(self) -> Path | None:
        return self.path

    def files(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for entry in self._entries():
            if entry.is_file():
                status = entry.stat()
                found[entry.name] = Stamp(status.st_size, str(status.st_mtime_ns))
        return found

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self._entries() if entry.is_dir())

    def inside(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        try:
            descriptor = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if size is not None and size <= PLAIN_READ_BYTES:
                    return os.pread(descriptor, size, offset)
                left = max(os.fstat(descriptor).st_size - offset, 0)  # pread allocates the whole requested size
                return os.pread(descriptor, left if size is None else min(size, left), offset)
            finally:
                os.close(descriptor)
        except OverflowError as error:  # the index came from a stranger
            raise DataError(f"cannot read {self.path / name} at byte {offset}: no file is so long.") from error
        except OSError as error:
            raise DataError(f"cannot read {self.path / name}: {error.strerror}.") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        path = self.path / require_name(name, "a file to write", self.path)
        with writing(path), open_whole(path) as file:
            yield cast("BinaryIO", file)

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                found = list(entries)
        except FileNotFoundError as error:
            raise DataError(f"{self.path} does not exist.") from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}.") from error
        for entry in found:
            if entry.is_symlink():
                require_inside(self.path, entry.name)
        return found


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL."""

    location: str

    @property
    def local(self) -> Path | None:
        return None

    def files(self) -> dict[str, Stamp]:
        entries = [entry for entry in self._entries() if entry["type"] == "file"]
        return {_name(entry): self._stamp(entry) for entry in entries}

    def _stamp(self, entry: Mapping[str, Any]) -> Stamp:
        """Return the stamp of an entry of a listing; a web server's listing has no sizes, so the file is asked."""
        if entry["size"] is None:
            entry = self._system()[0].info(entry["name"])
        return Stamp(int(entry["size"]), _token(entry))

    def folders(self) -> list[str]:
        return sorted(_name(entry) for entry in self._entries() if entry["type"] == "directory")

    def inside(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.location}/{name}")

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        system, path = self._system()
        try:
            return system.cat_file(f"{path}/{name}", start=offset, end=None if size is None else offset + size)
        except OSError as error:
            raise DataError(f"cannot read {self.location}/{name}: {error}.") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Write through fsspec. A store of objects shows an upload when it is whole; a file system renames."""
        system, path = self._system()
        target = f"{path}/{require_name(name, 'a file to write', self.location)}"
        try:
            system.makedirs(path, exist_ok=True)
            file = system.open(target, "wb", autocommit=False)
            try:
                yield file
            except BaseException:
                file.close()
                file.discard()
                if system.protocol == "memory":  # fsspec's store in memory shows a file before it is committed
                    system.rm_file(target)
                raise
            file.close()
            file.commit()
            system.invalidate_cache(path)
        except (OSError, NotImplementedError) as error:
            raise DataError(f"cannot write {self.location}/{name}: {error}.") from error

    def _entries(self) -> list[dict[str, Any]]:
        system, path = self._system()
        try:
            return system.ls(path, detail=True)
        except FileNotFoundError as error:
            raise DataError(f"{self.location} does not exist.") from error
        except OSError as error:
            raise DataError(f"cannot list {self.location}: {error}.") from error

    def _system(self) -> tuple[Any, str]:
        """Return fsspec's file system and the path in it; fsspec makes a new file system after a fork."""
        import fsspec.core

        try:
            return fsspec.core.url_to_fs(self.location)
        except ImportError as error:  # "Please install gcsfs to access Google Storage"
            raise MissingDependencyError(f"{self.location} cannot be opened: {error}.") from error
        except ValueError as error:  # an unknown protocol
            raise DataError(f"{self.location} cannot be opened: {error}.") from error


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _token(entry: Mapping[str, Any]) -> str:
    """Return the first of these values that a store gives; each changes with the file's content."""
    return str(next((entry[k] for k in ("etag", "ETag", "md5Hash", "blob_id", "mtime", "created") if k in entry), ""))
