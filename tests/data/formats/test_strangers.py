"""Tests that an untrusted LeRobot or HDF5 dataset can neither reach another file nor exhaust the memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats import bounds
from vla_robot.data.formats.bounds import MAX_STEPS
from vla_robot.data.formats.hdf5 import open_hdf5
from vla_robot.data.formats.lerobot import video as lerobot_video
from vla_robot.data.formats.lerobot.layout import read_table
from vla_robot.data.formats.lerobot.source import open_lerobot
from vla_robot.data.formats.lerobot.video import VideoFrames
from vla_robot.data.formats.lerobot.writer import LeRobotWriter

from ..conftest import traced

MakeDemo = Callable[..., Demonstration]
LARGE = 2**33
"""Values that no test could hold."""


@pytest.fixture
def lerobot(tmp_path: Path, make_demo: MakeDemo) -> Path:
    root = tmp_path / "demos"
    with LeRobotWriter(root) as writer:
        writer.write(make_demo(steps=3))
    return root


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of numbers that no dataset may read."""
    path = tmp_path / "secret"
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(21.0).reshape(3, 7)
    return path


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["data/demo_0/obs/state"] = np.ones((3, 2))
    return path


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def external_link(demo: Any, secret: Path) -> None:
    demo["obs/other"] = h5py.ExternalLink(str(secret), "/values")


def soft_link_out(demo: Any, secret: Path) -> None:
    demo.file["elsewhere"] = h5py.ExternalLink(str(secret), "/")
    demo["obs/other"] = h5py.SoftLink("/elsewhere/values")


def external_storage(demo: Any, secret: Path) -> None:
    demo.create_dataset("obs/other", (3, 7), np.uint8, external=[(str(secret), 0, 21)])


def virtual(demo: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 7), np.float64)
    layout[:] = h5py.VirtualSource(str(secret), "values", (3, 7))
    demo["obs"].create_virtual_dataset("other", layout)


@pytest.mark.parametrize("attack", [external_link, soft_link_out, external_storage, virtual])
def test_no_other_file_is_read_through_an_hdf5_file(
    hdf5: Path, secret: Path, attack: Callable[[Any, Path], None]
) -> None:
    with h5py.File(hdf5, "a") as file:
        attack(file["data/demo_0"], secret)
    with pytest.raises(DataError, match=r"demo\.hdf5.*(other|elsewhere)'.*another file"):
        open_hdf5(hdf5)


