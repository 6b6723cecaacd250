"""`vla bench transport`: every contender carries the same observation, and rows compare what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.transport import BASELINES, CASES, OURS, Case, Tally, TransportArgs, main, measure, rows, scene
from benchmarks.transport_contenders import CONTENDERS
from vla_robot.core.errors import RecipeError

SMALL = (Case(16, 24, None), Case(16, 24, 90))


def test_every_contender_answers_raw_and_jpeg() -> None:
    results = measure(seconds=0.05, cases=SMALL)
    for case in SMALL:
        assert list(results[case]) == list(CONTENDERS)
        assert all(tally.durations_s for tally in results[case].values())
    raw = results[SMALL[0]]
    sent = {name: tally.sent_bytes / len(tally.durations_s) for name, tally in raw.items()}
    pixels = 2 * 16 * 24 * 3
    assert pixels < sent[OURS] < sent["json_base64"]
    assert sent["json_base64"] > pixels * 4 / 3


def test_a_row_compares_ours_with_one_baseline() -> None:
    ours, slow = Tally([0.1, 0.1], sent_bytes=400), Tally([0.4, 0.4], sent_bytes=800)
    case = Case(480, 640, None)
    first, *_ = rows({case: {OURS: ours, **dict.fromkeys(BASELINES, slow)}})
    assert first == {
        "name": f"rate_hz/2x640x480/raw/vs_{BASELINES[0]}",
        "value": pytest.approx(10.0),
        "unit": "observations/s",
        "baseline": pytest.approx(2.5),
        "ratio": pytest.approx(4.0),
    }
    assert ours.bytes_per_s == pytest.approx(2000)
    assert slow.percentile_ms(50) == pytest.approx(400)


def test_results_are_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally([0.1, 0.2], sent_bytes=400)
    results = {case: dict.fromkeys(CONTENDERS, tally) for case in CASES}
    monkeypatch.setattr("benchmarks.transport.measure", lambda seconds: results)
    assert main(TransportArgs(json=tmp_path / "out.json", plot=tmp_path / "deep" / "out.png")) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["rows"]) == len(CASES) * 2 * len(BASELINES)
    assert (tmp_path / "deep" / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "2x640x480/raw" in capsys.readouterr().out


def test_the_scene_is_the_same_every_time() -> None:
    assert (scene(8, 9) == scene(8, 9)).all()
    assert scene(8, 9).shape == (8, 9, 3)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than 0"):
        TransportArgs(seconds=0.0)
