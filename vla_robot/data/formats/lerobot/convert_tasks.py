"""Converts any source to LeRobot by tasks, with the same bytes as one process.

    pass 1   a task returns the instructions of its episodes           task_index follows their order
    pass 2   a task writes its episodes' data files, one each, and returns their statistics
    driver   appends the episodes' rows in order, as `LeRobotTables` does: without its row an episode does not exist

The same command goes on after the last row. Data files beyond it are written again.

Of a dataset behind a URL, the driver keeps meta/ in the user's cache until all episodes are written. Then it uploads
meta/, info.json last: without it, no reader takes the folder for a dataset.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial, reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import writing
from vla_robot.core.host.user_cache import user_cache
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.data.formats.conversion_metadata import FILE, Converted, Options, begin_in, require_episodes
from vla_robot.data.formats.lerobot.convert import LeRobotConversion, metadata_of, note_metadata
from vla_robot.data.formats.lerobot.layout import DATA, INFO, numbered_file, parquet_of
from vla_robot.data.formats.lerobot.tables import EpisodeTable, LeRobotTables, Place, Written, data_of, write_data
from vla_robot.data.formats.pieces import Piece, pieces_of
from vla_robot.data.formats.storage import Storage, open_storage

NEEDS = Resources(cpus=1.0, memory_mb=1000)
"""What writing an episode takes: one episode, decoded and encoded."""
PIECE_STEPS = 2000
"""Most steps of a task, if an episode has not more."""


def to_lerobot_by_tasks(
    source: EpisodeSource,
    destination: Path | str,
    options: Options,
    runner: TaskRunner,
    on_progress: OnProgress = lambda done, total: None,
    piece_steps: int = PIECE_STEPS,
) -> Converted:
    """Convert to a LeRobot dataset by tasks, or continue its conversion.

    Args:
        source: the dataset.
        destination: path of the new dataset's folder, which the tasks see under the same path, or its URL.
        options: values that the source does not give.
        runner: where the tasks run.
        on_progress: called with episodes done and in all.
        piece_steps: most steps of a task.

    Raises:
        DataError: the folder holds another dataset, the source lacks a value, or writing failed.
    """
    require_episodes(source, options.split)
    plan, store = LeRobotConversion.of(source, options), open_storage(destination)
    if store.local is not None:
        return _converted(plan, store.local, store, source, runner, on_progress, piece_steps)
    if _is_finished(plan, store):
        return Converted(len(source), 0, plan.lost)
    kept = _kept_for(store, plan)
    converted = _converted(plan, kept, store, source, runner, on_progress, piece_steps)
    _publish(kept, store, converted.episodes)
    shutil.rmtree(kept)
    return converted


def _kept_for(store: Storage, plan: LeRobotConversion) -> Path:
    """Return the folder in which meta/ of a dataset behind a URL is kept until it is whole; XDG_CACHE_HOME moves it."""
    what = hashlib.sha256(json.dumps([store.location, asdict(plan.origin)], sort_keys=True).encode()).hexdigest()
    return user_cache("conversions") / what[:16]


def _is_finished(plan: LeRobotConversion, store: Storage) -> bool:
    """Return whether the dataset behind a URL is whole. Raises DataError if another one is there."""
    meta = store.inside("meta")
    files = _names(meta)
    is_there = Path(INFO).name in files
    if is_there and FILE not in files:
        raise DataError(f"{store.location} holds a LeRobot dataset that was not converted. Choose another URL.")
    begin_in(meta, FILE, plan.origin)
    return is_there


def _names(folder: Storage) -> set[str]:
    """Return the names of a folder's files; none if there is no such folder."""
    try:
        return set(folder.files())
    except DataError:
        return set()


def _publish(kept: Path, store: Storage, episodes: int) -> None:
    """Upload meta/, if all data files are there."""
    paths = [numbered_file(Path(), DATA, number) for number in range(episodes)]
    there = {folder: _names(_below(store, folder)) for folder in {path.parent for path in paths}}
    missing = [number for number, path in enumerate(paths) if path.name not in there[path.parent]]
    if missing:
        raise DataError(
            f"{store.location}: the data files of {len(missing)} episodes disappeared, first {missing[0]}. Delete "
            f"{kept}, which says that they were written, and run this again."
        )
    files = [path for path in kept.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: (path == kept / INFO, path)):
        with _below(store, path.relative_to(kept).parent).writing(path.name) as file:
            file.write(path.read_bytes())