def test_a_later_demonstration_may_not_reach_out_either(hdf5: Path, secret: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data/demo_1/actions"] = np.zeros((3, 7))
        file["data/demo_1/obs/state"] = h5py.ExternalLink(str(secret), "/values")
    dataset = open_hdf5(hdf5)
    assert dataset.episode(0).numbers("observation/state").shape == (3, 2)
    with pytest.raises(DataError, match="'/data/demo_1/obs/state' is a link into another file"):
        dataset.episode(1)


def test_a_soft_link_within_the_file_is_followed(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["shared"] = np.full((3, 4), 2.0)
        file["data/demo_0/obs/absolute"] = h5py.SoftLink("/shared")
        file["data/demo_0/obs/relative"] = h5py.SoftLink("state")
    episode = open_hdf5(hdf5).episode(0)
    assert episode.numbers("observation/absolute").tolist() == [[2.0] * 4] * 3
    assert episode.numbers("observation/relative").tolist() == [[1.0] * 2] * 3


def test_links_and_groups_without_an_end_are_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data/demo_0/obs/a"] = h5py.SoftLink("/data/demo_0/obs/b")
        file["data/demo_0/obs/b"] = h5py.SoftLink("/data/demo_0/obs/a")
    with pytest.raises(DataError, match="from link to link"):
        open_hdf5(hdf5)
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_0/obs/a"], file["data/demo_0/obs/b"]
        file["data/demo_0/obs/again"] = file["data/demo_0/obs"]
    with pytest.raises(DataError, match="groups more than"):
        open_hdf5(hdf5)


def test_an_hdf5_file_that_stores_nothing_does_not_ask_for_gigabytes(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file.require_group("data/demo_0/obs").create_dataset(
            "depth", (3, LARGE), "f4", chunks=(1, 1024), compression="gzip"
        )
    assert hdf5.stat().st_size < 50_000
    with (
        traced() as memory,
        pytest.raises(DataError, match=r"depth' asks for \d+ bytes of memory, but the file stores 0"),
    ):
        open_hdf5(hdf5)
    assert memory.peak_bytes < 50e6


def test_an_episode_of_absurd_length_is_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_0/actions"]
        file.require_group("data/demo_0").create_dataset("actions", (MAX_STEPS + 1, 1), "i1")
    with pytest.raises(DataError, match="steps; at most"):
        open_hdf5(hdf5)


# -- LeRobot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["data", "meta", "data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/info.json"]
)
def test_a_link_out_of_a_lerobot_dataset_is_refused_by_name(lerobot: Path, tmp_path: Path, folder: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(lerobot / folder, elsewhere)
    (lerobot / folder).symlink_to(elsewhere)
    with pytest.raises(DataError, match=f"{folder} leaves the folder"):
        open_lerobot(lerobot)
    with pytest.raises(DataError, match=f"{folder} leaves the folder"):
        LeRobotWriter(lerobot)


@pytest.mark.parametrize(
    "template",
    [
        "/etc/{video_key}",
        "../../{video_key}.mp4",
        "{video_key.__class__}",
        "{chunk_index:999999999d}",
        "videos/{camera}.mp4",
        None,
        7,
    ],
)
def test_a_video_path_that_leaves_or_has_other_fields_is_refused(lerobot: Path, template: Any) -> None:
    info = json.loads((lerobot / "meta" / "info.json").read_text())
    info["features"]["observation.images.film"] = {"dtype": "video", "shape": [24, 32, 3], "names": None}
    info["video_path"] = template
    (lerobot / "meta" / "info.json").write_text(json.dumps(info))
    add_columns(lerobot / "meta" / "episodes" / "chunk-000" / "file-000.parquet", "videos/observation.images.film/")
    with pytest.raises(DataError, match=r"info\.json, video_path"):
        open_lerobot(lerobot).episode(0)


def add_columns(path: Path, prefix: str) -> None:
    """Add the columns with the place of an episode's video."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    for name, value in {"chunk_index": 0, "file_index": 0, "from_timestamp": 0.0, "to_timestamp": 0.3}.items():
        table = table.append_column(prefix + name, pa.array([value] * len(table)))
    pq.write_table(table, path)


def change_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(fps=0), "fps"),
        (lambda info: info.update(fps=float("nan")), "fps"),
        (lambda info: info.update(fps=10**400), "fps"),
        (lambda info: info.update(features=[1]), "features"),
        (lambda info: info["features"].update(action=None), "features, 'action'"),
        (lambda info: info["features"]["action"].update(shape=["x"]), "features, 'action'"),
        (lambda info: info["features"]["action"].update(shape=[2**40]), "features, 'action' .* more than"),
        (lambda info: info["features"]["action"].update(shape=[1] * 9), "features, 'action'"),
        (lambda info: info["features"]["action"].update(shape=[-1, -2]), "features, 'action'"),
        (
            lambda info: info["features"]["observation.images.front"].update(shape=[99999, 99999, 3]),
            "front' .* more than",
        ),
        (lambda info: info.update(splits={"train": "-200000000:1"}), "splits"),
        (lambda info: info.update(splits={"train": "5:1"}), "splits"),
        (lambda info: info.update(splits={"train": "9" * 5000}), "splits"),
        (lambda info: info.update(splits=5), "splits"),
        (lambda info: info.update(codebase_version={}), "version"),
    ],
)
def test_an_info_that_makes_no_sense_is_refused_with_file_and_field(
    lerobot: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    change_info(lerobot, change)
    with traced() as memory, pytest.raises(DataError, match=rf"info\.json.*{words}"):
        open_lerobot(lerobot)
    assert memory.peak_bytes < 50e6


@pytest.mark.parametrize("dtype", ["S1000000000", "O", "V9999999", "(1000000,)f4", "M8[s]", "2,3f4", "{", ""])
def test_a_column_of_a_type_that_would_take_gigabytes_is_left_out(lerobot: Path, dtype: str) -> None:
    change_info(lerobot, lambda info: info["features"]["action"].update(dtype=dtype))
    assert "action" not in open_lerobot(lerobot).fields


def rewrite_table(path: Path, change: Callable[[Any], Any], **options: Any) -> None:
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(path)), path, **options)


def test_a_dictionary_that_repeats_one_large_value_is_refused_before_memory_is_taken(
    lerobot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    limit = 2**27
    monkeypatch.setattr(bounds, "MAX_COLUMN_BYTES", limit)
    path = lerobot / "data" / "chunk-000" / "file-000.parquet"
    large = pa.array(["x" * 1_000_000]).dictionary_encode()
    rows = 4000  # 4 GB in 0.1 MB

    def change(table: Any) -> Any:
        texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), large.dictionary)
        longer = table.take(pa.array(np.zeros(rows, np.int64)))
        return longer.append_column("note", texts).replace_schema_metadata(None)

    rewrite_table(path, change, dictionary_pagesize_limit=2**30, store_schema=False)
    assert path.stat().st_size < 2e6
    change_info(lerobot, lambda info: info["features"].update(note={"dtype": "string", "shape": [1], "names": None}))
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"file-000\.parquet asks for \d+ bytes"):
        open_lerobot(lerobot).episode(0, ["note"])
    assert pa.default_memory_pool().max_memory() - before < 2 * limit


def test_rows_of_nulls_in_wide_lists_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_COLUMN_BYTES", 2**25)
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "wide.parquet"
    wide = pa.list_(pa.float64(), 100_000)
    schema = pa.schema([pa.field("wide", wide)])
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(3):
            writer.write_table(pa.table({"wide": pa.nulls(100, wide)}, schema=schema))
    with pytest.raises(DataError, match=r"wide\.parquet (asks for|is damaged)"):
        read_table(path)


def test_a_table_whose_statistics_contradict_its_schema_is_damaged(tmp_path: Path) -> None:
    """pyarrow 26 aborts the process (std::terminate) in `column()` for such statistics. Found by fuzzing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"index": [0, 1]}), path, store_schema=False)
    optional, required = b"\x25\x02\x18\x05index", b"\x25\x00\x18\x05index"  # Thrift: repetition, then the name
    content = path.read_bytes()
    assert content.count(optional) == 1
    path.write_bytes(content.replace(optional, required))
    with pytest.raises(DataError, match=r"odd\.parquet is damaged: .*histogram size mismatch"):
        read_table(path)


