"""Converts any source to LeRobot by tasks, with the same bytes as one process.

    pass 1   a task returns the instructions of its episodes           task_index follows their order
    pass 2   a task writes its episodes' data files, one each, and returns their statistics
    driver   appends the episodes' rows in order, as `LeRobotTables` does: without its row an episode does not exist

The same command goes on after the last row. Data files beyond it are written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from vla_robot.core.episode import OnProgress
from vla_robot.core.host.durable import writing
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.data.formats.conversion_metadata import Converted, Options, require_episodes
from vla_robot.data.formats.lerobot.convert import LeRobotConversion, metadata_of, note_metadata
from vla_robot.data.formats.lerobot.tables import LeRobotTables, Place, Written, write_data
from vla_robot.data.formats.pieces import Piece, pieces_of

NEEDS = Resources(cpus=1.0, memory_mb=1000)
"""What writing an episode takes: one episode, decoded and encoded."""
PIECE_STEPS = 2000
"""Most steps of a task, if an episode has not more."""


def to_lerobot_by_tasks(
    source: EpisodeSource,
    destination: Path,
    options: Options,
    runner: TaskRunner,
    on_progress: OnProgress = lambda done, total: None,
    piece_steps: int = PIECE_STEPS,
) -> Converted:
    """Convert to a LeRobot dataset by tasks, or continue its conversion.

    Args:
        source: the dataset.
        destination: the new dataset's folder, which the tasks see under the same path.
        options: values that the source does not give.
        runner: where the tasks run.
        on_progress: called with episodes done and in all.
        piece_steps: most steps of a task.

    Raises:
        DataError: the folder holds another dataset, the source lacks a value, or writing failed.
    """
    require_episodes(source, options.split)
    plan = LeRobotConversion.of(source, options)
    tables = LeRobotTables(destination)
    try:
        plan.begin(destination)
        done = tables.num_episodes
        pieces = [piece for piece in pieces_of(source, piece_steps) if piece.stop > done]
        if pieces:
            _write(plan, tables, destination, source, pieces, runner, on_progress)
        return Converted(tables.num_episodes, tables.num_episodes - done, plan.lost)
    finally:
        tables.close()


def _write(
    plan: LeRobotConversion,
    tables: LeRobotTables,
    destination: Path,
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
        with closing(workers.run(WriteEpisodes(plan, destination, place), pieces)) as told:
            for each in told:
                ahead |= {one.number: one for one in each}
                while (one := ahead.pop(tables.num_episodes, None)) is not None:
                    note = partial(note_metadata, destination, one.number, one.metadata)
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
    destination: Path
    places: _Places

    def __call__(self, state: None, piece: Piece, should_stop: ShouldStop) -> list[_Told]:
        """Return what the driver needs for the episodes' rows."""
        told = list[_Told]()
        for number, index in piece.episodes():
            if number >= self.places.done:
                episode = piece.source.episode(index)
                with writing(self.destination):
                    table, place = self.plan.table(episode), self.places.of(number)
                    written = write_data(self.destination, place, table, self.plan.rate_hz)
                told.append(_Told(number, written, metadata_of(episode)))
        return told
