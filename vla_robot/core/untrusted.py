"""Checks of data from an untrusted file or peer: JSON, names, path templates, paths, text.

malformed          turns Python's errors at unexpected data into one VlaError, with file and field
parse_json         JSON of bounded size; read_file, read_json: the same from a regular file
require_name       a name that is a single component of a path
expand_template    a path from a template with known fields; `str.format` would also read attributes
require_inside     a path that does not leave its folder, symbolic links resolved
printable          text without characters that control a terminal
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_robot.core.errors import DataError, VlaError

MAX_JSON_BYTES = 16 * 2**20
"""Largest JSON file. Descriptions of published datasets stay below 2 MiB. "[],[]," of this size takes 0.4 GB."""
MAX_NAME_CHARS = 128
MAX_SHOWN_CHARS = 200
"""Longest untrusted value in an error message [characters]."""

MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors that Python and numpy raise for plain data of an unexpected form."""

_NAME = re.compile(r"\w[\w .,+=@()~-]*")
_FIELD = re.compile(r"\{([a-z_]+)(:0[36]d)?\}")
_UNPRINTABLE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
"""Control characters (an escape sequence begins with one), marks that reverse the direction of text, invisible tags,
and halves of surrogate pairs, which cannot be printed at all."""


@contextmanager
def malformed(
    where: object, error: type[VlaError] = DataError, also: tuple[type[Exception], ...] = ()
) -> Generator[None]:
    """Convert errors at data of an unexpected form to a VlaError; for the boundary of a reader.

    Args:
        where: file, and field if known; the message begins with it.
        error: class of the error to raise.
        also: further exceptions of the library behind the reader.

    Raises:
        VlaError: of the class `error`. Other VlaErrors pass unchanged.
    """
    try:
        yield
    except KeyError as cause:
        raise error(f"{where}: the field {shortened(cause)} is missing.") from cause
    except (*MALFORMED, *also) as cause:
        raise error(f"{where} is not of the expected form: {type(cause).__name__}: {shortened(cause)}.") from cause


def shortened(value: object) -> str:
    """Shorten an untrusted value for an error message."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def parse_json(text: bytes | str, where: object, error: type[VlaError] = DataError) -> Any:
    """
    Args:
        text: JSON in UTF-8.
        where: file or peer, for the error message.
        error: class of the error to raise.

    Raises:
        VlaError: of the class `error`: it is not JSON, or larger than MAX_JSON_BYTES.
    """
    if len(text) > MAX_JSON_BYTES:
        raise error(f"{where} has {len(text)} bytes; JSON of at most {MAX_JSON_BYTES} is read.")
    try:
        return json.loads(text)
    except RecursionError as cause:
        raise error(f"{where} is not valid JSON: it is nested too deeply.") from cause
    except ValueError as cause:  # also a number of more than 4300 digits, and bytes that are not UTF-8
        raise error(f"{where} is not valid JSON: {shortened(cause)}.") from cause


def read_json(path: Path, error: type[VlaError] = DataError) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file; other OSErrors likewise.
        VlaError: as for `parse_json`, or it is not a regular file.
    """
    return parse_json(read_file(path, MAX_JSON_BYTES, error), path, error)


def read_file(path: Path, max_bytes: int, error: type[VlaError] = DataError) -> bytes:
    """Read a whole file.

    Raises:
        OSError: it cannot be read.
        VlaError: of the class `error`: it is larger than `max_bytes`, or a pipe or a device, which may never end.
    """
    # A pipe without a writer would block here.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file.")
        if status.st_size > max_bytes:
            raise error(f"{path} has {status.st_size} bytes; at most {max_bytes} are read.")
        return file.read(max_bytes)


