"""Tests that an untrusted RLDS dataset can neither reach another folder nor exhaust the memory."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vla_robot.core.episode import Field
from vla_robot.core.errors import DataError
from vla_robot.data.formats.bounds import MAX_STEPS, MAX_VALUE_BYTES
from vla_robot.data.formats.rlds.decode import count_steps, decode_steps
from vla_robot.data.formats.rlds.example import BYTES, MAX_ENTRIES, Place, byte_places, encode, places
from vla_robot.data.formats.rlds.features import Features, Leaf, parse_features
from vla_robot.data.formats.rlds.index import FOLDER, FRAME, RECORD
from vla_robot.data.formats.rlds.reader import open_rlds
from vla_robot.data.formats.rlds.splits import INFO_FILE, parse_info
from vla_robot.data.formats.storage import LocalFolder

from ...conftest import traced

CopySample = Callable[[str], Path]


def version_of(sample: Path) -> Path:
    return next(path for path in sample.iterdir() if path.is_dir())


def information(**changes: Any) -> dict[str, Any]:
    split = {"name": "train", "shardLengths": ["2"], **changes.pop("split", {})}
    return {"name": "mine", "version": "1.0.0", "splits": [split], **changes}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "../../../tmp/x"}, "the dataset"),
        ({"name": "/etc/x"}, "the dataset"),
        ({"version": "../1"}, "the version"),
        ({"split": {"name": "../../x"}}, "a split"),
        ({"split": {"filepathTemplate": "../{SPLIT}"}}, "a shard"),
        ({"split": {"filepathTemplate": "/etc/passwd"}}, "a shard"),
    ],
)
def test_names_that_leave_the_folder_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"i.json: the name .* of {what} is refused"):
        parse_info(information(**changes), "i.json")


@pytest.mark.parametrize("length", ["-1", "9" * 400, "1e9"])
def test_malformed_shard_lengths_are_refused(length: str) -> None:
    with pytest.raises(DataError, match=r"^i\.json"):
        parse_info(information(split={"shardLengths": [length]}), "i.json")


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused_by_name(copy_sample: CopySample, tmp_path: Path) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    shard = sorted(folder.glob("*tfrecord*"))[0]
    elsewhere = tmp_path / "elsewhere"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    with pytest.raises(DataError, match=f"{shard.name} leaves the folder"):
        open_rlds(folder)


def test_an_index_is_not_written_through_a_link(copy_sample: CopySample, tmp_path: Path) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    (tmp_path / "home").mkdir()
    (folder / FOLDER).symlink_to(tmp_path / "home")
    with pytest.raises(DataError, match=f"{FOLDER} leaves the folder"):
        open_rlds(folder)
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("name", [INFO_FILE, "features.json"])
@pytest.mark.parametrize("content", [b"[" * 5000, b'{"name": ' + b"1" * 5000, b"[]", b"null", b"{}", b"\xff\xfe"])
def test_a_description_that_cannot_be_read_raises_a_data_error(
    copy_sample: CopySample, name: str, content: bytes
) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_rlds(folder)


def damaged_header(header: dict[str, Any], key: str, value: Any) -> bytes:
    shards = [{**header["shards"][0], key: value}, *header["shards"][1:]]
    text = json.dumps({**header, "shards": shards}).encode()
    return text + b" " * (-len(text) % 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("records", -1),
        ("records", 2**40),
        ("steps", 2**62),
        ("steps", "x"),
        ("stamp", [1]),
        ("damaged", [{"lost": 1}]),
        ("name", None),
    ],
)
def test_an_index_that_is_wrong_is_made_anew(copy_sample: CopySample, key: str, value: Any) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    lengths = open_rlds(folder).lengths.tolist()
    path = folder / FOLDER / "train.index"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = damaged_header(json.loads(data[8 : 8 + size]), key, value)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert open_rlds(folder).lengths.tolist() == lengths
    assert path.read_bytes() == data


def test_an_index_with_offsets_outside_of_its_shard_is_made_anew(copy_sample: CopySample) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    open_rlds(folder)
    path = folder / FOLDER / "train.index"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 16 : start + 24] = (2**60).to_bytes(8, "little")  # the size of the first record
    path.write_bytes(data)
    assert open_rlds(folder).episode(0).length > 0


def all_of(data: bytes) -> tuple[dict[str, Any], NDArray[Any], bytes]:
    """Return header, records and frames of an index."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    count = sum(shard["records"] for shard in header["shards"])
    stop = start + count * RECORD.itemsize
    return header, np.frombuffer(data[start:stop], RECORD).copy(), data[stop:]


