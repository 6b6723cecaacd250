"""`vla bench gpu` in its tiny form on the CPU: every phase runs, and what it compares is equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import phases
from benchmarks.gpu.check import GpuArgs, main, run
from benchmarks.gpu.page import BEGIN, END
from vla_robot.cli.common.terminal import Terminal


def test_every_phase_runs_and_the_page_gets_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, out = tmp_path / "gpu.md", tmp_path / "gpu.json"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(GpuArgs(device="cpu", tiny=True, json=out, page=page)) == 0, capsys.readouterr().out
    results = json.loads(out.read_text())["phases"]
    assert {key: results["shipped policy"][key] for key in ("blocks", "eager")} == {"blocks": 1.0, "eager": 1.0}
    small = dict(results["small model"])
    assert small.pop("distinct") > 5
    assert set(small.values()) == {1.0}
    assert results["7B batch 2"]["actions_per_s"] > 0 and results["OFT"]["batch_2_ms"] > 0
    assert results["LoRA"]["last_loss"] < results["LoRA"]["first_loss"]
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    assert written.count("\n| ") == 3  # the head, and two batches


def test_a_phase_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("the card is on fire")

    works = {"one": (fail, 1.0), "two": (lambda: {"x_ms": 2.0}, 1.0), "three": (lambda: {"y": 1.0}, 1e9)}
    monkeypatch.setattr(phases, "phases_of", lambda bench: works)
    results = run(GpuArgs(device="cpu", tiny=True), Terminal())
    assert results["one"]["failed"] == "RuntimeError: the card is on fire"
    assert results["two"] == {"x_ms": 2.0}
    assert "skipped" in results["three"]
