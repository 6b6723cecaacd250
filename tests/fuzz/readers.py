"""The readers that fuzz_readers.py feeds, each with its valid inputs and the neighbours that it gets."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgpack
import mutate
import numpy as np

from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import DataError
from vla_robot.core.messages import Observation
from vla_robot.testing import toy_embodiment

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "tests" / "golden" / "rlds_samples"

DIMS = (Dim("dx", "m", -0.05, 0.05), Dim("gripper", "1", 0.0, 1.0))
ARM = toy_embodiment(name="arm", state=DIMS, height=8, width=8)
FRAME = (np.arange(192) % 256).astype(np.uint8).reshape(8, 8, 3)


class Reader(Protocol):
    """What fuzz_readers.py runs."""

    name: str

    @property
    def seeds(self) -> Sequence[Any]: ...

    def mutate(self, seed: Any, chance: random.Random) -> Any: ...

    def read(self, data: Any) -> None: ...


class Simple:
    """A reader of bytes."""

    def __init__(
        self,
        name: str,
        seeds: Sequence[bytes],
        change: Callable[[bytes, random.Random], bytes],
        read: Callable[[bytes], Any],
    ) -> None:
        self.name, self.seeds, self._change, self._read = name, seeds, change, read

    def mutate(self, seed: bytes, chance: random.Random) -> bytes:
        return self._change(seed, chance)

    def read(self, data: bytes) -> None:
        self._read(data)


def readers(folder: Path) -> dict[str, Callable[[], Reader]]:
    """Name -> makes the reader; its files go to a folder."""
    made: dict[str, Callable[[Path], Reader]] = {
        "images": images,
        "rlds_info": rlds_info,
        "rlds_features": rlds_features,
        "rlds_record": RldsRecord,
        "rlds_shard": rlds_shard,
        "rlds_index": rlds_index,
        "lerobot_lines": lerobot_lines,
        "lerobot_info": lerobot_info,
        "lerobot_tables": LeRobotTables,
        "hdf5": Hdf5,
        "vlalog": Vlalog,
        "notes": notes,
        "rest": rest,
        "openpi": openpi,
        "groot": groot,
        "toml": Toml,
        "statistics": statistics,
        "checkpoint": Checkpoint,
        "safetensors": safetensors,
    }

    def make(name: str) -> Reader:
        home = folder / name
        home.mkdir()
        return made[name](home)

    return {name: lambda name=name: make(name) for name in made}


def png(image: Any) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


# -- frames ------------------------------------------------------------------------------------------------------------


def images(folder: Path) -> Reader:
    import PIL.Image

    from vla_robot.data.formats.images import decode_image
    from vla_robot.data.formats.lerobot.video import DepthImages
    from vla_robot.data.formats.png import decode

    def saved(image: Any, form: str, **options: Any) -> bytes:
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, form, **options)
        return file.getvalue()

    depth = np.arange(64, dtype=np.uint16).reshape(8, 8)
    seeds = [
        saved(FRAME, "PNG"),
        saved(FRAME, "JPEG"),
        saved(FRAME, "JPEG", progressive=True),
        saved(FRAME[..., 0], "PNG"),
        saved(depth, "PNG"),
        saved(depth.astype(np.float32), "TIFF"),
        saved(depth.astype(np.float32), "TIFF", compression="tiff_adobe_deflate"),
    ]

    def change(data: bytes, chance: random.Random) -> bytes:
        data = mutate.scrambled(data, chance)
        if data.startswith(b"\x89PNG") and chance.random() < 0.7:  # with a right checksum, more of it is looked at
            data = with_checksums(data)
        return data

    def read(data: bytes) -> None:
        kinds = (b"\xff\xd8\xff", b"\x89PNG")
        if not data.startswith(kinds):
            DepthImages([data], "mm", (8, 8, 1), "here").decode(0)
            return
        for dtype in ("uint8", "uint16", "float32"):
            keep_errors(lambda dtype=dtype: decode_image(data, dtype, "here", (8, 8, 3)))
        decode(data)

    return Simple("images", seeds, change, read)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as it has chunks."""
    made, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return made


def keep_errors(act: Callable[[], Any]) -> None:
    """So that one refusal does not keep the next part from being read."""
    with contextlib.suppress(DataError):
        act()


# -- RLDS --------------------------------------------------------------------------------------------------------------


def descriptions(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.glob(f"*/*/{name}"))]


