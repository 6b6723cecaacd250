"""What was driven is on the disk, and is not driven twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import DataError
from vla_robot.evaluate.evaluation import Trial, TrialKey
from vla_robot.evaluate.trial_log import TRIALS, TrialLog
from vla_robot.loop.results import EpisodeResult, Outcome

HEADER = {"world": {"toy": "a1"}, "policies": {"old": "b2"}, "languages": ["plain"], "seed": 1, "episodes": 3}


def trial(seed: int, outcome: Outcome = "success") -> Trial:
    result = EpisodeResult(seed, outcome, 10, 1.0)
    return Trial(TrialKey("old", "plain", "toy", seed), "gå rett frem", "gå rett frem", None, result)


def opened(folder: Path, header: dict[str, object] = HEADER) -> TrialLog:
    return TrialLog(folder, header, "2026-01-01T00:00:00+00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation that was stopped after two episodes."""
    with opened(tmp_path / "eval") as log:
        log.add(trial(1))
        log.add(trial(2, "error"))
    return tmp_path / "eval"


def test_the_same_command_finds_what_was_driven(folder: Path) -> None:
    with TrialLog(folder, HEADER, "2027-07-07T00:00:00+00:00") as log:
        assert list(log.trials.values()) == [trial(1), trial(2, "error")]
        assert log.started_at == "2026-01-01T00:00:00+00:00"


def test_an_episode_that_is_driven_again_counts_once(folder: Path) -> None:
    with opened(folder) as log:
        log.add(trial(2))
    with opened(folder) as log:
        assert log.trials[TrialKey("old", "plain", "toy", 2)].result.success
        assert len(log.trials) == 2


def test_wherever_the_power_fails_finished_lines_are_kept(folder: Path) -> None:
    whole = (folder / TRIALS).read_bytes()
    ends = [place for place, byte in enumerate(whole, start=1) if byte == ord("\n")]
    for length in [0, 1, *(end + more for end in ends for more in (-20, -1, 0, 1) if end + more <= len(whole))]:
        (folder / TRIALS).write_bytes(whole[:length])
        with opened(folder) as log:
            # Of the header and two trials: as many trials as lines that came to their end, but the header.
            assert len(log.trials) == max(0, whole[:length].count(b"\n") - 1)
            log.add(trial(3))
        with opened(folder) as log:
            assert TrialKey("old", "plain", "toy", 3) in log.trials


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed 1 there and 2 here"),
        ({"languages": ["plain", "none"]}, r"languages \['plain'\] there and \['plain', 'none'\] here"),
        ({"policies": {"old": "b2", "new": "c3"}}, "policies old there and old, new here"),
        ({"policies": {"old": "XX"}}, "policies old changed since"),
        ({"world": {"toy": "XX"}, "episodes": 4}, "world toy changed since; episodes 3 there and 4 here"),
    ],
)
def test_another_command_is_refused_with_the_difference(folder: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"holds another evaluation: {message}\\. Choose another folder with --out"):
        opened(folder, HEADER | change)


def test_a_damaged_line_is_named(folder: Path) -> None:
    with (folder / TRIALS).open("ab") as file:
        file.write(b'{"policy": "old"}\n')
    with pytest.raises(DataError, match=r"trials.jsonl, line 4 is damaged: '\w+' is missing"):
        opened(folder)
    (folder / TRIALS).write_bytes(b"\x00\x00\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        opened(folder)


def test_two_processes_do_not_write_one_evaluation(folder: Path) -> None:
    with opened(folder), pytest.raises(DataError, match=r"is being written by process \d+"):
        opened(folder)


def test_a_finished_trial_survives_a_power_cut(tmp_path: Path, power_cut: Any) -> None:
    with opened(tmp_path / "eval") as log:
        for seed in (1, 2):
            log.add(trial(seed))
            assert power_cut.survivors(tmp_path)["eval/" + TRIALS] == (tmp_path / "eval" / TRIALS).read_bytes()


def test_a_disk_that_takes_no_more_keeps_the_trials_before(
    folder: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    size = (folder / TRIALS).stat().st_size
    with opened(folder) as log:
        with (
            pytest.raises(DataError, match=r"File too large\. Its 2 finished episodes are safe"),
            file_limit(size + 50),
        ):
            log.add(trial(3))
        assert TrialKey("old", "plain", "toy", 3) not in log.trials
    with opened(folder) as log:
        log.add(trial(3))
    with opened(folder) as log:
        assert len(log.trials) == 3


def test_a_log_of_before_suites_continues(folder: Path) -> None:
    """Its lines name no world, and its header names the only one."""
    text = (folder / TRIALS).read_text()
    assert '"world": "toy", ' in text
    (folder / TRIALS).write_text(text.replace('"world": "toy", ', ""))
    with opened(folder) as log:
        assert list(log.trials.values()) == [trial(1), trial(2, "error")]
