"""Writes an evaluation's report.html, whose videos lie beside it, and summary.json for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from vla_robot.core.host.provenance import document
from vla_robot.core.stats import wilson_interval
from vla_robot.evaluate.evaluation import Comparison, Evaluation, Score, Trial
from vla_robot.evaluate.failure_detection import FALSE_ALARMS, Detection, least_successes
from vla_robot.evaluate.report_parts import (
    badge,
    definitions,
    folded,
    interval_bar,
    percent,
    video_element,
    write_page,
)
from vla_robot.evaluate.video_selection import film_path
from vla_robot.loop.failure_detector import WINDOW, Signal

TEMPLATE = Path(__file__).with_name("evaluation_report.html")

LIMITS = 6
"""Number of limits of steps for which successes are told."""

CURVES = (1, 6, 3, 7, 5, 2, 4)
"""Colours of curves, neighbours unlike: numbers of the page's palette."""

KEY = {
    "success": "success",
    "failure": "failure: the world ended it, such as when a wrong object was raised",
    "timeout": "timeout",
    "error": "error: no action, or the world failed",
}


def write_evaluation(folder: Path, evaluation: Evaluation, command: str) -> Path:
    """Write summary.json and report.html, and return the latter.

    Args:
        folder: folder of the evaluation; its videos are linked if they exist.
        evaluation: the evaluation, with at least one trial.
        command: the command line that resumes it, or shows it again.

    Raises:
        DataError: writing failed.
    """
    summary = document("eval", **evaluation.to_dict())
    return write_page(folder, summary, TEMPLATE, _fields(folder, evaluation, command, summary))


def _fields(folder: Path, evaluation: Evaluation, command: str, summary: dict[str, Any]) -> dict[str, str]:
    scores = evaluation.scores
    return {
        "title": escape(f"{evaluation.env} evaluated: {', '.join(evaluation.policies)}"),
        "env": escape(evaluation.env),
        "seeds_of": escape(_seeds_of(evaluation)),
        "when": f"{datetime.fromisoformat(evaluation.started_at):%d %B %Y, %H:%M}",
        "notice": _notice(evaluation),
        "legend": _legend(scores),
        "scores": _score_table(evaluation),
        "protocol": _protocol(evaluation),
        "seeds": "".join(_seed_row(folder, score) for score in scores),
        "key": "".join(f'<span><i class="{outcome}"></i>{text}</span>' for outcome, text in KEY.items()),
        "comparisons": _comparisons(evaluation.comparisons),
        "tasks": _tasks(scores),
        "limits": _limits(scores),
        "detection": _detection(scores),
        "episodes": _episodes(folder, scores),
        "provenance": folded(
            [
                ("Command", f"<pre>{escape(command)}</pre>"),
                ("Machine", definitions(summary["machine"])),
                ("Versions", definitions(summary["versions"])),
            ]
        ),
    }


def _seeds_of(evaluation: Evaluation) -> str:
    worlds, seeds = sum(map(len, evaluation.suites.values())), evaluation.seeds
    each = f"{len(seeds)} seeds from {seeds.start}"
    where = each if worlds == 1 else f"{worlds} tasks, {each} in each"
    by = f"{where}, run by every policy"
    return by if len(evaluation.languages) == 1 else f"{by} with every wording of the task"


def _notice(evaluation: Evaluation) -> str:
    if evaluation.complete:
        return ""
    driven = sum(score.count for score in evaluation.scores)
    return f'<p class="notice">Not finished: {driven} of {evaluation.planned} episodes are shown.</p>'


def _legend(scores: Iterable[Score]) -> str:
    """Explain a column that only some evaluations have."""
    if not any(score.language == "wrong-object" for score in scores):
        return ""
    return (
        " In the rows “wrong-object” the instruction names another object than the scene's task is about: success is "
        "judged by the task, and “did as told” counts the episodes in which the policy raised what it was told to."
    )


def _score_table(evaluation: Evaluation) -> str:
    """Return one row per score; columns that would be empty are left out."""
    scores = evaluation.scores
    columns: dict[str, Callable[[Score], str]] = {
        "suite": lambda s: escape(s.suite),
        "policy": lambda s: escape(s.policy),
        "wording": lambda s: s.language,
        "rate": lambda s: interval_bar(s.rate or 0.0, s.interval),
        "": lambda s: f'<span class="rate">{percent(s.rate or 0.0)}</span>',
        "95 %": lambda s: " to ".join(map(percent, s.interval)),
        "succeeded": lambda s: f"{s.successes} of {s.count}",
        "wrong object": lambda s: str(s.wrong),
        "did as told": lambda s: str(s.followed) if s.language == "wrong-object" else "–",
        "stalled": lambda s: str(s.stalled),
        "errors": lambda s: str(s.errors),
        "median steps": lambda s: "–" if s.median_steps is None else f"{s.median_steps:.0f}",
    }  # fmt: skip
    if not any(score.suite for score in scores):
        del columns["suite"]
    if all(score.language == "plain" for score in scores):
        del columns["wording"]
    if not evaluation.ends_at_wrong_objects:
        del columns["wrong object"]
    if not any(score.language == "wrong-object" for score in scores):
        del columns["did as told"]
    for column in ("stalled", "errors"):
        if not any(getattr(score, column) for score in scores):
            del columns[column]
    return _table(columns, [[cell(score) for cell in columns.values()] for score in scores])


