"""Progress of episodes: one live line each; in a pipe, one plain line per finished episode."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from vla_robot.cli.common.terminal import Terminal
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, StepsLost
from vla_robot.loop.results import EpisodeResult, Outcome, RunSummary
from vla_robot.loop.timing import TOTAL

REFRESH_HZ = 8
"""Redraws per second, in a thread of rich's; each delays the control loop by about 1 ms."""

MARKS: dict[Outcome, tuple[str, str]] = {
    "success": ("✔", "green"),
    "failure": ("✘", "red"),
    "timeout": ("✘", "yellow"),
    "error": ("✘", "bold red"),
    "stopped": ("■", "dim"),
}


class LiveView:
    """A subscriber of the loop's events that draws them; a context manager.

    >>> with LiveView(episodes=5) as view:                      # doctest: +SKIP
    ...     run_episodes(drive, embodiment, seeds, subscribers=[view], ...)
    """

    def __init__(self, episodes: int, console: Terminal | None = None) -> None:
        """
        Args:
            episodes: number of episodes.
            console: console to draw on; standard output if None.
        """
        self._episodes = episodes
        self._console = console or Terminal()
        self._live = (
            Live(console=self._console, refresh_per_second=REFRESH_HZ, transient=True)
            if self._console.is_terminal
            else None
        )
        self._spinner = Spinner("dots")
        self._number = 0
        self._seed = 0
        self._steps = 0
        self._latencies_ms: list[float] = []

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, lasting: bool) -> None:
        """Print a line beside the episodes.

        Args:
            text: one line.
            lasting: whether it stays; otherwise the live line, if there is one, shows it until the next text.
        """
        if lasting or self._live is None:
            self._console.print(Text(text), soft_wrap=True)
        if self._live is not None:
            self._spinner.update(text=Text(text))
            self._live.update(Text("") if lasting else self._spinner)

    def __call__(self, event: Event) -> None:
        match event:
            case EpisodeStarted():
                self._number += 1
                self._seed = event.seed
                self._latencies_ms, self._steps = [], 0
                self._show("reset")
            case StepDone():
                self._steps += 1
                # A robot with a clock of its own also ticks while it is held, without a command.
                if TOTAL in event.stages_ms:
                    self._latencies_ms.append(event.stages_ms[TOTAL])
                self._show(self._progress(event))
            case StepsLost():
                pass  # the episode's own line counts them
            case EpisodeEnded():
                self._console.print(episode_line(event.result, self._number, self._episodes), soft_wrap=True)
                self._show("")

    def _progress(self, event: StepDone) -> str:
        rate_hz = self._steps / event.elapsed_s if event.elapsed_s > 0 else 0.0
        facts = _facts(self._steps, rate_hz, median(self._latencies_ms) if self._latencies_ms else None)
        return f"{facts}   you drive" if event.intervention else facts

    def _show(self, progress: str) -> None:
        if self._live is None:
            return
        if progress:
            self._spinner.update(text=Text(f"{_place(self._number, self._episodes, self._seed)}  {progress}"))
        self._live.update(self._spinner if progress else Text(""))


def episode_line(episode: EpisodeResult, number: int, of: int) -> Text:
    """Return the final line of an episode."""
    mark, style = MARKS[episode.outcome]
    latency = episode.latency
    p50_ms = None if latency is None else latency.p50
    line = Text.assemble(
        (f"{mark} ", style),
        f"{_place(number, of, episode.seed)}  ",
        (f"{episode.outcome:<8}", style),
        f"  {_facts(episode.steps, episode.rate_hz, p50_ms)}",
        (f"   a person drove {episode.interventions} steps" if episode.interventions else "", "magenta"),
        (f"   {episode.lost_steps} steps lost" if episode.lost_steps else "", "yellow"),
    )
    return line.append(f"  {episode.error}", style="red") if episode.error else line


def result_table(run: RunSummary) -> Table:
    """Return a table of all episodes, with the score below."""
    low, high = run.success_interval
    score = "no episode was finished"
    if run.success_rate is not None:
        score = (
            f"{run.successes} of {len(run.episodes)} succeeded: {run.success_rate:.0%}, "
            f"95 % interval {low:.0%} to {high:.0%}"
        )
    if run.interventions:
        score = (
            f"{run.successes} of {len(run.episodes)} succeeded by the policy alone: {run.success_rate:.0%}, "
            f"95 % interval {low:.0%} to {high:.0%}; {run.helped} more with a person's help"
        )
    if len(run.episodes) < run.planned:
        score += f"; {run.planned} were planned"
    table = Table(
        box=None, pad_edge=False, header_style="dim", caption=score, caption_justify="left", caption_style="bold"
    )
    table.add_column("seed")
    table.add_column("outcome")
    for column in ("steps", "seconds", "steps/s", "p50 ms", "p99 ms", "limits hit"):
        table.add_column(column, justify="right")
    counts = {"corrected": "interventions"} if run.interventions else {}
    counts |= {"lost": "lost_steps"} if run.lost_steps else {}
    for column in counts:
        table.add_column(column, justify="right")
    for episode in run.episodes:
        table.add_row(*_cells(episode), *(str(getattr(episode, name)) for name in counts.values()))
    return table


def _cells(episode: EpisodeResult) -> Iterable[str | Text]:
    mark, style = MARKS[episode.outcome]
    latency = episode.latency
    yield str(episode.seed)
    yield Text(f"{mark} {episode.outcome}{', helped' if episode.helped else ''}", style=style)
    yield str(episode.steps)
    yield f"{episode.duration_s:.1f}"
    yield f"{episode.rate_hz:.1f}"
    yield "–" if latency is None else f"{latency.p50:.0f}"
    yield "–" if latency is None else f"{latency.p99:.0f}"
    yield str(episode.clamps)


def _place(number: int, of: int, seed: int) -> str:
    return f"episode {number:>{len(str(of))}}/{of}  seed {seed}"


def _facts(steps: int, rate_hz: float, p50_ms: float | None) -> str:
    latency = "" if p50_ms is None else f"   capture to command {p50_ms:5.1f} ms"
    return f"{steps:3d} steps   {rate_hz:5.1f} Hz{latency}"
