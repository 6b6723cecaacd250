"""Writes a run's report.html, whose videos lie beside it, and summary.json for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.host.durable import make_folder, writing
from vla_robot.core.host.provenance import document
from vla_robot.evaluate.report_parts import (
    badge,
    definitions,
    folded,
    interval_bar,
    percent,
    relative,
    video_element,
    video_path,
    write_page,
)
from vla_robot.loop.recorder import log_path
from vla_robot.loop.results import EpisodeResult, RunSummary
from vla_robot.loop.timing import TOTAL, WORLD_STEP, summarise

TEMPLATE = Path(__file__).with_name("report.html")

STAGE_LABELS = {
    "render": "render",
    "transport_back": "frames travel",
    "receive": "frames arrive",
    "receive_rest": "frames, other",
    "record": "record, show",
    "wait": "wait for the tick",
    "policy_rest": "policy, other",
    "guard": "limits",
    "send": "command travels",
    TOTAL: "capture to command",
    WORLD_STEP: "world moves",
}
"""Labels of stages; a policy's own stages keep their names."""

N_COLOURS = 8
BINS_PER_DECADE = 14
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 400.0, 34.0
SMALLEST_MS = 0.01
"""Shorter durations are counted in the first bin of the logarithmic axis [ms]."""


def write_report(folder: Path, run: RunSummary) -> Path:
    """Write summary.json and report.html, and return the latter.

    Args:
        folder: folder of the run; its logs and videos are linked if they exist.
        run: the run, with at least one episode.

    Raises:
        DataError: writing failed.
    """
    with writing(folder):
        make_folder(folder)
    summary = document("run", **run.to_dict())
    return write_page(folder, summary, TEMPLATE, _fields(folder, run, summary))


def _fields(folder: Path, run: RunSummary, summary: Mapping[str, Any]) -> dict[str, str]:
    count = len(run.episodes)
    failed = count - run.successes
    # Failures come first; sorted() keeps the order of the seeds among equals.
    failures_first = sorted(run.episodes, key=lambda e: e.success)
    return {
        "title": escape(f"{run.info.policy} drives {run.info.env}: {run.successes} of {count}"),
        "policy": escape(run.info.policy),
        "env": escape(run.info.env),
        "instruction": escape(run.info.instruction),
        "when": f"{datetime.fromisoformat(run.started_at):%d %B %Y, %H:%M}",
        "notice": _notice(run),
        "successes": str(run.successes),
        "succeeded": "episodes succeeded" + (" by the policy alone" if run.interventions else ""),
        "count": str(count),
        "interval": _interval(run),
        "seeds": "".join(_seed_mark(e) for e in run.episodes),
        "tiles": _tiles(run),
        "stages": _stages(run),
        "order": "Those that failed come first." if failed else "All succeeded.",
        "episodes": "".join(_episode_card(folder, e) for e in failures_first),
        "table": "".join(_table_row(e) for e in run.episodes),
        "provenance": _provenance(run, summary),
    }


def _notice(run: RunSummary) -> str:
    return _ending(run) + "".join(f'<p class="notice">{escape(note)}</p>' for note in run.notes)


def _ending(run: RunSummary) -> str:
    if run.error is not None:
        return f'<p class="notice">Ended early, {len(run.episodes)} of {run.planned} episodes: {escape(run.error)}</p>'
    if run.interrupted:
        return f'<p class="notice">Interrupted: {len(run.episodes)} of {run.planned} planned episodes are shown.</p>'
    return ""


def _interval(run: RunSummary) -> str:
    """Draw the rate as a dot on 0..100 %, its interval as a band."""
    low, high = run.success_interval
    rate = run.success_rate or 0.0
    return (
        f'<p class="lead">{percent(rate)}; the true rate lies between {percent(low)} and {percent(high)} with 95 % '
        f"confidence (Wilson)</p>{interval_bar(rate, (low, high))}"
        '<div class="barscale num"><span>0 %</span><span>50 %</span><span>100 %</span></div>'
    )


def _seed_mark(episode: EpisodeResult) -> str:
    label = f"seed {episode.seed}: {episode.outcome}{_help(episode)}"
    kind = "timeout" if episode.helped else episode.outcome  # green is a success without help
    return f'<a class="{kind}" href="#seed-{episode.seed}" title="{label}" aria-label="{label}"></a>'


