"""Checks the texts of HDF5 attributes and datasets in the file itself, without the HDF5 library.

    an attribute's value    | length: u32 | address of a heap: u64 | index in it: u32 |
    a heap                  | GCOL | version: u8 | reserved: 3 | size: u64 | objects |
    an object of it         | index: u16 | references: u16 | reserved: 4 | size: u64 | content, padded to 8 |

HDF5 2.0.0 allocates and fills the memory that the length asks for, up to 4 GB, before it looks for the heap; for some
addresses it aborts the process. Source: the HDF5 file format specification, version 3.0, III.E, IV.A.1 and IV.A.2.m.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from vla_robot.core.errors import DataError

MAGIC = b"GCOL\x01\0\0\0"
HEADER = 16
"""Number of bytes before a heap's objects, and before each object's content."""
REFERENCE = struct.Struct("<IQI")
SCAN_BYTES = 2**30
MAX_BLOCKS = 256
"""Largest number of blocks of one object's header."""
_CONTINUED, _ATTRIBUTE = 0x10, 0x0C


@functools.lru_cache(maxsize=256)
def require_sound_heaps(path: Path, size: int, changed_ns: int) -> None:
    """Raise DataError when a global heap of an HDF5 file, which holds texts, has an object of an impossible size.

    HDF5 2.0.0 loops without end over a heap with an object of 0 bytes, and nothing in this process could stop it. Files
    of more than SCAN_BYTES are not searched, since that takes a second for each GB.

    Args:
        path: path of the file.
        size: size of the file [bytes].
        changed_ns: time of its last change [ns]; path, size and time are the key of the cache of checked files.
    """
    if not 0 < size <= SCAN_BYTES:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        while (at := data.find(MAGIC, at + 1)) >= 0:
            stop = at + int.from_bytes(data[at + 8 : at + 16], "little")
            if at + HEADER <= stop <= len(data):
                _require_sound_heap(data, at, stop, path)


def _require_sound_heap(data: mmap.mmap, at: int, stop: int, path: Path) -> None:
    """Raise DataError unless each object of a heap lies inside it. An object of index 0 is free space."""
    place = at + HEADER
    while place + HEADER <= stop:
        size = int.from_bytes(data[place + 8 : place + 16], "little")
        takes = HEADER + -(-size // 8) * 8 if data[place : place + 2] != b"\0\0" else size
        if not HEADER <= takes <= stop - place:
            raise DataError(f"{path} is damaged: an object of the heap at byte {at} has {size} bytes.")
        place += takes


def require_stored_texts(node: Any, name: str, count: int, where: str) -> None:
    """Raise DataError unless the heaps of the file hold the texts of an attribute with their announced lengths.

    An attribute that is not in its object's header (many attributes are kept in a heap of their own) is not checked.

    Args:
        node: the group or dataset.
        name: name of an attribute of texts of variable length.
        count: number of its texts.
        where: file and attribute, for the error message.
    """
    import h5py

    base, address = node.file.userblock_size, cast(Any, h5py).h5o.get_info(node.id).addr
    path = Path(node.file.filename)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            stored = _attribute(data, base + address, base, name.encode())
            if stored:
                _require_references(data, stored, count, base, where)
        except struct.error as error:
            raise DataError(f"{where} is damaged: it leads out of the file.") from error


def require_texts_at(path: Path, offset: int, count: int, base: int, where: str) -> None:
    """Raise DataError unless the heaps of a file hold the texts of a dataset whose values are contiguous.

    Args:
        path: path of the file.
        offset: offset of the values in the file [bytes].
        count: number of values.
        base: size of the file's user block, from which addresses count.
        where: file and dataset, for the error message.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _require_references(data, data[offset : offset + REFERENCE.size * count], count, base, where)
        except struct.error as error:
            raise DataError(f"{where} is damaged: it leads out of the file.") from error


def _require_references(data: mmap.mmap, stored: bytes, count: int, base: int, where: str) -> None:
    for number in range(count):
        length, heap, index = REFERENCE.unpack_from(stored, number * REFERENCE.size)
        if length > _stored_bytes(data, base + heap, index):
            raise DataError(f"{where} is damaged: it says that a text has {length} bytes, which are not there.")


def _stored_bytes(data: mmap.mmap, at: int, index: int) -> int:
    """Return the size of an object of the heap at a place in the file; 0 when there is no such heap or object."""
    if not 0 <= at <= len(data) - HEADER or data[at : at + 8] != MAGIC:
        return 0
    stop = min(at + int.from_bytes(data[at + 8 : at + 16], "little"), len(data))
    at += HEADER
    while at + HEADER <= stop:
        found, _, size = struct.unpack_from("<HH4xQ", data, at)
        if found == 0:
            return 0
        if found == index:
            return size if at + HEADER + size <= stop else 0
        at += HEADER + -(-size // 8) * 8
    return 0


def _attribute(data: mmap.mmap, at: int, base: int, name: bytes) -> bytes:
    """Return the stored value of an attribute in an object's header; empty when it is not there."""
    for kind, message in _messages(data, at, base):
        if kind != _ATTRIBUTE or len(message) < 9:
            continue
        version, sizes = message[0], struct.unpack_from("<HHH", message, 2)
        start = 9 if version == 3 else 8
        padded = [-(-size // 8) * 8 if version == 1 else size for size in sizes]
        if message[start : start + sizes[0]].rstrip(b"\0") == name:
            return message[start + sum(padded) :]
    return b""


def _messages(data: mmap.mmap, at: int, base: int) -> Iterator[tuple[int, bytes]]:
    """Yield (kind, content) of each message of an object's header, of either version.

    Raises:
        struct.error: the header lies outside of the file.
    """
    is_new = data[at : at + 4] == b"OHDR"
    ordered = 0
    if is_new:
        flags = data[at + 5] if at + 5 < len(data) else 0
        start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        ordered = 2 if flags & 0x04 else 0
        blocks = [(start + width, int.from_bytes(data[start : start + width], "little"))]
    else:
        blocks = [(at + 16, struct.unpack_from("<I", data, at + 8)[0])]
    for place, size in blocks:  # the loop appends blocks
        stop = min(place + size, len(data))
        head = 4 + ordered if is_new else 8
        while place + head <= stop:
            kind, length = struct.unpack_from("<BH" if is_new else "<HH", data, place)
            content = data[place + head : min(place + head + length, stop)]
            if kind == _CONTINUED and len(blocks) < MAX_BLOCKS:
                address, count = struct.unpack_from("<QQ", content)
                blocks.append((base + address + 4, count - 8) if is_new else (base + address, count))
            yield kind, content
            place += head + length
