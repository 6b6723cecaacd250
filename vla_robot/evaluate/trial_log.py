"""Log of an evaluation's trials on the disk, from which an interrupted evaluation resumes.

    DIR/trials.jsonl    line 1: what is evaluated; then a line for each finished episode, on the disk before the next

An incomplete last line, as after a power cut, is cut off. A file whose first line differs from
the command is refused; the error lists the difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.durable import append_line, writing
from vla_robot.evaluate.evaluation import Trial, TrialKey

TRIALS = "trials.jsonl"
STARTED_AT = "started_at"
"""Key of the first line that may differ between commands."""


class TrialLog(Closeable):
    """Log of the trials in a folder, which it claims; use it in a `with` block.

    Attributes:
        trials: the last trial of each key.
        started_at: wall clock at the start of the first command, ISO 8601.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], started_at: str) -> None:
        """Create the log, or read an existing one.

        Args:
            folder: folder of the evaluation; made if it is missing.
            header: plain data for JSON that identifies the evaluation.
            started_at: wall clock, ISO 8601; used if the log is new.

        Raises:
            DataError: the folder holds another evaluation, another process writes it, or a line is damaged.
        """
        self._claim = Claim(folder)
        self._path = folder / TRIALS
        self.trials: dict[TrialKey, Trial] = {}
        try:
            first, *rest = self._whole_lines() or [self._begin(header, started_at)]
            self.started_at = self._require_same(first, header)
            only_world = next(iter(header["world"]), "")
            for number, line in enumerate(rest, start=2):
                trial = self._trial({"world": only_world, **line}, number)  # logs of one world did not name it
                self.trials[trial.key] = trial
        except BaseException:
            self._claim.release()
            raise

    def close(self) -> None:
        self._claim.release()

    def add(self, trial: Trial) -> None:
        """Write a finished trial; it is on the disk when this returns.

        Raises:
            DataError: writing failed; the trials before are safe.
        """
        self._write(trial.to_dict())
        self.trials[trial.key] = trial

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Return all complete lines; `append_line` cuts off what follows the last newline."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"cannot read {self._path}: {error.strerror}.") from error
        whole = content[: content.rfind(b"\n") + 1]
        return [self._parsed(line, number) for number, line in enumerate(whole.splitlines(), start=1)]

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise self._damaged(number, error) from error
        if not isinstance(values, dict):
            raise self._damaged(number, "it is not a table")
        return values

    def _trial(self, values: Mapping[str, Any], number: int) -> Trial:
        try:
            return Trial.from_dict(values)
        except KeyError as error:
            raise self._damaged(number, f"{error} is missing") from error
        except (TypeError, ValueError) as error:
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, why: object) -> DataError:
        return DataError(f"{self._path}, line {number} is damaged: {why}. Delete that line, or choose another --out.")

    def _begin(self, header: Mapping[str, Any], started_at: str) -> dict[str, Any]:
        return self._write({STARTED_AT: started_at, **header})

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        with writing(self._path, self._what_is_safe):
            append_line(self._path, json.dumps(values, ensure_ascii=False, allow_nan=False))
        return values

    def _what_is_safe(self) -> str:
        return f"Its {len(self.trials)} finished episodes are safe, and the same command goes on after them."

    def _require_same(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
        names = dict.fromkeys([*here, *there])
        different = [
            _difference(name, there.get(name), here.get(name))
            for name in names
            if name != STARTED_AT and there.get(name) != here.get(name)
        ]
        if different:
            raise DataError(
                f"{self._path.parent} holds another evaluation: {'; '.join(different)}. "
                "Choose another folder with --out, or give the command that began this one."
            )
        return str(there.get(STARTED_AT, ""))


def _difference(name: str, there: object, here: object) -> str:
    """Describe a difference; of a table, such as policies with their fingerprints, only the entries that differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        if there.keys() != here.keys():
            return f"{name} {', '.join(there)} there and {', '.join(here)} here"
        changed = [key for key in there if there[key] != here[key]]
        return f"{name} {', '.join(changed)} changed since"
    return f"{name} {there} there and {here} here"