def _protocol(evaluation: Evaluation) -> str:
    """Return what the scores depend on; empty for worlds of no benchmark and policies that leave frames as they are."""
    if not (told := evaluation.told()):
        return ""
    return f'<h2>Protocol</h2><section class="card pad">{definitions(told)}</section>'


def _seed_row(folder: Path, score: Score) -> str:
    marks = "".join(_seed_mark(folder, trial) for trial in score.trials)
    return f'<div class="seedrow"><span>{escape(score.name)}</span><div class="seeds">{marks}</div></div>'


def _seed_mark(folder: Path, trial: Trial) -> str:
    label = escape(f"{trial.key.world}, seed {trial.key.seed}: {trial.result.outcome}, told “{trial.instruction}”")
    place = f'class="{trial.result.outcome}" title="{label}"'
    if film_path(folder, trial.key).is_file():
        return f'<a {place} href="#{_anchor(trial)}" aria-label="{label}"></a>'
    return f'<i {place} role="img" aria-label="{label}"></i>'


def _comparisons(comparisons: Iterable[Comparison]) -> str:
    rows = [
        [escape(c.policy), escape(c.baseline), str(c.paired), str(c.only_policy), str(c.only_baseline), f"{c.p:.2g}"]
        for c in comparisons
    ]
    if not rows:
        return ""
    head = ("row", "against", "seeds of both", "only the row solved", "only the other solved", "p")
    return (
        '<h2>Compared seed by seed</h2><p class="lead">McNemar\'s exact test: p is how likely a split as uneven as '
        "this would be if both were equally good. Seeds that both solve, or neither, do not count.</p>"
        f'<section class="card scroll"><table class="num left">{_table(head, rows)}</table></section>'
    )


def _tasks(scores: Sequence[Score]) -> str:
    """Return a table of successes by task for each suite; empty if every suite has one task only."""
    suites = [[s for s in scores if s.suite == name] for name in dict.fromkeys(score.suite for score in scores)]
    tables = "".join(_task_table(suite) for suite in suites if len(_task_names(suite)) > 1)
    if not tables:
        return ""
    return (
        '<h2>By task</h2><p class="lead">Successes by the task of the scene, with Wilson\'s 95 % interval, for any '
        f"wording.</p>{tables}"
    )


def _limits(scores: Sequence[Score]) -> str:
    """Return a table of successes under smaller limits of steps; empty if nothing succeeded."""
    if not any(score.successes for score in scores):
        return ""
    longest = max(trial.result.steps for score in scores for trial in score.trials)
    limits = [math.ceil(longest * part / LIMITS) for part in range(1, LIMITS + 1)]
    rows = [[escape(score.name), str(score.count), *(str(score.within(steps)) for steps in limits)] for score in scores]
    head = ("row", "episodes", *(f"{steps} steps" for steps in limits))
    return (
        '<h2>With fewer steps</h2><p class="lead">Successes under smaller limits of steps. Policies do not know the '
        "limit, so that an evaluation under one of these would find the same.</p>"
        f'<section class="card scroll"><table class="num left">{_table(head, rows)}</table></section>'
    )


def _detection(scores: Sequence[Score]) -> str:
    """Return a table of how well the policies' signals tell failures; empty if no policy has one."""
    found = [(score.name, signal, told) for score in scores for signal, told in score.detections.items()]
    if not found:
        return ""
    rows = [
        [
            escape(name),
            signal.title,
            str(told.successes),
            str(told.failures),
            _number(told.separation, ".2f"),
            _number(told.separation_early, ".2f")
            + (f" <small>of {told.early_steps} steps</small>" if told.separation_early is not None else ""),
            _number(told.threshold, ".3g") + (f" <small>{signal.unit}</small>" if told.threshold is not None else ""),
            f"{told.warned} of {told.failures}" if told.threshold is not None else "–",
            _number(told.warned_at, ".0f"),
        ]
        for name, signal, told in found
    ]
    told_of = ("successes", "failures", "AUROC", "AUROC, beginnings", "threshold", "failures warned of", "at step")
    head = ("row", "signal", *told_of)
    return (
        '<h2>Failure detection</h2><p class="lead">Entropy is how unsure a policy that answers in tokens is of them. '
        "The chunk gap is how far a policy's plan is from its former one in the steps that both have, as a share of "
        "each dimension's range; a policy whose chunks are used up has none. "
        f"The score of a step is the mean of {WINDOW} steps. AUROC is how likely the highest score of a "
        "failure is above that of a success; of beginnings, within the successes' median number of steps, since a "
        f"longer episode has more chances of a high score. At most {percent(FALSE_ALARMS)} of further successful "
        f"episodes exceed the threshold, which needs {least_successes()} successes (conformal).</p>"
        f'<section class="card scroll"><table class="num left">{_table(head, rows)}</table></section>'
        f"{_roc_curves(found)}"
    )