def _tiles(run: RunSummary) -> str:
    stages_ms = run.stages_ms
    tiles = [("control steps per second", f"{run.rate_hz:.1f}", "Hz")]
    if TOTAL in stages_ms:
        total = summarise(stages_ms[TOTAL])
        tiles += [
            ("capture to command, median", _ms(total.p50), "ms"),
            ("99 % of commands within", _ms(total.p99), "ms"),
        ]
    tiles.append(("steps in the median episode", f"{np.median([e.steps for e in run.episodes]):.0f}", ""))
    if run.interventions:
        tiles.append(("steps that a person drove", str(run.interventions), ""))
        tiles.append(("more succeeded, with help", str(run.helped), ""))
    tiles.append(("times a limit changed an action", str(sum(e.clamps for e in run.episodes)), ""))
    if run.lost_steps:
        tiles.append(("steps lost on the way here, marked as gaps", str(run.lost_steps), ""))
    return "".join(
        f'<div class="tile card"><b class="num">{value} <small>{unit}</small></b><span>{label}</span></div>'
        for label, value, unit in tiles
    )


def _stages(run: RunSummary) -> str:
    """Draw the times of the stages: the means in one bar, then a histogram per stage on one logarithmic axis."""
    stages_ms = run.stages_ms
    if TOTAL not in stages_ms:
        return ""
    inside = [name for name in stages_ms if name not in (TOTAL, WORLD_STEP)]
    colours = {name: f"var(--c{k % N_COLOURS})" for k, name in enumerate(inside)}
    edges = _log_edges(stages_ms.values())
    rows = "".join(_stage_row(name, values, edges, colours.get(name)) for name, values in stages_ms.items())
    return (
        "<h2>From shutter to motor</h2>"
        '<p class="lead">Where the time of a control step goes, from the capture of the frames to the command. '
        "The bar shows mean times in their order; each histogram counts the steps on one logarithmic axis.</p>"
        f'<section class="stages card">{_bar(inside, stages_ms, colours)}'
        '<div class="stage head"><span>stage</span><span></span><span>p50 ms</span><span>p99 ms</span>'
        f"<span>max ms</span></div>{rows}{_axis(edges)}</section>"
    )


def _bar(names: list[str], stages_ms: Mapping[str, NDArray[np.float64]], colours: Mapping[str, str]) -> str:
    """Draw the means, since only they add up; over all steps, so that a stage of few steps counts little."""
    n_steps = len(stages_ms[TOTAL])
    means = {name: float(stages_ms[name].sum()) / n_steps for name in names}
    pieces = "".join(
        f'<i style="flex:{mean:.4f};background:{colours[name]}" title="{escape(_label(name))}: {_ms(mean)} ms"></i>'
        for name, mean in means.items()
    )
    return (
        f'<div class="bar">{pieces}</div>'
        f'<div class="barscale num"><span>capture</span><span>command after {_ms(sum(means.values()))} ms</span></div>'
    )


def _stage_row(name: str, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str | None) -> str:
    latency = summarise(values)
    kind = {TOTAL: " total", WORLD_STEP: " outside"}.get(name, "")
    fill = colour or ("var(--ink)" if name == TOTAL else "var(--soft)")
    numbers = "".join(f'<span class="num">{_ms(value)}</span>' for value in (latency.p50, latency.p99, latency.max))
    return (
        f'<div class="stage{kind}"><span class="name"><span class="swatch" style="background:{fill}"></span>'
        f"{escape(_label(name))}</span>{_histogram_svg(values, edges, fill)}{numbers}</div>"
    )


