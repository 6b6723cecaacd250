"""What `vla bench loop` makes of stamps, and one short run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loop import STAGES, LoopArgs, Measured, lateness, main, rows
from vla_robot.core.errors import RecipeError


def test_a_loop_that_keeps_deadlines_is_late_by_its_jitter_only() -> None:
    at_ms = 20.0 * np.arange(1000, dtype=np.float64)
    at_ms[500] += 3.0
    late_ms = lateness(at_ms, 20.0, skips=True)
    assert late_ms[500] == pytest.approx(3.0)
    assert np.delete(late_ms, 500).max() == pytest.approx(0.0)


def test_a_period_that_was_skipped_makes_no_later_tick_late() -> None:
    at_ms = 20.0 * np.delete(np.arange(200, dtype=np.float64), [100, 101])
    assert lateness(at_ms, 20.0, skips=True).max() == pytest.approx(0.0)


def test_lateness_adds_up_where_nothing_is_skipped() -> None:
    late_ms = lateness(20.1 * np.arange(1000, dtype=np.float64), 20.0, skips=False)
    assert late_ms[-1] == pytest.approx(99.9)


def test_ratios_say_how_many_times_better_ours_is() -> None:
    def measured(ms: float) -> Measured:
        return Measured(np.full(20, ms), np.full(19, ms), {name: np.full(5, ms) for name in STAGES}, 0, "")

    table = {row["name"]: row for row in rows(measured(0.5), measured(2.0))}
    assert table["late/p99"] == {"name": "late/p99", "value": 0.5, "unit": "ms", "baseline": 2.0, "ratio": 4.0}
    assert table["overhead/p50"]["value"] == pytest.approx(0.5 * len(STAGES))


def test_too_few_ticks_are_refused() -> None:
    with pytest.raises(RecipeError, match="100 to 1000000"):
        LoopArgs(ticks=3)


def test_a_short_run_reports_every_stage(tmp_path: Path) -> None:
    file = tmp_path / "loop.json"
    assert main(LoopArgs(ticks=100, rate_hz=100, policy="none", json=file)) == 0
    names = {row["name"] for row in json.loads(file.read_text())["rows"]}
    assert {"late/p99", "overhead/p99", "drift_at_the_end", "stage/publish/p99"} <= names


@pytest.mark.slow
def test_recording_is_measured_beside_no_recording_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recording.json"
    assert main(LoopArgs(ticks=100, rate_hz=100, policy="none", recording=True, json=file)) == 0
    found = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    for way in ("the bridge's log", "a person's recording"):
        assert found[f"{way}/interval_error/p99"]["baseline"] > 0
        assert f"{way}/missed_ticks" in found
    assert found["logged_steps"]["value"] >= 100
    assert found["steps_without_frames"]["value"] <= found["logged_steps"]["value"]
    assert "moves the 99th percentile of an interval's error by" in capsys.readouterr().out


def test_recording_has_no_picture() -> None:
    with pytest.raises(RecipeError, match="leave out --recording"):
        LoopArgs(recording=True, plot=Path("loop.png"))
