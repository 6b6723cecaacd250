"""CURVE keys, the clients that a server allows, and the servers that a client trusts, stored as small files.

    ~/.config/vla_robot/keys/      or the folder that VLA_KEYS names; only its owner may read it
        NAME.key                   secret key of this computer, mode 0600; never leaves it
        NAME.pub                   public key, to give away: one line, "KEY NAME"
        allowed_clients            lines "KEY NAME": clients that may connect to servers on this computer
        pinned_servers             lines "KEY HOST": the one key that a trusted server on that host must prove to own

A key is written as 64 hexadecimal digits, none of which is special to a shell. An allow-list is read again
whenever it changes, so `vla keys revoke` needs no restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from vla_robot.core.errors import TransportError, unknown
from vla_robot.core.host.durable import make_folder, sync_file, sync_folder, write_whole

KEYS_VARIABLE = "VLA_KEYS"

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700

LOCK_FILE = ".lock"
"""Lock in the folder of a list, held while the list is changed."""

_LOG = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9._:-]{0,252}")


def default_folder() -> Path:
    """Return the folder of the keys: VLA_KEYS, else ~/.config/vla_robot/keys."""
    named = os.environ.get(KEYS_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "vla_robot" / "keys"


@dataclass(frozen=True)
class KeyPair:
    """Key pair that identifies a computer.

    Attributes:
        name: name of its files.
        public: 64 hexadecimal digits, to give away.
        secret: 64 hexadecimal digits that prove this computer's identity.
    """

    name: str
    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class ServerSecurity:
    """A server's key pair and its list of allowed clients."""

    keys: KeyPair
    allowed: KeyList


@dataclass(frozen=True)
class ClientSecurity:
    """A client's key pair and the server's public key.

    Attributes:
        keys: the client's key pair.
        server_public: the key that the server must prove to own.
    """

    keys: KeyPair
    server_public: str