def _histogram_svg(values: NDArray[np.float64], edges: NDArray[np.float64], fill: str) -> str:
    """Draw a histogram, scaled to the fullest bin."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    width = HISTOGRAM_WIDTH / len(counts)
    heights = counts / counts.max() * (HISTOGRAM_HEIGHT - 3)
    bars = "".join(
        # At least a pixel high, so that one slow step among thousands is seen.
        f'<rect x="{k * width:.1f}" y="{HISTOGRAM_HEIGHT - max(height, 1.5):.1f}" width="{width - 0.6:.1f}" '
        f'height="{max(height, 1.5):.1f}"/>'
        for k, height in enumerate(heights)
        if height
    )
    return (
        f'<svg viewBox="0 0 {HISTOGRAM_WIDTH:g} {HISTOGRAM_HEIGHT:g}" preserveAspectRatio="none" aria-hidden="true">'
        f'<line x1="0" x2="{HISTOGRAM_WIDTH:g}" y1="{HISTOGRAM_HEIGHT:g}" y2="{HISTOGRAM_HEIGHT:g}" '
        f'stroke="var(--line)"/><g fill="{fill}">{bars}</g></svg>'
    )


def _log_edges(columns: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return bin edges from the decade below the shortest to the decade above the longest duration [ms]."""
    values = np.maximum(np.concatenate(list(columns)), SMALLEST_MS)
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max() * 1.0001))
    return np.logspace(low, high, int((high - low) * BINS_PER_DECADE) + 1)


def _axis(edges: NDArray[np.float64]) -> str:
    low, high = round(np.log10(edges[0])), round(np.log10(edges[-1]))
    ticks = "".join(
        f'<span style="left:{100 * (power - low) / (high - low):.2f}%">{10.0**power:g}</span>'
        for power in range(low, high + 1)
    )
    return f'<div class="stage scale" style="border:0"><span></span><div class="axis num">{ticks}</div></div>'


def _episode_card(folder: Path, episode: EpisodeResult) -> str:
    video, log = video_path(folder, episode.seed), log_path(folder, episode.seed)
    error = f'<p class="error">{escape(episode.error)}</p>' if episode.error else ""
    latency = episode.latency
    facts = [f"{episode.steps} steps", f"{episode.rate_hz:.1f} steps/s"]
    if latency is not None:
        facts.append(f"{_ms(latency.p50)} ms to command")
    if episode.clamps:
        facts.append(f"{episode.clamps} limits hit")
    if episode.lost_steps:
        facts.append(f"{episode.lost_steps} steps lost")
    if episode.interventions:
        facts.append(f"a person took over {episode.takeovers} times and drove {episode.interventions} steps")
    return (
        f'<article class="episode card" id="seed-{episode.seed}">{video_element(folder, video)}<div class="text">'
        f"<h3>seed {episode.seed} {badge(episode.outcome)}{_help(episode)}{_link(folder, log)}</h3>"
        f'<p class="facts num">{" · ".join(facts)}</p>{error}</div></article>'
    )


def _help(episode: EpisodeResult) -> str:
    return ", with a person's help" if episode.helped else ""


def _link(folder: Path, log: Path) -> str:
    return f'<a href="{relative(folder, log)}">log</a>' if log.is_file() else ""


def _table_row(episode: EpisodeResult) -> str:
    latency = episode.latency
    times = ("–",) * 3 if latency is None else (_ms(latency.p50), _ms(latency.p99), _ms(latency.max))
    cells = (
        f'<a href="#seed-{episode.seed}">{episode.seed}</a>',
        badge(episode.outcome) + _help(episode),
        str(episode.steps),
        f"{episode.duration_s:.1f}",
        f"{episode.rate_hz:.1f}",
        *times,
        str(episode.clamps),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _provenance(run: RunSummary, summary: Mapping[str, Any]) -> str:
    again = f"<pre>{escape(run.info.command)}</pre>" if run.info.command else ""
    parts = [("Run it again", again)] if again else []
    device = {"the policy's device": run.info.device} if run.info.device else {}
    parts.append(("Machine", definitions({**summary["machine"], **device})))
    parts.append(("Versions", definitions(summary["versions"])))
    parts += [(f"Recipe {name}", f"<pre>{escape(text)}</pre>") for name, text in run.info.recipes.items()]
    return folded(parts)


def _label(stage: str) -> str:
    return STAGE_LABELS.get(stage, stage.replace("_", " "))


def _ms(duration_ms: float) -> str:
    """Format a duration [ms] with two or three figures: 0.04, 3.7, 128."""
    if duration_ms >= 100:
        return f"{duration_ms:.0f}"
    return f"{duration_ms:.1f}" if duration_ms >= 1 else f"{duration_ms:.2f}"