def index_of(header: dict[str, Any], records: NDArray[Any], frames: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + records.tobytes() + frames


def outside(header: dict[str, Any], records: NDArray[Any], frames: bytes) -> bytes:
    """Change an index: one record has a number that the shard lacks."""
    records["number"][0] = 1522
    return index_of(header, records, frames)


def twice(header: dict[str, Any], records: NDArray[Any], frames: bytes) -> bytes:
    """Change an index: all shards appear twice."""
    again = records.copy()
    again["shard"] += len(header["shards"])
    shards = 2 * header["shards"]
    return index_of({**header, "shards": shards}, np.concatenate([records, again]), 2 * frames)


def without_last(header: dict[str, Any], records: NDArray[Any], frames: bytes) -> bytes:
    """Change an index: the last record and its frames are missing."""
    last = {**header["shards"][-1]}
    steps = int(records["steps"][-1])
    last["records"], last["steps"] = last["records"] - 1, last["steps"] - steps
    kept = len(frames) - steps * len(header["cameras"]) * FRAME.itemsize
    return index_of({**header, "shards": [*header["shards"][:-1], last]}, records[:-1], frames[:kept])


def first_again(header: dict[str, Any], records: NDArray[Any], frames: bytes) -> bytes:
    """Change an index: the record comes after another one that the index lacks."""
    records["offset"][0] += 1
    records["size"][0] -= 1
    return index_of(header, records, frames)


@pytest.mark.parametrize("change", [outside, twice, without_last, first_again])
def test_an_index_that_does_not_account_for_each_record_is_made_anew(
    copy_sample: CopySample, change: Callable[..., bytes]
) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    lengths = open_rlds(folder).lengths.tolist()
    path = folder / FOLDER / "train.index"
    data = path.read_bytes()
    path.write_bytes(change(*all_of(data)))
    assert open_rlds(folder).lengths.tolist() == lengths
    assert path.read_bytes() == data


def test_a_pipe_in_place_of_the_index_does_not_stop_the_reader(copy_sample: CopySample) -> None:
    folder = version_of(copy_sample("bridge_orig"))
    (folder / FOLDER).mkdir()
    os.mkfifo(folder / FOLDER / "train.index")
    assert len(open_rlds(folder)) > 0


# -- announcements ------------------------------------------------------------------------------------------------


def leaf_of(shape: tuple[int | None, ...], dtype: str = "uint8") -> Leaf:
    return Leaf("steps/depth", Field("depth", "number", dtype, shape), 1, "zlib")


@pytest.mark.parametrize("shape", [(4, 4), (None, 4)])
def test_zlib_gives_no_more_bytes_than_are_declared_or_allowed(shape: tuple[int | None, ...]) -> None:
    bomb = zlib.compress(zlib.compress(b"\0" * 2 * MAX_VALUE_BYTES, 9), 9)
    bomb = zlib.decompress(bomb)  # one layer: 131 kB become 134 MB
    record = encode({"steps/depth": [bomb]})
    with (
        traced() as memory,
        pytest.raises(DataError, match=r"shard 1: field 'steps/depth' .*it has more than \d+ bytes"),
    ):
        decode_steps(leaf_of(shape), record, places(record), 1, "shard 1")
    assert memory.peak_bytes < (1e6 if None not in shape else 2.5 * MAX_VALUE_BYTES)


def test_zlib_of_the_declared_size_is_read() -> None:
    value = np.arange(16, dtype=np.uint8).reshape(4, 4)
    record = encode({"steps/depth": [zlib.compress(value.tobytes())]})
    np.testing.assert_array_equal(decode_steps(leaf_of((4, 4)), record, places(record), 1, "")[0], value)  # type: ignore[index]


def test_an_episode_of_absurd_length_is_refused() -> None:
    record = encode({"steps/done": np.zeros(MAX_STEPS + 1, np.int64)})
    features = Features({"done": Leaf("steps/done", Field("done", "number", "bool", ()), 1)}, {})
    with pytest.raises(DataError, match=f"{MAX_STEPS + 1} steps; at most {MAX_STEPS}"):
        count_steps(record, places(record), features)


def test_lists_of_endlessly_many_empty_entries_are_refused() -> None:
    record = b"\x0a\x00" * (MAX_ENTRIES + 1)
    with pytest.raises(DataError, match=f"more than {MAX_ENTRIES} fields"):
        byte_places(record, Place(BYTES, 0, len(record)))


@pytest.mark.parametrize("dimensions", [["9" * 400], ["1"] * 9, [str(2**40)], ["x"], 5])
def test_a_shape_of_absurd_size_is_refused_by_the_name_of_its_field(dimensions: Any) -> None:
    tensor = {"pythonClassName": "x.Tensor", "tensor": {"dtype": "float32", "shape": {"dimensions": dimensions}}}
    steps = {"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": {"action": tensor}}}
    dataset = {"pythonClassName": "x.Dataset", "sequence": {"feature": steps}}
    tree = {"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": {"steps": dataset}}}
    with pytest.raises(DataError, match=r"f\.json: field 'steps/action' \(Tensor\) is incomplete"):
        parse_features(tree, "f.json")


def test_a_frame_beyond_the_end_of_all_files_raises_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x")
    with pytest.raises(DataError, match="no file is so long"):
        LocalFolder(tmp_path).read("shard", 2**64 - 1, 10)