def _below(store: Storage, folder: Path) -> Storage:
    return reduce(lambda inner, name: inner.inside(name), folder.parts, store)


def _converted(
    plan: LeRobotConversion,
    root: Path,
    store: Storage,
    source: EpisodeSource,
    runner: TaskRunner,
    on_progress: OnProgress,
    piece_steps: int,
) -> Converted:
    """Write the data files to a store, and the rest to a folder."""
    tables = LeRobotTables(root)
    try:
        plan.begin(root)
        done = tables.num_episodes
        pieces = [piece for piece in pieces_of(source, piece_steps) if piece.stop > done]
        if pieces:
            _write(plan, tables, root, store, source, pieces, runner, on_progress)
        return Converted(tables.num_episodes, tables.num_episodes - done, plan.lost)
    finally:
        tables.close()


def _write(
    plan: LeRobotConversion,
    tables: LeRobotTables,
    root: Path,
    store: Storage,
    source: EpisodeSource,
    pieces: Sequence[Piece],
    runner: TaskRunner,
    on_progress: OnProgress,
) -> None:
    done, ahead = tables.num_episodes, dict[int, _Told]()
    count = min(len(pieces), runner.most_workers(NEEDS))
    with runner.workers(nullcontext, count, NEEDS) as workers:
        tasks = _instructions(plan, pieces, done, workers.run)
        starts = list(accumulate(source.lengths.tolist(), initial=0))
        place = _Places(done, tables.next_file, starts, tables.numbered(tasks))
        with closing(workers.run(WriteEpisodes(plan, store, place), pieces)) as told:
            for each in told:
                ahead |= {one.number: one for one in each}
                while (one := ahead.pop(tables.num_episodes, None)) is not None:
                    note = partial(note_metadata, root, one.number, one.metadata)
                    tables.add(one.written, plan.rate_hz, plan.history.robot, note)
                    on_progress(tables.num_episodes, len(source))


def _instructions(
    plan: LeRobotConversion, pieces: Sequence[Piece], done: int, run: Callable[..., Any]
) -> Sequence[str]:
    """Return the instructions of all episodes from `done` on, in order, each once."""
    if plan.options.instruction is not None:
        return (plan.options.instruction,)
    with closing(run(ReadInstructions(plan, done), pieces)) as found:
        told = dict(found)
    return list(dict.fromkeys(task for start in sorted(told) for task in told[start]))


@dataclass(frozen=True)
class ReadInstructions:
    """A task: reads the instructions of a piece's episodes from `done` on."""

    plan: LeRobotConversion
    done: int

    def __call__(self, state: None, piece: Piece, should_stop: ShouldStop) -> tuple[int, tuple[str, ...]]:
        """Return the piece's first episode, and its instructions in their order, each once."""
        seen: dict[str, None] = {}
        for number, index in piece.episodes():
            if number >= self.done:
                seen |= dict.fromkeys(self.plan.instructions(piece.source.episode(index)))
        return piece.start, tuple(seen)


@dataclass(frozen=True)
class _Places:
    """Where each episode stands: episode `done` has the data file `file`; `starts` are the first frames."""

    done: int
    file: int
    starts: Sequence[int]
    tasks: dict[str, int]

    def of(self, number: int) -> Place:
        return Place(number, self.file + number - self.done, self.starts[number], self.tasks)


@dataclass(frozen=True)
class _Told:
    """What a task says of an episode that it wrote."""

    number: int
    written: Written
    metadata: dict[str, Any]


@dataclass(frozen=True)
class WriteEpisodes:
    """A task: writes the data files of a piece's episodes that are not there."""

    plan: LeRobotConversion
    store: Storage
    places: _Places

    def __call__(self, state: None, piece: Piece, should_stop: ShouldStop) -> list[_Told]:
        """Return what the driver needs for the episodes' rows."""
        told = list[_Told]()
        for number, index in piece.episodes():
            if number >= self.places.done:
                episode = piece.source.episode(index)
                written = self._write(self.places.of(number), self.plan.table(episode))
                told.append(_Told(number, written, metadata_of(episode)))
        return told

    def _write(self, place: Place, episode: EpisodeTable) -> Written:
        if self.store.local is not None:
            with writing(self.store.local):
                return write_data(self.store.local, place, episode, self.plan.rate_hz)
        table, written = data_of(place, episode, self.plan.rate_hz)
        path = numbered_file(Path(), DATA, place.data_file)
        with _below(self.store, path.parent).writing(path.name) as file:
            file.write(parquet_of(table))
        return written
