"""Reads and writes the records of TFRecord files, each with checksums of its length and of its content.

    | length: u64 | masked crc of length: u32 | content: length bytes | masked crc of content: u32 |   little-endian

Source: tensorflow/tensorflow 2.21, tensorflow/core/lib/io/record_writer.h; the mask is from
tensorflow/core/lib/hash/crc32c.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vla_robot.core.host.optional import require

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
MASK_DELTA = 0xA282EAD8

ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> the bytes there; fewer at the end of the file."""


@dataclass(frozen=True)
class Record:
    """One intact record of a shard.

    Attributes:
        number: number of the record in the shard, from 0.
        offset: offset of its content in the shard [bytes].
        content: its content.
    """

    number: int
    offset: int
    content: bytes


@dataclass(frozen=True)
class Damage:
    """A record that cannot be read.

    Attributes:
        number: number of the record in the shard, from 0.
        offset: offset of the record in the shard [bytes].
        reason: what is wrong.
        ends_shard: whether the records after it cannot be found, since its length is not known.
    """

    number: int
    offset: int
    reason: str
    ends_shard: bool


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of data, rotated and shifted, so that checksums of data with checksums stay strong."""
    import google_crc32c  # not at the top: writing an episode log needs no checksums

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def require_crc() -> None:
    """Raise MissingDependencyError unless checksums can be computed."""
    require("google-crc32c", "data", "an RLDS dataset")


def frame_record(content: bytes) -> bytes:
    """Return the bytes of a record in a file: its content with length and checksums."""
    length = struct.pack("<Q", len(content))
    return length + FOOTER.pack(masked_crc(length)) + content + FOOTER.pack(masked_crc(content))


def read_record(read_at: ReadAt, offset: int, size: int) -> bytes | None:
    """Read the content of a record, from its offset and size [bytes]; None when its checksum does not match."""
    content = read_at(offset, size)
    footer = read_at(offset + size, FOOTER.size)  # a second read takes less time than a copy without the footer
    intact = len(content) == size and len(footer) == FOOTER.size and FOOTER.unpack(footer)[0] == masked_crc(content)
    return content if intact else None


def walk(read_at: ReadAt, size: int) -> Iterator[Record | Damage]:
    """Yield every record of a shard in order, with its checksums checked.

    Args:
        read_at: function that reads the shard.
        size: size of the shard [bytes].
    """
    number = offset = 0
    while offset < size:
        header = read_at(offset, HEADER.size)
        if len(header) < HEADER.size:
            yield Damage(number, offset, f"the file ends after {len(header)} of {HEADER.size} header bytes", True)
            return
        length, crc = HEADER.unpack(header)
        if crc != masked_crc(header[:8]):
            yield Damage(number, offset, "the checksum of its length is wrong", True)
            return
        end = offset + HEADER.size + length + FOOTER.size
        if end > size:
            yield Damage(number, offset, f"the file ends {end - size} bytes before the record does", True)
            return
        content = read_record(read_at, offset + HEADER.size, length)
        if content is None:
            yield Damage(number, offset, "the checksum of its content is wrong", False)
        else:
            yield Record(number, offset + HEADER.size, content)
        number, offset = number + 1, end