def rlds_info(folder: Path) -> Reader:
    from vla_robot.core.untrusted import parse_json
    from vla_robot.data.formats.rlds.splits import parse_info, parse_parts

    def read(data: bytes) -> None:
        info = parse_info(parse_json(data, "dataset_info.json"), "dataset_info.json")
        for expression in (*info.splits, "all", "train[:95%]", "train[-3:]+val"):
            keep_errors(lambda text=expression: parse_parts(text, info.splits, "dataset_info.json"))

    return Simple("rlds_info", descriptions("dataset_info.json"), mutate.mutated_json, read)


def rlds_samples() -> list[tuple[Any, bytes]]:
    """(features, smallest record) of each sample."""
    from vla_robot.data.formats.rlds.features import parse_features
    from vla_robot.data.formats.rlds.tfrecord import Record, walk

    found: list[tuple[Any, bytes]] = []
    for folder in sorted(SAMPLES.glob("*/*")):
        if (folder / "features.json").is_file():
            features = parse_features(json.loads((folder / "features.json").read_text()), "features.json")
            shards = [path.read_bytes() for path in folder.glob("*tfrecord*")]
            walked = (walk(lambda o, n, d=data: d[o : o + n], len(data)) for data in shards)
            records = [r.content for r in itertools.chain(*walked) if isinstance(r, Record)]
            found.append((features, small_record(min(records, key=len), features)))
    return found