@pytest.mark.parametrize("length", [-1, 2**40, None, 1.5])
def test_an_episode_of_impossible_length_is_refused(lerobot: Path, length: Any) -> None:
    import pyarrow as pa

    path = lerobot / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rewrite_table(path, lambda t: t.set_column(t.column_names.index("length"), "length", pa.array([length])))
    with pytest.raises(DataError, match=r"file-000\.parquet: length of an episode is"):
        open_lerobot(lerobot)


def test_a_playlist_in_place_of_a_video_is_not_opened(lerobot: Path, secret: Path) -> None:
    film = lerobot / "film.mp4"
    film.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    frames = VideoFrames(film, (0.0,), float("inf"), 0.1, "here", shape=(24, 32, 3))
    with pytest.raises(DataError, match="is neither MP4 nor Matroska"):
        frames.decode(0)


def film_of(path: Path, count: int, width: int, height: int) -> Path:
    """Write a video with one key frame, in MPEG-4, which every FFmpeg has."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10, options={"g": "600"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(count):
            picture = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_a_video_larger_than_declared_is_refused(tmp_path: Path) -> None:
    film = film_of(tmp_path / "film.mp4", 2, 1600, 1200)
    frames = VideoFrames(film, (0.0, 0.1), float("inf"), 0.1, "here", shape=(24, 32, 3))
    with pytest.raises(DataError, match="1600 x 1200 pixels, and the dataset declares 24 x 32 x 3"):
        frames.decode(0)
    assert replace(frames, shape=(1200, 1600, 3)).decode(1).shape == (1200, 1600, 3)


def test_a_video_whose_frames_would_all_be_held_at_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = film_of(tmp_path / "film.mp4", 100, 64, 48)
    frames = VideoFrames(film, tuple((np.arange(100) / 10).tolist()), float("inf"), 0.1, "here", shape=(48, 64, 3))
    assert frames.decode(99).shape == (48, 64, 3)
    monkeypatch.setattr(lerobot_video, "MAX_COLUMN_BYTES", 80 * 48 * 64 * 3)
    lerobot_video._decode_block.cache_clear()
    with pytest.raises(DataError, match="more than 80 frames of 64 x 48 pixels from one key frame"):
        frames.decode(99)


def test_large_frames_are_decoded_few_at_a_time() -> None:
    frames = VideoFrames(Path("film.mp4"), (), 0.0, 0.1, "", shape=(2160, 3840, 3))
    assert frames.block * 2160 * 3840 * 3 <= lerobot_video.BLOCK_BYTES
    assert replace(frames, shape=(480, 640, 3)).block == lerobot_video.BLOCK
    assert replace(frames, shape=(99999, 99999, 3)).block == 1


def test_a_heap_of_an_hdf5_file_that_the_library_would_walk_without_an_end_is_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
    assert open_hdf5(hdf5).rate_hz == 20
    data = bytearray(hdf5.read_bytes())
    free = data.find(b"GCOL") + 16
    while data[free : free + 2] != b"\0\0":  # skip the objects up to the free space after them
        free += 16 + -(-int.from_bytes(data[free + 8 : free + 16], "little") // 8) * 8
    data[free + 8 : free + 16] = bytes(8)  # h5py 3.16 with HDF5 2.0.0 would loop without end
    hdf5.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged: an object of the heap at byte \d+ has 0 bytes"):
        open_hdf5(hdf5)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("words", ["open the drawer", ["open", "", "the drawer"]])
def test_texts_of_either_form_of_header_are_read(tmp_path: Path, libver: str, userblock: int, words: Any) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["data/demo_0"].attrs["language_instruction"] = "what stood there before"
        file["data/demo_0"].attrs["language_instruction"] = words
        file["mask/train"] = np.array(["demo_0"], h5py.string_dtype())
    assert open_hdf5(path).episode(0).instructions()[0] == "open the drawer"


@pytest.mark.parametrize(
    ("part", "value"), [("length", 2**32 - 1), ("length", 2**20), ("address", 2**64 - 1), ("address", 8), ("index", 9)]
)
@pytest.mark.parametrize("where", ["attribute 'env_args'", "'/mask/train'"])
def test_a_text_that_announces_more_than_its_heap_holds_is_refused_before_memory_is_taken(
    hdf5: Path, part: str, value: int, where: str
) -> None:
    with h5py.File(hdf5, "w") as file:  # newer headers have checksums
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["mask/train"] = np.array(["demo_0"], h5py.string_dtype())
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
    data = bytearray(hdf5.read_bytes())
    text = 6 if "mask" in where else len(json.dumps({"env_kwargs": {"control_freq": 20}}))
    heaps = [at for at in range(len(data)) if data.startswith(b"GCOL", at)]
    places = [data.find(struct.pack("<IQ", text, heap)) for heap in heaps]
    place = next(place for place in places if place >= 0)
    start, size = {"length": (0, 4), "address": (4, 8), "index": (12, 4)}[part]
    data[place + start : place + start + size] = value.to_bytes(size, "little")
    hdf5.write_bytes(data)
    with pytest.raises(DataError, match=f"{where}.* is damaged: it says that a text has"):
        open_hdf5(hdf5)


def test_an_attribute_that_is_neither_text_nor_number_is_ignored(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data"].attrs["env_args"] = np.zeros(3, [("a", "i4"), ("b", "S8")])
        file["data"].attrs["problem_info"] = file["data"].ref
    assert open_hdf5(hdf5).rate_hz is None


def test_an_hdf5_dataset_that_claims_to_store_more_than_its_file_has_is_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        odd = file.create_dataset("data/demo_0/obs/odd", (3, 2**28), "u1", chunks=(1, 2**20), compression="gzip")
        odd[0, : 2**20] = np.arange(2**20) % 251
        stored = odd.id.get_storage_size()
    data = hdf5.read_bytes()
    assert data.count(stored.to_bytes(4, "little")) == 1  # of the only chunk, in the tree that finds it
    hdf5.write_bytes(data.replace(stored.to_bytes(4, "little"), (2**30).to_bytes(4, "little")))
    with (
        traced() as memory,
        pytest.raises(DataError, match=r"odd' asks for 805306368 bytes of memory, but the file stores \d+ bytes"),
    ):
        open_hdf5(hdf5).episode(0)
    assert memory.peak_bytes < 50e6
