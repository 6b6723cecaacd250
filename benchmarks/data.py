"""`vla bench data`: frames per second and resident memory, by order and number of workers, cold and warm.

    in order    whole episodes, one after another, as statistics and conversions read
    shuffled    single frames at random, as training reads: one read from the disk, then decoding

Workers are processes, each with its share of the frames; their rates are added. Cold means that the system was asked
to drop the files from its cache first; it may keep a file that another program reads.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import DataError
from vla_robot.core.host.provenance import row
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.images import decode_image
from vla_robot.data.formats.open import open_source

Order = Literal["in order", "shuffled"]
ORDERS: tuple[Order, ...] = ("in order", "shuffled")
SEED = 0


@dataclass(frozen=True)
class DataArgs:
    """Measure frames per second and memory of reading and decoding a dataset."""

    path: Annotated[str, tyro.conf.Positional, option("PATH")]
    """an RLDS or LeRobot folder, or a robomimic HDF5 file"""
    split: Annotated[str, option("SPLIT")] = "train"
    """its part: train, val, train[:95%], all"""
    workers: Annotated[tuple[int, ...], option("N ...")] = (1, 2)
    """numbers of processes to try"""
    seconds: Annotated[float, option("S")] = 3.0
    """duration of each case; a small dataset is read repeatedly"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or not self.workers or min(self.workers) < 1:
            raise DataError("--seconds must be above 0, and --workers numbers of at least 1.")


@dataclass(frozen=True)
class Share:
    """The work of one worker.

    Attributes:
        frames: number of decoded frames.
        seconds: duration [s].
        resident_mb: memory of the process afterwards, with its libraries [MB].
    """

    frames: int
    seconds: float
    resident_mb: float


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        order: order of the frames.
        workers: number of processes.
        cold: the files were read from the disk, in a single pass.
        frames_per_second: rate of all workers together.
        resident_mb: memory of the largest worker [MB].
    """

    order: Order
    workers: int
    cold: bool
    frames_per_second: float
    resident_mb: float

    @property
    def name(self) -> str:
        return f"{self.order}/{self.workers} workers/{'cold' if self.cold else 'warm'}"


def main(args: DataArgs) -> int:
    """Measure, and print a table.

    Raises:
        DataError: the path is no dataset, or it has no frames.
    """
    source = open_source(args.path, args.split)
    cameras = _cameras(source)
    console = Terminal()
    console.print(
        f"vla bench data: {source.name}, {len(source)} episodes, {int(source.lengths.sum()) * len(cameras)} frames of "
        f"{', '.join(cameras)}",
        soft_wrap=True,
    )
    cases = [
        measure(source, order, workers, cold, args.seconds)
        for order in ORDERS
        for workers in args.workers
        for cold in (True, False)
    ]
    console.print(_table(cases))
    if args.json:
        write_json(args.json, "bench data", [row for case in cases for row in _rows(case)], dataset=source.name)
    return 0


def measure(source: EpisodeSource, order: Order, workers: int, cold: bool, seconds: float) -> Case:
    """Measure one case; a cold one is a single pass, since a second one would be warm."""
    if cold:
        _forget(source.location)
    spawn = multiprocessing.get_context("spawn")  # a fork would count this process's memory as the worker's
    with ProcessPoolExecutor(workers, spawn) as pool:
        jobs = [pool.submit(_read, source, order, i, workers, 0.0 if cold else seconds) for i in range(workers)]
        shares = [job.result() for job in jobs]
    rate = sum(share.frames / share.seconds for share in shares)
    return Case(order, workers, cold, rate, max(share.resident_mb for share in shares))


def _read(source: EpisodeSource, order: Order, worker: int, workers: int, seconds: float) -> Share:
    """Read a worker's share at least once, and repeat it until the time is over."""
    decode_image(_tiny_png(), "uint8", "warming up")  # loads the decoder
    places = _places(source, order)[worker::workers]
    frames, started_s = 0, time.perf_counter()
    while not frames or time.perf_counter() - started_s < seconds:
        for place in places:
            frames += _decode_episode(source, place[0]) if order == "in order" else _decode_step(source, *place)
    return Share(frames, time.perf_counter() - started_s, _resident_mb())


def _places(source: EpisodeSource, order: Order) -> Sequence[tuple[int, int]]:
    """Return (episode, step) of the frames in their order; step 0 for a whole episode."""
    if order == "in order":
        return [(index, 0) for index in range(len(source))]
    places = [(index, step) for index, length in enumerate(source.lengths.tolist()) for step in range(length)]
    return [places[i] for i in np.random.default_rng(SEED).permutation(len(places))]


def _decode_episode(source: EpisodeSource, index: int) -> int:
    episode = source.episode(index)
    films = [episode.frames(camera) for camera in _cameras(source)]
    return sum(1 for film in films for step in range(len(film)) if film.decode(step).size)


def _decode_step(source: EpisodeSource, index: int, step: int) -> int:
    cameras = _cameras(source)
    for camera in cameras:
        decode_image(source.encoded(index, camera, step), source.fields[camera].dtype, camera)
    return len(cameras)


def _cameras(source: EpisodeSource) -> list[str]:
    cameras = [name for name, field in source.fields.items() if field.kind == "image"]
    if not cameras:
        raise DataError(f"{source.location} has no frames to read. Fields: {', '.join(source.fields)}.")
    return cameras


def _forget(location: str) -> None:
    """Ask the system to drop the files from its cache; does nothing without files at `location`."""
    root = Path(location)
    for path in [root, *root.rglob("*")]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _tiny_png() -> bytes:
    from vla_robot.data.formats.png import encode

    return encode(np.zeros((2, 2, 3), np.uint8))


def _resident_mb() -> float:
    """Return the memory of this process alone [MB]; pages of mapped files belong to the system's cache."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def _table(cases: Sequence[Case]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("order", "workers", "files", "frames/s", "memory of a worker"):
        table.add_column(name, justify="left" if name in ("order", "files") else "right")
    for case in cases:
        files = "cold" if case.cold else "warm"
        rate, memory = f"{case.frames_per_second:,.0f}", f"{case.resident_mb:.0f} MB"
        table.add_row(case.order, str(case.workers), files, rate, memory)
    return table


def _rows(case: Case) -> list[dict[str, Any]]:
    values = (("rate", case.frames_per_second, "frames/s"), ("memory", case.resident_mb, "MB"))
    return [row(f"{case.name}/{what}", value, unit) for what, value, unit in values]