def small_record(record: bytes, features: Any) -> bytes:
    """Two steps of an episode, so that an input costs little."""
    from vla_robot.data.formats.rlds.decode import count_steps
    from vla_robot.data.formats.rlds.example import encode

    lists = lists_of(record)
    steps = count_steps(record, places_of(record), features)
    short = {
        name: values[: len(values) // steps * 2] if name.startswith("steps/") and len(values) >= steps else values
        for name, values in lists.items()
    }
    tiny = {
        n: [png(FRAME) if v[:2] in (b"\x89P", b"\xff\xd8") else v for v in vs] if isinstance(vs, list) else vs
        for n, vs in short.items()
    }
    return encode(tiny)


def places_of(record: bytes) -> Any:
    from vla_robot.data.formats.rlds.example import places

    return places(record)


def lists_of(record: bytes) -> dict[str, Any]:
    from vla_robot.data.formats.rlds.example import BYTES, FLOATS, byte_places, floats, ints

    lists: dict[str, Any] = {}
    for name, place in places_of(record).items():
        if place.kind == BYTES:
            lists[name] = [record[start : start + size] for start, size in byte_places(record, place)]
        else:
            lists[name] = floats(record, place) if place.kind == FLOATS else ints(record, place)
    return lists


def read_record(record: bytes, features: Any) -> None:
    """As the index and the reader do, each field by itself."""
    from vla_robot.data.formats.rlds.decode import count_steps, decode_metadata, decode_steps

    places = places_of(record)
    steps = count_steps(record, places, features)
    for leaf in features.steps.values():
        keep_errors(lambda leaf=leaf: looked_at(decode_steps(leaf, record, places, steps, "record 0")))
    for leaf in features.episode.values():
        keep_errors(lambda leaf=leaf: decode_metadata(leaf, record, places, "record 0"))


def read_all(source: Any) -> None:
    """Each episode at once; where that is refused, each field by itself."""
    for index in range(len(source)):
        try:
            for column in source.episode(index).steps.values():
                keep_errors(lambda column=column: looked_at(column))
        except DataError:
            for field in source.fields:
                keep_errors(lambda field=field, index=index: looked_at(source.episode(index, [field]).steps[field]))


def looked_at(column: Any) -> None:
    if hasattr(column, "decode"):
        column.decode(0)


def rlds_features(folder: Path) -> Reader:
    """features.json, and a valid record read by it."""
    from vla_robot.core.untrusted import parse_json
    from vla_robot.data.formats.rlds.features import parse_features, to_tree

    records = [record for _, record in rlds_samples()]

    def read(data: bytes) -> None:
        features = parse_features(parse_json(data, "features.json"), "features.json")
        to_tree(features)
        for record in records:
            keep_errors(lambda record=record: read_record(record, features))

    return Simple("rlds_features", descriptions("features.json"), mutate.mutated_json, read)


class RldsRecord:
    """A record read by valid features."""

    name = "rlds_record"

    def __init__(self, folder: Path) -> None:
        self.seeds = rlds_samples()

    def mutate(self, seed: tuple[Any, bytes], chance: random.Random) -> tuple[Any, bytes]:
        from vla_robot.data.formats.rlds.example import encode

        features, record = seed
        if chance.random() < 0.4:
            return features, mutate.scrambled(record, chance)
        lists = lists_of(record)
        name = chance.choice(list(lists))
        odd = (
            [],
            [b""],
            [b"\xff"] * 3,
            np.empty(0, np.int64),
            np.array([-1, 2**62]),
            np.array([np.nan, np.inf], np.float32),
            zlib.compress(b"\0" * 100_000).split(b"never"),
        )
        values = lists[name]
        what = chance.random()
        if what < 0.3:
            lists[name] = chance.choice(odd)
        elif what < 0.5:
            lists[name] = values[:-1]
        elif what < 0.7:
            lists[name] = [*values, *values] if isinstance(values, list) else np.concatenate([values, values])
        elif what < 0.8:
            del lists[name]
        elif isinstance(values, list) and values:
            lists[name] = [mutate.scrambled(values[0], chance), *values[1:]]
        else:
            lists[name] = np.array(values)[::-1].astype(chance.choice([np.int64, np.float32]))
        return features, encode(lists)

    def read(self, data: tuple[Any, bytes]) -> None:
        features, record = data
        read_record(record, features)


def rlds_shard(folder: Path) -> Reader:
    """A TFRecord file: what is not intact is told as Damage, never raised."""
    from vla_robot.data.formats.rlds.tfrecord import Record, frame_record, walk

    seeds = [b"".join(frame_record(record[:400]) for _, record in rlds_samples()) for _ in range(2)]

    def read(data: bytes) -> None:
        found = list(walk(lambda offset, size: data[offset : offset + size], len(data)))
        assert sum(len(r.content) for r in found if isinstance(r, Record)) <= len(data)

    return Simple("rlds_shard", seeds, mutate.scrambled, read)


def rlds_index(folder: Path) -> Reader:
    """The file that remembers where records lie: one that is wrong is made anew, or is an error."""
    from vla_robot.data.formats.rlds import index
    from vla_robot.data.formats.rlds.reader import open_rlds

    index.THREADS = 1  # to start more takes longer than to read so little
    sample = folder / "sample"
    small = min(SAMPLES.glob("*/*/dataset_info.json"), key=lambda p: sum(f.stat().st_size for f in p.parent.iterdir()))
    shutil.copytree(small.parent, sample)
    lengths = open_rlds(sample).lengths.tolist()
    path = sample / ".vla_index" / "train.index"

    def change(data: bytes, chance: random.Random) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header, rest = data[8 : 8 + size], data[8 + size :]
        if chance.random() < 0.6:
            header = mutate.mutated_json(header, chance)
            return len(header).to_bytes(8, "little") + header + rest
        return (
            data[: 8 + size] + mutate.scrambled(rest, chance)
            if chance.random() < 0.7
            else mutate.scrambled(data, chance)
        )

    def read(data: bytes) -> None:
        path.write_bytes(data)
        source = open_rlds(sample)
        keep_errors(lambda: source.episode(0, ["action"]))
        keep_errors(lambda: source.encoded(0, source.features.cameras[0], 0))
        assert len(source) == len(lengths)

    return Simple("rlds_index", [path.read_bytes()], change, read)


# -- LeRobot -----------------------------------------------------------------------------------------------------------


def lerobot_dataset(root: Path) -> None:
    """Two tiny episodes."""
    from vla_robot.core.messages import StepResult
    from vla_robot.data.demonstration import DemonstrationBuilder
    from vla_robot.data.formats.lerobot.writer import LeRobotWriter

    with LeRobotWriter(root) as writer:
        for seed in range(2):
            builder = DemonstrationBuilder(None)
            for step in range(2):
                observation = Observation({"front": FRAME}, np.zeros(2), "lift", stamp_ns=step, step=step)
                action = np.full(2, 0.01)
                builder.add(observation, action, StepResult(observation, action, False, False, False))
            writer.write(builder.finish(ARM, seed, "expert"))


def lerobot_info(folder: Path) -> Reader:
    """info.json, with everything that is read by it."""
    from vla_robot.data.formats.lerobot.source import open_lerobot

    root = folder / "demos"
    lerobot_dataset(root)
    path = root / "meta" / "info.json"
    info = json.loads(path.read_bytes())
    film = {"dtype": "video", "shape": [8, 8, 3], "names": ["height", "width", "channels"], "info": {"video.fps": 10}}
    depth = {"dtype": "image", "shape": [8, 8, 1], "names": None, "info": {"is_depth_map": True, "depth_unit": "mm"}}
    seeds = [info, {**info, "features": {**info["features"], "observation.images.film": film, "depth": depth}}]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        source = open_lerobot(root)
        for field in source.fields:
            keep_errors(lambda field=field: looked_at(source.episode(0, [field]).steps[field]))

    return Simple("lerobot_info", [json.dumps(seed).encode() for seed in seeds], mutate.mutated_json, read)


def lerobot_lines(folder: Path) -> Reader:
    """The lists of version 2: a line for each episode, a line for each task, and info.json with them."""
    from vla_robot.data.formats.lerobot.source import open_lerobot

    root = folder / "old"
    lerobot_dataset(root)
    for number, table in enumerate(sorted((root / "data" / "chunk-000").iterdir())):
        table.rename(table.with_name(f"episode_{number:06d}.parquet"))
    info = json.loads((root / "meta" / "info.json").read_bytes())
    film = {"dtype": "video", "shape": [8, 8, 3], "names": ["height", "width", "channels"], "info": {"video.fps": 10}}
    old = {**info, "codebase_version": "v2.1", "features": {**info["features"], "observation.images.film": film}}
    (root / "meta" / "info.json").write_text(json.dumps(old))
    episode = {"episode_index": 0, "tasks": ["lift"], "length": 2}
    seeds = [episode, {"task_index": 0, "task": "lift"}]

    def read(data: bytes) -> None:
        is_task = b"task_index" in data
        other = json.dumps({**episode, "episode_index": 1}).encode()
        lines = json.dumps(episode).encode() if is_task else data
        (root / "meta" / "episodes.jsonl").write_bytes(lines + b"\n" + other + b"\n")
        (root / "meta" / "tasks.jsonl").write_bytes(data if is_task else json.dumps(seeds[1]).encode())
        read_all(open_lerobot(root))

    return Simple("lerobot_lines", [json.dumps(seed).encode() for seed in seeds], mutate.mutated_json, read)


class LeRobotTables:
    """One of the tables of a dataset, with its bytes or its columns changed."""

    name = "lerobot_tables"

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        pa.set_cpu_count(1)  # to start threads takes longer than to read two rows
        self._root = folder / "demos"
        lerobot_dataset(self._root)
        paths = sorted(self._root.rglob("*.parquet"))
        self._valid = {str(path.relative_to(self._root)): path.read_bytes() for path in paths}
        self.seeds = list(self._valid.items())

    def mutate(self, seed: tuple[str, bytes], chance: random.Random) -> tuple[str, bytes]:
        name, data = seed
        return name, mutate.scrambled(data, chance) if chance.random() < 0.5 else self._rebuilt(data, chance)

    def _rebuilt(self, data: bytes, chance: random.Random) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        for _ in range(chance.choice((1, 1, 2))):
            place, rows = chance.randrange(table.num_columns), table.num_rows
            what = chance.random()
            if what < 0.7:
                table = table.set_column(place, table.column_names[place], odd_column(rows, chance))
            elif what < 0.8:
                table = table.remove_column(place)
            elif what < 0.9:
                table = table.slice(chance.randrange(rows + 1))
            else:
                table = table.append_column(
                    chance.choice(("", "x.y", "\x1b", *table.column_names)), odd_column(rows, chance)
                )
        if chance.random() < 0.2:
            table = table.replace_schema_metadata(
                {b"pandas": mutate.mutated_json(b'{"index_columns": ["task"]}', chance)}
            )
        file = io.BytesIO()
        try:
            pq.write_table(table, file)
        except (pa.ArrowException, ValueError):
            return mutate.scrambled(data, chance)
        return file.getvalue()

    def read(self, data: tuple[str, bytes]) -> None:
        from vla_robot.data.formats.lerobot.source import open_lerobot

        name, content = data
        (self._root / name).write_bytes(content)
        try:
            source = open_lerobot(self._root)
            read_all(source)
        finally:
            (self._root / name).write_bytes(self._valid[name])


def odd_column(rows: int, chance: random.Random) -> Any:
    import pyarrow as pa

    values: tuple[tuple[Any, Any], ...] = (
        (None, pa.null()),
        (None, pa.float32()),
        (-1, pa.int64()),
        (2**62, pa.int64()),
        (2**64 - 1, pa.uint64()),
        (float("nan"), pa.float64()),
        (True, pa.bool_()),
        ("x\x1b", pa.string()),
        (b"\xff", pa.binary()),
        ([], pa.list_(pa.float32())),
        ([None], pa.list_(pa.float32())),
        ([[1.0], []], pa.list_(pa.list_(pa.float32()))),
        ([1.0, 2.0], pa.list_(pa.float32(), 2)),
        (None, pa.list_(pa.float32(), 2)),
        ({"bytes": b"\x89PNG", "path": None}, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ({"bytes": None, "path": "../x"}, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ({"a": 1}, pa.struct([("a", pa.int8())])),
        (0, pa.timestamp("ns")),
        (0, pa.date32()),
        (0, pa.duration("s")),
        ([("a", 1)], pa.map_(pa.string(), pa.int64())),
    )
    value, kind = chance.choice(values)
    column = pa.array([value] * rows, kind)
    return column.dictionary_encode() if chance.random() < 0.1 and kind in (pa.string(), pa.int64()) else column


def notes(folder: Path) -> Reader:
    """JSON files beside a dataset: embodiment, origin, lines about episodes, questions."""
    from dataclasses import asdict

    from vla_robot.data.formats.conversion_metadata import describe_source, read_origin
    from vla_robot.data.formats.lerobot.layout import read_embodiment, read_recording
    from vla_robot.data.formats.lerobot.source import _read_metadata, open_lerobot
    from vla_robot.data.questions import read_questions

    root = folder / "demos"
    lerobot_dataset(root)
    origin = json.dumps(asdict(describe_source(open_lerobot(root)))).encode()
    line = b'{"episode": 0, "metadata": {"path": "x"}}'
    question = b'{"scene": 1, "question": "what?", "answer": "a cube", "images": {"front": "a.png"}}'
    (root / "a.png").write_bytes(png(FRAME))
    seeds = [(root / "meta" / "embodiment.json").read_bytes(), origin, line, question]
    seeds.append((root / "meta" / "recording.jsonl").read_bytes().splitlines()[0])

    def read(data: bytes) -> None:
        (root / "meta" / "embodiment.json").write_bytes(data)
        keep_errors(lambda: read_embodiment(root))
        (root / "conversion.json").write_bytes(data)
        keep_errors(lambda: read_origin(root / "conversion.json"))
        (root / "meta" / "recording.jsonl").write_bytes(data + b"\n")
        keep_errors(lambda: read_recording(root))
        (root / "lines.jsonl").write_bytes(data + b"\n")
        keep_errors(lambda: _read_metadata.__wrapped__(root / "lines.jsonl", 0))
        for name in ("train.jsonl", "held_out.jsonl"):
            (root / name).write_bytes(data + b"\n")
        read_questions(root)

    return Simple("notes", seeds, mutate.mutated_json, read)


# -- HDF5 and logs -----------------------------------------------------------------------------------------------------


class Hdf5:
    """Files of demonstrations: bytes changed, or built with something odd in them."""

    name = "hdf5"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "demo.hdf5"
        self._built = folder / "built.hdf5"
        self.seeds = [self._build(None), *(self._build(random.Random(seed)) for seed in range(40))]

    def _build(self, chance: random.Random | None) -> bytes:
        import h5py

        with h5py.File(self._built, "w") as file:
            file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
            for demo in ("demo_0", "demo_1"):
                file[f"data/{demo}/actions"] = np.zeros((3, 2))
                file[f"data/{demo}/obs/state"] = np.zeros((3, 2), np.float32)
                file.create_dataset(f"data/{demo}/obs/front", data=np.stack([FRAME] * 3), compression="gzip")
                file[f"data/{demo}"].attrs["ep_meta"] = json.dumps({"lang": "lift"})
            file["mask/train"] = np.array([b"demo_0"])
            for _ in range(chance.choice((1, 2, 3)) if chance else 0):
                try:
                    add_oddity(file, chance or random.Random())
                except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError):
                    continue  # h5py refuses that one itself
        return self._built.read_bytes()

    def mutate(self, seed: bytes, chance: random.Random) -> bytes:
        return self._build(chance) if chance.random() < 0.15 else mutate.scrambled(seed, chance)

    def read(self, data: bytes) -> None:
        from vla_robot.data.formats.hdf5 import open_hdf5

        self._path.write_bytes(data)
        source = open_hdf5(self._path, "all")
        read_all(source)


def add_oddity(file: Any, chance: random.Random) -> None:
    """One thing that no demonstration has."""
    import h5py

    place = chance.choice(
        ("data/demo_0/", "data/demo_1/", "data/demo_0/obs/", "data/demo_1/obs/", "mask/", "data/", "")
    )
    name = place + chance.choice(
        ("actions", "state", "front", "train", "valid", "odd", "\x1b", "x" * 300, "demo_0", "demo_9")
    )
    if name in file and chance.random() < 0.7:
        del file[name]
    values: tuple[Any, ...] = (
        np.zeros((3, 2)),
        np.zeros(()),
        np.zeros((0, 2)),
        np.array([b"demo_0", b"demo_7"]),
        np.array(["lift", "open"], dtype=object),
        np.array([b"\xff\xfe"]),
        h5py.Empty("f4"),
        np.zeros(3, np.dtype([("a", "i4"), ("b", "f8")])),
        np.array([1 + 2j] * 3),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.array([True, False, True]),
        np.full((3, 2), np.nan),
        "a text",
    )
    what = chance.random()
    if what < 0.45:
        data = chance.choice(values)
        file.create_dataset(
            name,
            data=data,
            **({"dtype": h5py.string_dtype()} if getattr(data, "dtype", np.dtype("f4")).kind == "O" else {}),
        )
    elif what < 0.55:
        file.create_dataset(name, (3, chance.choice((2**20, 2**33, 2**50))), "u1", chunks=(1, 1024), fillvalue=7)
    elif what < 0.6:
        file.create_dataset(name, (chance.choice((3, 2**31)),), h5py.vlen_dtype(np.dtype("f4")))
    elif what < 0.65:
        file.create_dataset(name, (3,), h5py.ref_dtype)
    elif what < 0.7:
        file[name] = h5py.SoftLink(chance.choice(("/data/demo_0/actions", "/nowhere", "/" + name, "..", "/data")))
    elif what < 0.75:
        file[name] = h5py.ExternalLink(chance.choice(("/etc/passwd", "other.hdf5", "")), chance.choice(("/", "/x")))
    elif what < 0.8:
        file[name] = file[chance.choice(("/", "data", "data/demo_0", "data/demo_0/obs"))]
    elif what < 0.85:
        file.create_dataset(name, (3, 2), "u1", external=[("/etc/passwd", 0, 6)])
    else:
        node = file[chance.choice(("data", "data/demo_0", "data/demo_0/actions"))]
        attribute = chance.choice(("env_args", "ep_meta", "problem_info", "language_instruction", "num_samples"))
        values = (
            b"\xff",
            "x",
            7,
            [1, 2],
            np.nan,
            json.dumps({"env_kwargs": None}),
            "[" * 5000,
            h5py.Empty("f4"),
            np.zeros(99),
        )
        jsons = (
            '{"lang": 5}',
            '{"lang": ["a", 1]}',
            '{"env_kwargs": {"control_freq": "x"}}',
            '{"env_kwargs": {"control_freq": 1e400}}',
        )
        node.attrs[attribute] = chance.choice((*values, *jsons))


class Vlalog:
    """Episode logs: records changed with right checksums, or the bytes of the file."""

    name = "vlalog"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "a.vlalog"
        observation = {"step": 0, "stamp_ns": 0, "state": [0.0, 1.0], "frames": {"front": png(FRAME)}}
        step = {
            "kind": "step",
            "observation": observation,
            "commanded": [0.0],
            "executed": [0.0],
            "command_ns": 5,
            "success": False,
            "clamps": [{"dim": "x", "cause": "range", "wanted": 2.0, "allowed": 1.0}],
            "stages_ms": {"policy": 1.0},
            "intervention": False,
            "held": False,
            "policy_action": [0.0],
        }
        header = {"kind": "header", "instruction": "lift", "seed": 1, "embodiment": ARM.to_dict()}
        end = {"kind": "end", "last": observation, "summary": {"success": True}}
        self.seeds = [tuple(msgpack.packb(record) for record in (header, step, step, end))]

    def mutate(self, seed: tuple[bytes, ...], chance: random.Random) -> tuple[bytes, ...] | bytes:
        records = list(seed)
        for _ in range(chance.choice((1, 1, 2))):
            place = chance.randrange(len(records))
            records[place] = mutate.mutated_msgpack(records[place], chance)
        if chance.random() < 0.1:
            chance.shuffle(records)
        return mutate.scrambled(self._file(records), chance) if chance.random() < 0.2 else tuple(records)

    def _file(self, records: Sequence[bytes]) -> bytes:
        from vla_robot.record.episode import MAGIC

        return MAGIC + b"".join(struct.pack("<II", len(r), zlib.crc32(r)) + r for r in records)

    def read(self, data: Any) -> None:
        from vla_robot.record.episode import frames_of, read_episode

        self._path.write_bytes(data if isinstance(data, bytes) else self._file(data))
        log = read_episode(self._path)
        list(frames_of(log))


# -- peers -------------------------------------------------------------------------------------------------------------


def rest(folder: Path) -> Reader:
    from vla_robot.serve.interop.rest import pack_array, read_observation
    from vla_robot.web.http_json import parse_object

    single = {"image": pack_array(FRAME), "instruction": "lift", "unnorm_key": "bridge_orig"}
    several = {
        "full_image": pack_array(FRAME),
        "wrist_image": pack_array(FRAME),
        "state": [0.5, 1],
        "instruction": "lift",
    }
    numbers = {**several, "state": pack_array(np.zeros(8))}

    def read(data: bytes) -> None:
        payload = parse_object(data)
        for cameras in ((), ("front", "wrist")):
            keep_peer_errors(lambda cameras=cameras: read_observation(payload, cameras))

    return Simple("rest", [json.dumps(seed).encode() for seed in (single, several, numbers)], mutate.mutated_json, read)


def keep_peer_errors(act: Callable[[], Any]) -> None:
    from vla_robot.core.errors import VlaError

    with contextlib.suppress(VlaError):
        act()


def openpi(folder: Path) -> Reader:
    from vla_robot.recipe.policy import OpenpiRecipe
    from vla_robot.recipe.reading.load import read as read_recipe
    from vla_robot.serve.interop.mapping import PeerMapping
    from vla_robot.serve.interop.openpi_schema import ExampleWords
    from vla_robot.serve.interop.openpi_wire import pack, unpack

    peer = read_recipe(OpenpiRecipe, str(REPOSITORY / "policies" / "openpi_libero.toml")).peer
    names = [name for entry in peer.state for name in entry.names]
    actions = [name for entry in peer.action for name in entry.names]
    arm = toy_embodiment(
        name="arm",
        axes=[Dim(n, "m", -1, 1) for n in actions],
        gripper=None,
        state=[Dim(n, "m", -1, 1) for n in dict.fromkeys([*names, "rx", "ry", "rz"])],
        cameras=[entry.camera for entry in peer.images],
        height=8,
        width=8,
        rate_hz=peer.rate_hz,
    )
    mapping = PeerMapping(peer, arm)
    observation = Observation({}, np.zeros(len(arm.state)), "lift", 0, 0)
    words = ExampleWords(("front", "wrist"), ARM)
    request = {
        "observation/image": FRAME,
        "observation/wrist_image": FRAME,
        "observation/state": np.zeros(8),
        "prompt": "lift",
    }
    aloha = {
        "images": {"cam_high": FRAME.transpose(2, 0, 1), "cam_left_wrist": FRAME},
        "state": np.zeros(14),
        "prompt": "x",
    }
    answer = {"actions": np.zeros((10, 7)), "server_timing": {"infer_ms": 5.0}}

    def read(data: bytes) -> None:
        value = unpack(data)
        keep_peer_errors(lambda: words.read(value))
        mapping.chunk(value, observation, {})

    return Simple("openpi", [pack(message) for message in (request, aloha, answer)], mutate.mutated_msgpack, read)


def groot(folder: Path) -> Reader:
    from vla_robot.serve.interop.groot_policy import MODALITIES, _listed, _read
    from vla_robot.serve.interop.groot_wire import pack

    answer = {"action.arm": np.zeros((1, 16, 6), np.float32), "action.gripper": np.zeros((16, 1))}
    modality = {"__ModalityConfig__": True, "as_json": json.dumps({"delta_indices": [0], "modality_keys": ["front"]})}
    seeds = [
        pack(cast(Any, [answer, {}]), "npy"),
        pack(answer, "msgpack_numpy"),
        msgpack.packb({"video": modality, "state": {}}),
    ]

    def read(data: bytes) -> None:
        value = _read(data)
        if isinstance(value, dict):
            for name in MODALITIES:
                _listed(value, name, "modality_keys")

    return Simple("groot", seeds, mutate.mutated_msgpack, read)


# -- recipes and checkpoints -------------------------------------------------------------------------------------------


class Toml:
    """Recipes of every kind."""

    name = "toml"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        paths = [
            *REPOSITORY.glob("envs/*.toml"),
            *REPOSITORY.glob("policies/*.toml"),
            *REPOSITORY.glob("launch/*.toml"),
        ]
        paths += [*REPOSITORY.glob("envs/teleoperators/*.toml"), *REPOSITORY.glob("datasets/**/*.toml")]
        self.seeds = [(path.relative_to(REPOSITORY).parts[0], path.read_bytes()) for path in sorted(paths)]

    def mutate(self, seed: tuple[str, bytes], chance: random.Random) -> tuple[str, bytes]:
        kind, data = seed
        return kind, chance.choice(mutate.TEXTS) if chance.random() < 0.01 else mutate.mutated_lines(data, chance)

    def read(self, data: tuple[Any, bytes]) -> None:
        from vla_robot.recipe.reading.load import parse, read_table
        from vla_robot.recipe.reading.schemas import schema_for

        kind, text = data
        path = self._folder / "a.toml"
        path.write_bytes(text)
        schema = schema_for(kind, path)
        parse(schema, read_table(schema, path), path)


def statistics(folder: Path) -> Reader:
    from vla_robot.core.normalise import MIN_MAX, Q99, unnormalise
    from vla_robot.policy.vla.inputs.statistics import Statistics, require_statistics
    from vla_robot.policy.vla.json_files import read_json

    path = folder / "dataset_statistics.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        datasets = read_json(path)
        for bounds in (Q99, MIN_MAX):
            given = Statistics(datasets, None, bounds)
            keep_peer_errors(lambda given=given: require_statistics(given))
            for name in datasets:
                for what in ("action", "proprio"):
                    keep_peer_errors(lambda given=given, what=what, name=name: used(given.of(what, name)))

    def used(stats: Any) -> None:
        unnormalise(np.zeros(len(stats)), stats)

    seeds = [(REPOSITORY / "policies" / "openvla_nano" / "dataset_statistics.json").read_bytes()]
    return Simple("statistics", seeds, mutate.mutated_json, read)


class Checkpoint:
    """The small files of a checkpoint's folder."""

    name = "checkpoint"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoint"
        self._folder.mkdir()
        source = REPOSITORY / "policies" / "openvla_nano"
        names = ("config.json", "dataset_statistics.json", "embodiment.json", "preprocessor_config.json")
        self._valid: Mapping[str, bytes] = {name: (source / name).read_bytes() for name in names}
        for name, content in self._valid.items():
            (self._folder / name).write_bytes(content)
        self.seeds = list(self._valid.items())

    def mutate(self, seed: tuple[str, bytes], chance: random.Random) -> tuple[str, bytes]:
        return seed[0], mutate.mutated_json(seed[1], chance)

    def read(self, data: tuple[str, bytes]) -> None:
        from vla_robot.policy.openvla import checkpoint

        name, content = data
        (self._folder / name).write_bytes(content)
        try:
            checkpoint.read_checkpoint(self._folder)
        finally:
            (self._folder / name).write_bytes(self._valid[name])


def safetensors(folder: Path) -> Reader:
    """Headers of weight files, and the index that names them."""
    from vla_robot.policy.vla.safetensors_files import INDEX, SINGLE, stored_in

    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    single = len(text).to_bytes(8, "little") + text + b"\0" * 16
    index = json.dumps(
        {"metadata": {"total_size": 16}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    ).encode()

    def change(data: bytes, chance: random.Random) -> bytes:
        if data == index:
            return mutate.mutated_json(data, chance)
        if chance.random() < 0.3:
            return mutate.scrambled(data, chance)
        changed = mutate.mutated_json(text, chance)
        return len(changed).to_bytes(8, "little") + changed + b"\0" * 16

    def read(data: bytes) -> None:
        is_index = b"weight_map" in data
        (folder / INDEX).unlink(missing_ok=True)
        (folder / (INDEX if is_index else SINGLE)).write_bytes(data)
        (folder / "model-00001-of-00001.safetensors").write_bytes(single)
        stored_in(folder)

    return Simple("safetensors", [single, index], change, read)
