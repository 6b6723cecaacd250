"""A run: its folder, its report, and what is left of it when it ends early."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.errors import DataError, PolicyError, WorldError
from vla_robot.core.ports import Guard
from vla_robot.evaluate.runner import new_run_folder, run_episodes, run_folder
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.results import EpisodeResult, RunInfo, RunSummary
from vla_robot.record.episode import read_episode

Make = Callable[..., Any]
INFO = RunInfo(
    "toy <env>", "fake & co", "lift the <red> cube", "vla run --env toy --seed 3", {"toy.toml": "kind = '<toy>'"}
)


@pytest.fixture
def run(clock: FakeClock, guard: Guard, tmp_path: Path) -> Make:
    """`run(world, policy, seeds, ...)` into tmp_path/run on the fake clock."""

    def go(world: Any, policy: Any, seeds: Any = range(3, 6), **more: Any) -> RunSummary:
        stops = {"should_stop": more["should_stop"]} if "should_stop" in more else {}
        drive = partial(run_episode, world, policy, guard=guard, clock=clock, **stops)
        return run_episodes(drive, world.embodiment, seeds, info=INFO, **{"folder": tmp_path / "run", **more})

    return go


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def interrupt_at(episode: int) -> Callable[[int], None]:
    """Ctrl-C in the second step of the k-th episode, counted from 1."""
    started = 0

    def on_step(step: int) -> None:
        nonlocal started
        started += step == 0
        if started == episode and step == 1:
            raise KeyboardInterrupt

    return on_step


def test_a_run_leaves_a_report_logs_videos_and_a_summary(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    run(make_world(), make_policy())
    expected = {"report.html", "summary.json"}
    for seed in (3, 4, 5):
        expected |= {f"episodes/seed_{seed}.vlalog", f"videos/seed_{seed}.mp4", f"videos/seed_{seed}.jpg"}
    assert files(tmp_path / "run") == expected


def test_a_run_survives_a_power_cut(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path, power_cut: Any
) -> None:
    run(make_world(), make_policy())
    survivors = power_cut.survivors(tmp_path)
    assert {f"run/{name}" for name in files(tmp_path / "run")} == set(survivors)
    assert {name for name, content in survivors.items() if content != (tmp_path / name).read_bytes()} == set()


def test_without_a_folder_nothing_is_written(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(make_world(), make_policy(), folder=None).successes == 3
    assert files(tmp_path) == set()


def test_the_summary_has_what_the_convention_asks_for(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    run(make_world(), make_policy())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["command"] == "run"
    assert {"python", "mujoco", "robosuite", "torch"} <= set(summary["versions"])
    assert {"cpu", "cores", "memory_gb", "platform", "gpu"} == set(summary["machine"])
    assert (summary["successes"], summary["success_rate"]) == (3, 1.0)
    assert summary["success_interval_95"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    assert [(e["seed"], e["success"], e["steps"]) for e in summary["episodes"]] == [(s, True, 3) for s in (3, 4, 5)]
    assert all(set(row) == {"name", "value", "unit", "baseline", "ratio"} for row in summary["rows"])
    rows = {row["name"]: row["value"] for row in summary["rows"]}
    assert rows["capture_to_command_p50"] == pytest.approx(39, abs=0.5)


def test_the_log_holds_recipes_embodiment_and_every_step(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    world = make_world()
    run(world, make_policy(), [8])
    log = read_episode(tmp_path / "run" / "episodes" / "seed_8.vlalog")
    assert log.complete
    assert log.header["recipes"] == INFO.recipes
    assert log.header["embodiment"]["name"] == "toy"
    assert (log.header["seed"], log.header["instruction"]) == (8, "lift the <red> cube")
    assert len(log.steps) == len(world.actions)
    for step, action in zip(log.steps, world.actions, strict=True):
        np.testing.assert_array_equal(step.commanded, action)
    assert log.last is not None and log.last.step == 3


class _WellFormed(HTMLParser):
    """Every tag that must be closed is closed by its own end tag."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """It closes itself, as SVG's shapes do."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_well_formed_and_escapes_what_recipes_say(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    run(make_world(), make_policy(error=PolicyError("no <action>"), fails_at=1))
    html = (tmp_path / "run" / "report.html").read_text()
    parser = _WellFormed()
    parser.feed(html)
    assert parser.open == []
    for text in ("lift the &lt;red&gt; cube", "toy &lt;env&gt;", "fake &amp; co", "no &lt;action&gt;"):
        assert text in html
    assert "$" not in html, "a placeholder was left"