class KeyList:
    """File of lines "KEY NAME", read again when it changes. Each name appears at most once.

    A list that other users may write, itself or through its folder, is refused, since it decides which clients may
    """

    def __init__(self, path: Path, *, unique_keys: bool = True) -> None:
        """
        Args:
            path: path of the file; it need not exist.
            unique_keys: refuse a key that has two names.
        """
        self._path = path
        self._unique_keys = unique_keys
        self._seen: tuple[int, ...] | None = None
        self._keys: Mapping[str, str] = {}
        self._told = ""

    def keys(self) -> Mapping[str, str]:
        """Return name -> public key; empty if there is no file.

        Raises:
            TransportError: the file cannot be read, others may write it, or a line of it is not "KEY NAME".
        """
        try:
            info = self._path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return self._keys
        except OSError as error:
            raise TransportError(f"cannot read {self._path}: {error.strerror}.") from error
        seen = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, _mode(self._path.parent))
        if seen != self._seen:
            self._seen = None
            _require_unwritable(self._path)
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def names(self) -> Mapping[str, str]:
        """Return public key -> name.

        Raises:
            TransportError: as for `keys`.
        """
        return {key: name for name, key in self.keys().items()}

    def name_of(self, public: str) -> str | None:
        """Return the name of a key that is on the list now, or None. An unreadable list is logged and allows no key."""
        try:
            name = next((name for name, key in self.keys().items() if key == public), None)
            self._told = ""
        except TransportError as error:
            if str(error) != self._told:  # once, and not for every message
                _LOG.error("no client is allowed: %s", error)
            name, self._told = None, str(error)
        return name

    def add(self, public: str, name: str) -> None:
        """Add a key under a name.

        Raises:
            TransportError: the key or the name is in the list already, or the list cannot be read or written.
        """
        with self._changing() as keys:
            other = next((n for n, key in keys.items() if key == public and n != name), None)
            if self._unique_keys and other is not None:
                raise TransportError(f"this key is in {self._path} already, as '{other}'. Revoke that first.")
            if keys.get(name, public) != public:
                raise TransportError(
                    f"'{name}' is in {self._path} already, with another key. Choose another name, or remove that "
                    "one first: `vla keys revoke NAME`, or `vla keys distrust HOST`."
                )
            keys[name] = public

    def remove(self, name: str) -> str:
        """Remove a name and return its key.

        Raises:
            TransportError: there is no such name, or the list cannot be read or written.
        """
        self._require_known(name, self.keys())
        with self._changing() as keys:
            self._require_known(name, keys)  # another process may have removed it
            return keys.pop(name)

    def _require_known(self, name: str, keys: Mapping[str, str]) -> None:
        if name not in keys:
            raise TransportError(unknown("name", name, keys, f"{self._path} is the list."))

    def _read(self) -> dict[str, str]:
        keys: dict[str, str] = {}
        for number, line in enumerate(_text(self._path).splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            twice = len(words) == 2 and (words[1] in keys or (self._unique_keys and words[0] in keys.values()))
            if len(words) != 2 or not _KEY.fullmatch(words[0]) or twice:
                raise TransportError(
                    f"{self._path}, line {number}: expected a public key of 64 hexadecimal digits and a name, each of "
                    f"them once in the file, got {line[:100]!r}."
                )
            keys[words[1]] = words[0]
        return keys

    @contextlib.contextmanager
    def _changing(self) -> Generator[dict[str, str]]:
        """Yield the list to be changed in place, then write it; other processes wait meanwhile."""
        try:
            with _locked(self._path.parent):
                keys = dict(self.keys())
                yield keys
                write_whole(self._path, "".join(f"{key} {name}\n" for name, key in keys.items()).encode(), SECRET_MODE)
                self._seen = None
        except OSError as error:
            raise TransportError(f"cannot write {self._path}: {error.strerror}.") from error


class KeyFolder:
    """Folder of this computer's keys, the clients that it allows and the servers that it trusts."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    @property
    def path(self) -> Path:
        return self._folder

    @property
    def allowed(self) -> KeyList:
        """Clients that may connect to servers on this computer."""
        return KeyList(self._folder / "allowed_clients")

    @property
    def trusted(self) -> KeyList:
        """Servers that clients on this computer trust, by host. One server may have several host names."""
        return KeyList(self._folder / "pinned_servers", unique_keys=False)

    def create(self, name: str) -> KeyPair:
        """Make a key pair and write its two files.

        Raises:
            TransportError: the name is taken or invalid, or writing failed.
        """
        _require_name(name)
        self._make_folder()
        public, secret = (z85.decode(key).hex() for key in zmq.curve_keypair())
        try:
            _create(self._secret_file(name), f"{secret}\n")
        except FileExistsError:
            raise TransportError(
                f"there is a key '{name}' already, in {self._secret_file(name)}. Choose another name: computers that "
                "trust the old key would not trust a new one."
            ) from None
        except OSError as error:
            raise TransportError(f"cannot write {self._secret_file(name)}: {error.strerror}.") from error
        self._write_public(name, public)
        return KeyPair(name, public, secret)

    def pair(self, name: str | None = None) -> KeyPair:
        """Return a key pair; without a name, the only one.

        Raises:
            TransportError: there is no key, there are several to choose from, or others may read its file.
        """
        name = name or self._only()
        path = self._secret_file(name)
        if not path.is_file():
            raise TransportError(unknown("key", name, self.names(), "Make one with `vla keys new NAME`."))
        _require_private(path)
        secret = _text(path).strip()
        if not _KEY.fullmatch(secret):
            raise TransportError(f"{path} does not hold a secret key of 64 hexadecimal digits. Make another one.")
        public = zmq.curve_public(z85.encode(bytes.fromhex(secret)))
        return KeyPair(name, z85.decode(public).hex(), secret)

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.key"))

    def _write_public(self, name: str, public: str) -> None:
        try:
            write_whole(self.public_file(name), f"{public} {name}\n".encode(), PUBLIC_MODE)
        except OSError as error:
            raise TransportError(
                f"the key '{name}' is made, and its public half could not be written to {self.public_file(name)}: "
                f"{error.strerror}. `vla keys show {name}` prints it."
            ) from error

    def public_file(self, name: str) -> Path:
        return self._folder / f"{name}.pub"

    def allow(self, public: str, name: str) -> None:
        """Let a client connect to servers on this computer."""
        _require_name(name)
        self._make_folder()
        self.allowed.add(_require_key(public), name)

    def trust(self, host: str, public: str) -> None:
        """Trust servers on a host that prove to own this key."""
        if not _HOST.fullmatch(host):
            raise TransportError(f"'{host}' is not a host; one looks like robot.local or 192.168.1.20.")
        self._make_folder()
        self.trusted.add(_require_key(public), host)

    def server_security(self, key: str | None = None) -> ServerSecurity:
        """Return the security of a ServerSocket.

        Args:
            key: name of the server's key; None takes the only one.

        Raises:
            TransportError: the key is missing or readable by others, or the allow-list is malformed.
        """
        security = ServerSecurity(self.pair(key), self.allowed)
        security.allowed.names()
        return security

    def client_security(self, address: str, key: str | None = None) -> ClientSecurity:
        """Return the security of a ClientSocket.

        Args:
            address: address of the server, e.g. "tcp://robot.local:5570".
            key: name of the client's key; None takes the only one.

        Raises:
            TransportError: the client has no key, or does not trust a key of the server yet.
        """
        host = host_of(address)
        public = self.trusted.keys().get(host)
        if public is None:
            raise TransportError(
                f"the public key of {host} is not known here, so another computer could pretend to be it. On {host}, "
                f"`vla keys show` prints it; here, `vla keys trust {host} PUBLIC` stores it."
            )
        return ClientSecurity(self.pair(key), public)

    def _secret_file(self, name: str) -> Path:
        return self._folder / f"{name}.key"

    def _only(self) -> str:
        names = self.names()
        if len(names) == 1:
            return names[0]
        if not names:
            raise TransportError(f"this computer has no key in {self._folder}. Make one with `vla keys new NAME`.")
        raise TransportError(f"this computer has several keys: {', '.join(names)}. Say which one with --key NAME.")

    def _make_folder(self) -> None:
        try:
            make_folder(self._folder, mode=FOLDER_MODE)
        except OSError as error:
            raise TransportError(
                f"cannot make the folder {self._folder}: {error.strerror}. {KEYS_VARIABLE} names another one."
            ) from error


def read_public(text: str) -> tuple[str, str | None]:
    """Return a public key and its name, if any, from the key itself or the path of a .pub file.

    Raises:
        TransportError: the text is neither.
    """
    if _KEY.fullmatch(text):
        return text, None
    path = Path(text)
    words = _text(path).split() if path.is_file() else []
    if len(words) == 2 and _KEY.fullmatch(words[0]) and _NAME.fullmatch(words[1]):
        return words[0], words[1]
    raise TransportError(
        f"'{text}' is neither a public key (64 hexadecimal digits) nor the path of a .pub file. "
        "`vla keys show` on the other computer prints its key."
    )


def host_of(address: str) -> str:
    """Return the host of an address tcp://HOST:PORT; an IPv6 host without its brackets."""
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def raw_key(key: str) -> bytes:
    """Return the 32 bytes of a key, as ZeroMQ needs them."""
    return bytes.fromhex(key)


def _create(path: Path, text: str) -> None:
    """Write a new file that only its owner can ever read, and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            sync_file(file)
        sync_folder(path.parent)
    except BaseException:
        path.unlink()  # an empty file would occupy the name of the key
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the folder's lock during the block; other processes and threads wait. The lock ends with its process."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, SECRET_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TransportError(f"cannot read {path}: {error}.") from error


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise TransportError(
            f"'{name[:80]}' cannot name a key: letters, digits, '.', '_' and '-', 64 at most, not first a sign."
        )


def _require_key(public: str) -> str:
    if not _KEY.fullmatch(public):
        raise TransportError(f"'{public[:80]}' is not a public key: 64 hexadecimal digits, as `vla keys show` prints.")
    return public


def _require_private(path: Path) -> None:
    mode = _mode(path)
    if mode & 0o077:
        raise TransportError(
            f"{path} can be read by others (mode {mode:04o}), so the key may be known to them. Make a new one, or, if "
            f"you are sure that no other user read it: chmod 600 {path}"
        )


def _require_unwritable(path: Path) -> None:
    """Raise TransportError if others may write a list of keys or its folder, where they could replace the file."""
    for place in (path, path.parent):
        mode = _mode(place)
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise TransportError(
                f"{place} can be written by others (mode {mode:04o}), so they can change which keys count here. Check "
                f"{path}, then: chmod go-w {place}"
            )


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise TransportError(f"cannot read {path}: {error.strerror}.") from error
