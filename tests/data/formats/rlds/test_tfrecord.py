"""Tests of the framing of shards: it reads what was written, and detects all damage."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from vla_robot.data.formats.rlds.tfrecord import Damage, Record, frame_record, masked_crc, walk

CONTENTS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


def records_of(shard: bytes) -> list[Record | Damage]:
    return list(walk(lambda offset, size: shard[offset : offset + size], len(shard)))


def test_the_checksum_is_tensorflows() -> None:
    """CRC-32C of "123456789" is 0xE3069283 (RFC 3720); the mask as in tensorflow's crc32c.h."""
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(CONTENTS)
def test_what_is_written_is_read(contents: list[bytes]) -> None:
    shard = b"".join(map(frame_record, contents))
    found = records_of(shard)
    assert [r.content for r in found if isinstance(r, Record)] == contents
    assert [shard[r.offset : r.offset + len(c)] for r, c in zip(found, contents, strict=True)] == contents


@given(CONTENTS, st.data())
def test_no_flipped_bit_goes_unnoticed(contents: list[bytes], data: st.DataObject) -> None:
    shard = bytearray(b"".join(map(frame_record, contents)))
    shard[data.draw(st.integers(0, len(shard) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = records_of(bytes(shard))
    assert any(isinstance(r, Damage) for r in found)
    assert all(r.content == contents[r.number] for r in found if isinstance(r, Record))


@given(CONTENTS, st.data())
def test_a_shard_that_ends_early_loses_its_end_only(contents: list[bytes], data: st.DataObject) -> None:
    shard = b"".join(map(frame_record, contents))
    found = records_of(shard[: data.draw(st.integers(0, len(shard) - 1))])
    whole = [r.content for r in found if isinstance(r, Record)]
    assert whole == contents[: len(whole)]
    assert len(whole) < len(contents)


def test_a_length_beyond_the_file_allocates_nothing() -> None:
    length = struct.pack("<Q", 2**62)
    shard = length + struct.pack("<I", masked_crc(length)) + b"x"
    (damage,) = records_of(shard)
    assert isinstance(damage, Damage)
    assert damage.ends_shard