def test_the_report_shows_the_score_its_interval_and_failures_first(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    world = make_world()
    resets: list[int] = []

    def second_fails(step: int) -> None:
        if step == 0:
            resets.append(world.seed)
            world.succeed_at = None if len(resets) == 2 else 3

    world.on_step = second_fails
    run(world, make_policy())
    html = (tmp_path / "run" / "report.html").read_text()
    assert "67 %; the true rate lies between 21 % and 94 %" in html
    assert re.findall(r'id="seed-(\d+)"', html) == ["4", "3", "5"]
    assert "Those that failed come first." in html


def test_the_report_and_the_summary_tell_steps_that_were_lost(tmp_path: Path) -> None:
    from vla_robot.evaluate.report import write_report

    lossy = EpisodeResult(3, "success", steps=10, duration_s=1.0, lost_steps=4)
    run = RunSummary(RunInfo("toy", "fake", "lift"), (lossy,), 1, "2026-11-28T16:00:00+00:00")
    write_report(tmp_path, run)
    html = (tmp_path / "report.html").read_text()
    assert "4 steps lost" in html and "marked as gaps" in html
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["episodes"][0]["lost_steps"] == 4
    assert [row["value"] for row in told["rows"] if row["name"] == "lost_steps"] == [4]


def test_every_file_that_the_report_links_exists(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    run(make_world(), make_policy())
    html = (tmp_path / "run" / "report.html").read_text()
    links: list[str] = re.findall(r'(?:src|href|poster)="([^"#]+)"', html)
    assert len(links) == 9
    assert all((tmp_path / "run" / link).is_file() for link in links)


def test_the_videos_play_in_a_browser(make_world: Make, make_policy: Make, run: Make, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    run(make_world(), make_policy(), [3])
    with av.open(str(tmp_path / "run" / "videos" / "seed_3.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        frames = sum(1 for _ in container.decode(stream))
    assert frames == 4 + 10, "a frame a step, the last, and one second of it"


def test_ctrl_c_keeps_the_finished_episodes(make_world: Make, make_policy: Make, run: Make, tmp_path: Path) -> None:
    summary = run(make_world(on_step=interrupt_at(episode=3)), make_policy())
    assert summary.interrupted
    assert [e.seed for e in summary.episodes] == [3, 4]
    kept = files(tmp_path / "run")
    assert {"report.html", "summary.json", "episodes/seed_3.vlalog", "episodes/seed_4.vlalog"} <= kept
    assert not any("seed_5" in name for name in kept)
    assert "2 of 3 planned episodes" in (tmp_path / "run" / "report.html").read_text()


def test_ctrl_c_in_the_first_episode_leaves_no_report(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    summary = run(make_world(on_step=interrupt_at(episode=1)), make_policy())
    assert (summary.interrupted, summary.success_rate, summary.episodes) == (True, None, ())
    assert files(tmp_path / "run") == set()


def test_a_stop_flag_ends_the_run_as_ctrl_c_does(make_world: Make, make_policy: Make, run: Make) -> None:
    world = make_world()
    summary = run(world, make_policy(), should_stop=lambda: world.calls.count("world.step") == 4)
    assert summary.interrupted
    assert [e.seed for e in summary.episodes] == [3]


def test_a_broken_world_is_reported_and_then_raised(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        if world.seed == 4:
            raise WorldError("the simulator diverged.")

    world = make_world(on_step=fail)
    with pytest.raises(WorldError, match="diverged"):
        run(world, make_policy())
    assert "Ended early, 1 of 3 episodes: the simulator diverged." in (tmp_path / "run" / "report.html").read_text()
    assert not any("seed_4" in name for name in files(tmp_path / "run"))


def test_a_bug_costs_the_finished_episodes_no_report(
    make_world: Make, make_policy: Make, run: Make, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        if world.seed == 4:
            raise ZeroDivisionError("in the simulator")

    world = make_world(on_step=fail)
    told: list[RunSummary] = []
    with pytest.raises(ZeroDivisionError):
        run(world, make_policy(), on_failure=told.append)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Ended early, 1 of 3 episodes: ZeroDivisionError: in the simulator" in report
    assert len(told[0].episodes) == 1


def test_a_policy_that_fails_counts_as_a_failed_episode_and_the_run_goes_on(
    make_world: Make, make_policy: Make, run: Make
) -> None:
    summary = run(make_world(), make_policy(error=PolicyError("logits are not finite.")))
    assert [e.outcome for e in summary.episodes] == ["error"] * 3
    assert (summary.successes, summary.interrupted) == (0, False)


def test_a_folder_with_a_report_is_not_overwritten(make_world: Make, make_policy: Make, run: Make) -> None:
    run(make_world(), make_policy(), [3])
    world = make_world()
    with pytest.raises(DataError, match="holds the report of another run, which is never overwritten"):
        run(world, make_policy(), [4])
    assert world.calls == []


def test_runs_begun_in_one_second_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [future.result() for future in [threads.submit(new_run_folder, tmp_path) for _ in range(24)]]
    assert len(set(made)) == 24
    assert all(folder.is_dir() for folder in made)


def test_a_folder_of_a_run_has_one_writer_and_is_not_left_empty(tmp_path: Path) -> None:
    with run_folder(None, tmp_path / "runs") as made:
        assert made.parent == tmp_path / "runs"
    assert not made.exists()
    with run_folder(tmp_path / "mine") as mine:
        with pytest.raises(DataError, match=r"mine is being written by process \d+"), run_folder(mine):
            pass
        (mine / "report.html").touch()
    assert [path.name for path in mine.iterdir()] == ["report.html"]