def require_name(name: object, what: str, where: object, error: type[VlaError] = DataError) -> str:
    """Return the name if it is a valid single component of a path.

    Args:
        name: name in a file.
        what: kind of the named thing, for the error message.
        where: file, for the error message.
        error: class of the error to raise.

    Raises:
        VlaError: of the class `error`: it is not text, empty, too long, begins with a dot, or has other characters than
            letters, digits, spaces and . , + = @ ( ) ~ - _
    """
    if isinstance(name, str) and len(name) <= MAX_NAME_CHARS and _NAME.fullmatch(name):
        return name
    raise error(
        f"{where}: the name {shortened(repr(name))} of {what} is refused. A name has 1 to {MAX_NAME_CHARS} letters, "
        "digits, spaces or . , + = @ ( ) ~ - _, and begins with a letter or a digit."
    )


def expand_template(template: object, values: Mapping[str, int | str], where: object) -> str:
    """Fill in a template of a path such as "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4".

    Args:
        template: template in a file.
        values: field -> its value; no other fields are known. A number may be padded, ":03d" or ":06d".
        where: file and field, for the error message.

    Raises:
        DataError: the template has another field, attribute access, another format, or stray braces.
    """
    if not isinstance(template, str) or len(template) > 2 * MAX_NAME_CHARS:
        raise DataError(f"{where}: {shortened(repr(template))} is not a template of a path.")

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1])
        if found is None or (match[2] and not isinstance(found, int)):
            return match[0]
        return format(found, (match[2] or ":")[1:])

    literals = _FIELD.sub(lambda match: "" if value(match) != match[0] else match[0], template)
    if "{" in literals or "}" in literals:
        known = ", ".join("{" + name + (":03d}" if isinstance(v, int) else "}") for name, v in values.items())
        raise DataError(f"{where}: the template {shortened(repr(template))} is refused. It may hold: {known}.")
    return _FIELD.sub(value, template)


def require_inside(root: Path, relative: str | Path, where: object = None) -> Path:
    """Return root / relative if it lies below the root with symbolic links resolved. It need not exist.

    A snapshot in the cache of huggingface_hub is a folder of links into the folder `blobs` beside it: allowed.

    Args:
        root: a folder that the user named; it may itself be a symbolic link.
        relative: path in a file.
        where: file and field, for the error message; None names the root.

    Raises:
        DataError: the path is absolute, climbs, or a symbolic link leads out of the root.
    """
    path, text = root / relative, str(relative)
    if "\0" in text or Path(text).is_absolute() or ".." in Path(text).parts:
        raise DataError(
            f"{where or root}: the path {shortened(repr(text))} is refused, since it leaves the folder {root}."
        )
    try:
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except (OSError, ValueError) as error:
        raise DataError(f"{where or root}: {shortened(repr(text))} is not a path: {error}.") from error
    blobs = _blobs_beside(home)
    if real.is_relative_to(home) or (blobs is not None and real.is_relative_to(blobs)):
        return path
    raise DataError(
        f"{path} leaves the folder {root} by a symbolic link: it leads to {real}. Such links are not followed, since "
        "they can name any file of this computer. Put the data itself there, or open the folder that it leads to."
    )


def require_links_inside(root: Path) -> None:
    """Raise DataError, as `require_inside`, when any symbolic link in a folder or in those below it leads out of it."""
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    require_inside(root, Path(entry.path).relative_to(root))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _blobs_beside(folder: Path) -> Path | None:
    """Return the folder of the files of a huggingface_hub snapshot, .../datasets--NAME/snapshots/REVISION; or None."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith(("datasets--", "models--")):
            return parent.parent.parent / "blobs"
    return None


def printable(text: object, *, lines: bool = False) -> str:
    r"""Return text with all characters that control a terminal written as escapes.

    Args:
        text: text from a file, a peer, or a message that quotes them.
        lines: keep line breaks and tabs, as in a message of several lines.

    >>> printable("open \x1b[2Jit\n")
    'open \\x1b[2Jit\\n'
    """

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        return character if lines and character in "\n\t" else character.encode("unicode_escape").decode("ascii")

    return _UNPRINTABLE.sub(shown, str(text))
