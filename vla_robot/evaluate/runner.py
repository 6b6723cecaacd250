"""Runs many episodes in a row, with logs and videos, and writes a report at the end, also after a failure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError, VlaError, in_words
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import make_folder, writing
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import machine, versions
from vla_robot.evaluate.report import write_report
from vla_robot.evaluate.report_parts import REPORT, video_path
from vla_robot.loop.control_loop import always_false
from vla_robot.loop.events import Subscriber
from vla_robot.loop.recorder import EpisodeRecorder, log_path
from vla_robot.loop.results import EpisodeResult, RunInfo, RunSummary
from vla_robot.loop.video import write_video
from vla_robot.record.episode import EpisodeLog, read_episode


def new_run_folder(root: Path, prefix: str = "") -> Path:
    """Make a folder below `root` named by the prefix and the time; no other process gets the same one.

    Raises:
        DataError: the folder cannot be made.
    """
    stamp = prefix + datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for count in itertools.count(1):
        folder = root / (stamp if count == 1 else f"{stamp}_{count}")
        with writing(folder):
            make_folder(root)
            try:
                make_folder(folder, exist_ok=False)
            except (FileExistsError, FileNotFoundError):  # another run made it, or removed its empty `root`
                continue
        return folder
    raise AssertionError("count has no end")


@contextmanager
def run_folder(out: Path | None, root: Path = Path("runs")) -> Iterator[Path]:
    """Claim the folder of a run for the block: `out`, or a new one below `root`.

    A folder that is made here and stays empty is removed, and so is `root`.

    Raises:
        DataError: another process writes to the folder, or it cannot be made.
    """
    made_root = () if root.exists() else (root,)
    folder = new_run_folder(root) if out is None else out
    with Claim(folder, made=() if out is not None else (folder, *made_root)):
        yield folder


class Drive(Protocol):
    """Runs one episode."""

    def __call__(self, seed: int, *, subscribers: Sequence[Subscriber]) -> EpisodeResult: ...


OnFailure = Callable[[RunSummary], None]
"""Called with the finished episodes of a run that a failure ended, before the failure is raised."""

OnEpisode = Callable[[EpisodeResult, EpisodeLog], None]
"""Called between episodes with a finished episode and its log on the disk; it may take long."""


def noop(result: EpisodeResult, log: EpisodeLog) -> None:
    """Do nothing: for runs without a dataset."""


def run_episodes(
    drive: Drive,
    embodiment: Embodiment,
    seeds: Sequence[int],
    *,
    info: RunInfo,
    folder: Path | None = None,
    subscribers: Sequence[Subscriber] = (),
    should_stop: Callable[[], bool] = always_false,
    video: bool = True,
    on_episode: OnEpisode = noop,
    on_failure: OnFailure = lambda summary: None,
    notes: Callable[[], Sequence[str]] = lambda: (),
) -> RunSummary:
    """Run one episode per seed. Ctrl-C and the stop flag end the run early; finished episodes are kept and reported.

    Args:
        drive: runs the episode of a seed and calls subscribers.
        embodiment: of the world or robot.
        seeds: one per episode.
        info: names and recipes for the report.
        folder: gets report.html, summary.json, episodes/ and videos/; None writes no files.
        subscribers: called with every event.
        should_stop: True ends the run.
        video: write a video of each episode, between episodes, so that the control loop is not slowed.
        on_episode: gets the result and log of each episode, if there is a folder.
        on_failure: called with the finished episodes before a failure is raised.
        notes: called at the end, for `RunSummary.notes`.

    Raises:
        VlaError: the world or the recording failed. The report on the finished episodes is written first.
        DataError: the folder holds another run's report already.
    """
    if folder is not None:
        _check_folder(folder, video)
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    recorders = [] if folder is None else [EpisodeRecorder(folder, _header(embodiment, info, started_at))]
    episodes: list[EpisodeResult] = []
    failure: Exception | None = None
    try:
        for seed in seeds:
            if should_stop():
                break
            episode = drive(seed, subscribers=(*recorders, *subscribers))
            if not episode.finished:
                break
            episodes.append(episode)
            if folder is not None and (video or on_episode is not noop):
                log = read_episode(log_path(folder, seed))
                on_episode(episode, log)
                if video:
                    write_video(log, episode, video_path(folder, seed), embodiment.rate_hz)
    except KeyboardInterrupt:
        pass  # the summary says so: fewer episodes than planned
    except Exception as error:  # also after a bug, finished episodes are reported
        failure = error
    told = None if failure is None else _told(failure)
    summary = RunSummary(info, tuple(episodes), len(seeds), started_at, told, tuple(notes()))
    if folder is not None and episodes:
        try:
            write_report(folder, summary)
        except DataError as error:  # the disk error that ended the run prevents its report, too
            failure = failure or error
    if failure is not None:
        on_failure(summary)
        raise failure
    return summary


def _told(failure: Exception) -> str:
    return str(failure) if isinstance(failure, VlaError) else in_words(failure)


def _check_folder(folder: Path, video: bool) -> None:
    """Raise before the episodes what would fail after them."""
    if (folder / REPORT).exists():
        raise DataError(f"{folder} holds the report of another run, which is never overwritten. Choose another folder.")
    if video:
        require("av", "report", "the report's videos (--videos none goes without)")


def _header(embodiment: Embodiment, info: RunInfo, started_at: str) -> dict[str, Any]:
    """Return the data that all episodes of a run share."""
    return {
        "env": info.env,
        "policy": info.policy,
        "recipes": dict(info.recipes),
        "embodiment": embodiment.to_dict(),
        "versions": versions(),
        "machine": machine(),
        "run_started_at": started_at,
    }
