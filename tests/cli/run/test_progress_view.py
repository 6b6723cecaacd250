"""What a person sees of running episodes, on a terminal and through a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from vla_robot.cli.common.terminal import Terminal
from vla_robot.cli.run.progress_view import LiveView, episode_line, result_table
from vla_robot.core.messages import Observation, StepResult
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, StepDone
from vla_robot.loop.results import EpisodeResult, Outcome, RunInfo, RunSummary
from vla_robot.loop.timing import TOTAL

ACTION = np.zeros(7)


def observation(step: int) -> Observation:
    return Observation({}, np.zeros(7), "lift the cube", stamp_ns=step * 100_000_000, step=step)


def result(seed: int, outcome: Outcome = "success", error: str | None = None) -> EpisodeResult:
    stages_ms = {TOTAL: np.array([40.0, 60.0])}
    return EpisodeResult(seed, outcome, steps=2, duration_s=0.2, stages_ms=stages_ms, error=error)


def watch_one_episode(console: Terminal) -> None:
    with LiveView(episodes=5, console=console) as view:
        view(EpisodeStarted(10000, observation(0)))
        for step in range(2):
            done = StepResult(observation(step + 1), ACTION, success=False, terminated=False, truncated=False)
            view(StepDone(observation(step), ACTION, ACTION, (), done, {TOTAL: 50.0}, elapsed_s=0.1 * (step + 1)))
        view(EpisodeEnded(result(10000), observation(2)))


def test_a_pipe_gets_one_plain_line_an_episode() -> None:
    out = io.StringIO()
    watch_one_episode(Terminal(file=out, width=120, force_terminal=False))
    assert out.getvalue() == (
        "✔ episode 1/5  seed 10000  success     2 steps    10.0 Hz   capture to command  50.0 ms\n"
    )


def test_a_terminal_sees_the_episode_while_it_runs() -> None:
    out = io.StringIO()
    console = Terminal(file=out, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    view = LiveView(episodes=5, console=console)
    view(EpisodeStarted(10000, observation(0)))
    done = StepResult(observation(1), ACTION, success=False, terminated=False, truncated=False)
    view(StepDone(observation(0), ACTION, ACTION, (), done, {TOTAL: 50.0}, elapsed_s=0.1))
    assert view._live is not None
    console.print(view._live.renderable)
    assert "episode 1/5  seed 10000    1 steps    10.0 Hz   capture to command  50.0 ms" in out.getvalue()


def test_whoever_took_over_sees_that_they_drive() -> None:
    out = io.StringIO()
    console = Terminal(file=out, width=140, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    view = LiveView(episodes=5, console=console)
    view(EpisodeStarted(10000, observation(0)))
    done = StepResult(observation(1), ACTION, success=False, terminated=False, truncated=False)
    view(StepDone(observation(0), ACTION, ACTION, (), done, {}, elapsed_s=0.1, intervention=True))
    assert view._live is not None
    console.print(view._live.renderable)
    assert "10.0 Hz   you drive" in out.getvalue()


def test_a_success_with_a_persons_help_is_told_apart() -> None:
    out = io.StringIO()
    helped = replace(result(10000), interventions=12, takeovers=2)
    info = RunInfo("toy", "fake", "lift the cube")
    summary = RunSummary(info, (helped, result(10001)), 2, "2026-01-01T00:00:00+00:00")
    console = Terminal(file=out, width=200, force_terminal=False)
    console.print(episode_line(helped, 1, 2))
    console.print(result_table(summary))
    printed = " ".join(out.getvalue().split())
    assert "a person drove 12 steps" in printed and "success, helped" in printed and "corrected" in printed
    assert "1 of 2 succeeded by the policy alone: 50%" in printed and "1 more with a person's help" in printed


@pytest.mark.parametrize(
    ("outcome", "mark"), [("success", "✔"), ("failure", "✘"), ("timeout", "✘"), ("error", "✘"), ("stopped", "■")]
)
def test_each_outcome_has_its_mark(outcome: Outcome, mark: str) -> None:
    assert str(episode_line(result(1, outcome), 1, 1)).startswith(f"{mark} episode 1/1  seed 1  {outcome}")


def test_the_reason_of_an_error_stands_in_its_line() -> None:
    line = episode_line(result(1, "error", "logits are not finite."), 3, 20)
    assert str(line).startswith("✘ episode  3/20")
    assert str(line).endswith("logits are not finite.")


def test_steps_that_were_lost_are_told_in_the_line_and_in_the_table() -> None:
    lossy = replace(result(8), lost_steps=5)
    assert "5 steps lost" in episode_line(lossy, 1, 1).plain
    assert "lost" not in episode_line(result(8), 1, 1).plain
    info = RunInfo("lift", "hold", "lift the cube")
    told = render(RunSummary(info, (result(7), lossy), 2, "now"))
    assert "lost" in told and told.count(" 5") >= 1
    assert "lost" not in render(RunSummary(info, (result(7),), 1, "now"))


def render(run: RunSummary) -> str:
    out = io.StringIO()
    Terminal(file=out, width=120, force_terminal=False).print(result_table(run))
    return out.getvalue()


def test_the_table_ends_with_the_score_and_its_interval() -> None:
    info = RunInfo("lift", "nano", "lift the cube")
    text = render(RunSummary(info, (result(1), result(2, "timeout")), 2, "2026-01-01T00:00:00+00:00"))
    assert "1 of 2 succeeded: 50%, 95 % interval 9% to 91%" in text
    assert "✘ timeout" in text


def test_the_table_of_an_interrupted_run_says_how_many_were_planned() -> None:
    info = RunInfo("lift", "nano", "lift the cube")
    assert "; 9 were planned" in render(RunSummary(info, (result(1),), 9, "2026-01-01T00:00:00+00:00"))


def test_the_table_of_no_episodes_says_so() -> None:
    info = RunInfo("lift", "nano", "lift the cube")
    assert "no episode was finished" in render(RunSummary(info, (), 2, "2026-01-01T00:00:00+00:00"))