def _roc_curves(found: Sequence[tuple[str, Signal, Detection]]) -> str:
    """Draw the share of failures warned of over that of false alarms; empty without failures beside successes."""
    drawn = [(f"{name}, {signal.title}", told) for name, signal, told in found if told.roc]
    if not drawn:
        return ""
    curves = "".join(
        f'<polyline points="{" ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in told.roc)}" fill="none" '
        f'stroke="var(--c{CURVES[k % len(CURVES)]})" stroke-width="1.6" vector-effect="non-scaling-stroke"/>'
        for k, (_, told) in enumerate(drawn)
    )
    key = "".join(
        f'<span><i style="background:var(--c{CURVES[k % len(CURVES)]})"></i>{escape(name)}</span>'
        for k, (name, _) in enumerate(drawn)
    )
    return (
        '<figure class="card pad roc"><svg viewBox="-1 -1 102 102" role="img" aria-label="ROC curves">'
        '<rect x="0" y="0" width="100" height="100" fill="none" stroke="var(--line)"/>'
        f'<line x1="0" y1="100" x2="100" y2="0" stroke="var(--line)" stroke-dasharray="2 2"/>{curves}</svg>'
        "<figcaption>Failures warned of (upwards) and false alarms (to the right), both from 0 to 100 %, as the "
        f'threshold falls; chance is the dashed line.<div class="key">{key}</div></figcaption></figure>'
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _task_table(scores: Sequence[Score]) -> str:
    """Return a suite's tasks as rows and its scores as columns."""
    head = [
        scores[0].suite or "task",
        *(", ".join([s.policy, s.language][: 1 + (s.language != "plain")]) for s in scores),
    ]
    rows = [
        [escape(scores[0].in_suite(task)), *(_solved(score, task) for score in scores)] for task in _task_names(scores)
    ]
    return f'<section class="card scroll tasks"><table class="num">{_table(map(escape, head), rows)}</table></section>'


def _task_names(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(task for score in scores for task in score.by_task))


def _solved(score: Score, task: str) -> str:
    solved, asked = score.by_task.get(task, (0, 0))
    if not asked:
        return "–"
    interval = wilson_interval(solved, asked)
    return (
        f"{interval_bar(solved / asked, interval)}{solved} of {asked} "
        f"<small>{' to '.join(map(percent, interval))}</small>"
    )


def _episodes(folder: Path, scores: Iterable[Score]) -> str:
    """Return the videos, those without success first."""
    sections = "".join(_film_section(folder, score) for score in scores)
    return f"<h2>Videos</h2>{sections}" if sections else ""


def _film_section(folder: Path, score: Score) -> str:
    filmed = [trial for trial in score.trials if film_path(folder, trial.key).is_file()]
    if not filmed:
        return ""
    several = len(score.worlds) > 1
    cards = "".join(_card(folder, t, several) for t in sorted(filmed, key=lambda trial: trial.result.success))
    failed = sum(not trial.result.success for trial in filmed)
    shown = [f"{failed} that did not succeed"] * bool(failed)
    shown += [f"{len(filmed) - failed} that succeeded"] * (len(filmed) > failed)
    return (
        f'<h3 class="rowname">{escape(score.name)} <span>{", then ".join(shown)}</span></h3>'
        f'<section class="episodes">{cards}</section>'
    )


def _place(trial: Trial, several: bool) -> str:
    return f"{escape(trial.key.world)}, " if several else ""


def _card(folder: Path, trial: Trial, several: bool) -> str:
    video = video_element(folder, film_path(folder, trial.key))
    facts = [f"{trial.result.steps} steps"]
    if trial.raised is not None:
        facts.append(f"raised: {escape(trial.raised)}")
    if trial.instruction != trial.task:
        facts.append(f"the task: {escape(trial.task)}")
    error = f'<p class="error">{escape(trial.result.error)}</p>' if trial.result.error else ""
    return (
        f'<article class="episode card" id="{_anchor(trial)}">{video}'
        f'<div class="text"><h3>{_place(trial, several)}seed {trial.key.seed} {badge(trial.result.outcome)}</h3>'
        f'<p class="facts num">{" · ".join(facts)}</p>{error}</div></article>'
    )


def _anchor(trial: Trial) -> str:
    key = trial.key
    return escape(f"{key.policy}-{key.language}-{key.world}-{key.seed}".replace(" ", "_"))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return the inside of a table."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody>"


def _cells(tag: str, contents: Iterable[str]) -> str:
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)
