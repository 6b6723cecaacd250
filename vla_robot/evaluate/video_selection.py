"""Videos of an evaluation: each episode is logged while it runs; its video is written if it is wanted, and the log is
deleted.

    DIR/POLICY/LANGUAGE/WORLD/videos/seed_N.mp4
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, write_whole, writing
from vla_robot.core.host.optional import require
from vla_robot.evaluate.evaluation import Trial, TrialKey
from vla_robot.evaluate.report_parts import video_path
from vla_robot.loop.events import Subscriber
from vla_robot.loop.recorder import EpisodeRecorder, log_path
from vla_robot.loop.video import write_video
from vla_robot.record.episode import read_episode

Videos = Literal["all", "failures", "none"]
"""failures: also includes a few successes."""

SUCCESSES = 3
"""Successes that are shown of each policy in each language and world, besides the failures."""


FRAMES_HZ = 10.0
"""Frames of a video per second of the robot's own time, where the policy is not shown more: rendering is slow."""

Film = Mapping[str, bytes]
"""Suffix of a file -> its content: of a video and of its poster."""
FILM_SUFFIXES = (".mp4", ".jpg")


def film_path(folder: Path, key: TrialKey) -> Path:
    """Return the path of a trial's video in the folder of its evaluation; the poster is the .jpg beside it."""
    return video_path(_row_folder(folder, key), key.seed)


class VideoSelection:
    """Writes the wanted videos of an evaluation. Its threads share it.

    Attributes:
        failure: error of a video that could not be written, as on a full disk; its trial still counts.
    """

    def __init__(
        self, folder: Path, videos: Videos, rates_hz: Mapping[str, float], trials: Iterable[Trial] = ()
    ) -> None:
        """
        Args:
            folder: folder of the evaluation.
            videos: which trials get a video.
            rates_hz: world -> control steps per second of its own time.
            trials: trials of an earlier command in the same folder.

        Raises:
            MissingDependencyError: PyAV is not installed, and videos are wanted.
        """
        if videos != "none":
            require("av", "report", "the report's videos (--videos none goes without)")
        self._folder = folder
        self._videos = videos
        self._rates_hz = rates_hz
        self._lock = threading.Lock()
        self.failure: DataError | None = None
        filmed = (t for t in trials if t.result.success and film_path(folder, t.key).is_file())
        self._successes = Counter(_row_folder(folder, trial.key) for trial in filmed)

    def subscribers(self, key: TrialKey) -> Sequence[Subscriber]:
        """Return the subscribers of the coming trial's events, and delete the files of an earlier attempt at it."""
        path, log = film_path(self._folder, key), log_path(_row_folder(self._folder, key), key.seed)
        for stale in (path, path.with_suffix(".jpg"), log):
            stale.unlink(missing_ok=True)
        return [] if self._videos == "none" else [EpisodeRecorder(_row_folder(self._folder, key), {})]

    def frames_every(self, world: str) -> int | None:
        """Return the steps between the frames of a video in a world; None without videos."""
        return None if self._videos == "none" else max(1, round(self._rates_hz[world] / FRAMES_HZ))

    def develop(self, trial: Trial) -> Trial:
        """Write the video of a finished trial, if it is wanted, and return the trial."""
        row = _row_folder(self._folder, trial.key)
        log = log_path(row, trial.key.seed)
        try:
            if log.is_file() and self._is_wanted(trial, row):
                rate_hz = self._rates_hz[trial.key.world]
                write_video(read_episode(log), trial.result, film_path(self._folder, trial.key), rate_hz)
        except DataError as error:
            self.failure = error
        log.unlink(missing_ok=True)
        return trial

    def take(self, key: TrialKey) -> Film:
        """Return the video of a trial, empty if there is none, and delete its files: for another computer's folder."""
        path = film_path(self._folder, key)
        found = [each for suffix in FILM_SUFFIXES if (each := path.with_suffix(suffix)).is_file()]
        film = {each.suffix: each.read_bytes() for each in found}
        for each in found:
            each.unlink()
        return film

    def keep(self, trial: Trial, film: Film) -> None:
        """Write a video that `take` returned, if it is wanted. The folder has the name that the trial gives it."""
        path = film_path(self._folder, trial.key)
        if ".mp4" not in film or not self._is_wanted(trial, _row_folder(self._folder, trial.key)):
            return
        try:
            with writing(path):
                make_folder(path.parent)
                for suffix in FILM_SUFFIXES:
                    if suffix in film:
                        write_whole(path.with_suffix(suffix), film[suffix])
        except DataError as error:
            self.failure = error

    def _is_wanted(self, trial: Trial, row: Path) -> bool:
        if self._videos == "all" or not trial.result.success:
            return True
        with self._lock:
            self._successes[row] += 1
            return self._successes[row] <= SUCCESSES


def _row_folder(folder: Path, key: TrialKey) -> Path:
    return folder / _file_name(key.policy) / key.language / _file_name(key.world)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")
