"""Output of `vla eval`: its lines, its table, and the command that continues."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vla_robot.cli.common.cli_common import short_path
from vla_robot.cli.run.progress_view import episode_line
from vla_robot.core.stats import wilson_interval
from vla_robot.evaluate.evaluation import Comparison, Evaluation, Score, Trial
from vla_robot.evaluate.failure_detection import FALSE_ALARMS, Detection, least_successes
from vla_robot.loop.failure_detector import Signal, Threshold

if TYPE_CHECKING:
    from vla_robot.cli.evaluate.plan import EvaluateArgs


def trial_line(
    trial: Trial, number: int, of: int, several_policies: bool = False, several_worlds: bool = False
) -> Text:
    """Return an episode's line: policy and world where there are several, another instruction than the world's."""
    line = episode_line(trial.result, number, of)
    for is_told, name in ((several_policies, trial.key.policy), (several_worlds, trial.key.world)):
        if is_told:
            line.append(f"  {name}", style="dim")
    return line if trial.instruction == trial.task else line.append(f"  “{trial.instruction}”", style="dim")


def score_table(evaluation: Evaluation) -> Table:
    """Return a table with a row per policy and language, without empty columns."""
    scores = evaluation.scores
    languages, errors = len(evaluation.languages) > 1 or scores[0].language != "plain", any(s.errors for s in scores)
    stalled = any(score.stalled for score in scores)
    misdirected = any(score.language == "wrong-object" for score in scores)
    table = Table(box=None, pad_edge=False, header_style="dim")
    suites = any(score.suite for score in scores)
    if suites:
        table.add_column("suite", overflow="fold")
    table.add_column("policy", overflow="fold")
    if languages:
        table.add_column("language", no_wrap=True)
    judges = evaluation.ends_at_wrong_objects
    columns = ["succeeded", "rate", "95 %\ninterval"] + ["wrong\nobject"] * judges
    columns += ["did as\ntold"] * misdirected + ["stalled"] * stalled + ["errors"] * errors + ["median\nsteps"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        cells = [*[score.suite] * suites, score.policy, *[score.language] * languages, *_numbers(score)]
        cells += [str(score.wrong)] * judges
        cells += [str(score.followed) if score.language == "wrong-object" else "–"] * misdirected
        cells += [str(score.stalled)] * stalled + [str(score.errors)] * errors
        table.add_row(*cells, "–" if score.median_steps is None else f"{score.median_steps:.0f}")
    return table


def task_tables(evaluation: Evaluation) -> Iterator[Table]:
    """Yield, for each suite of several worlds, its tasks as rows and its scores as columns."""
    for suite, worlds in evaluation.suites.items():
        scores = [score for score in evaluation.scores if score.worlds == worlds]
        if len(worlds) < 2 or not scores:
            continue
        table = Table(box=None, pad_edge=False, header_style="dim", title=suite, title_justify="left")
        table.add_column("task", overflow="fold")
        for score in scores:
            table.add_column(score.name, justify="right", no_wrap=True)
        for task in dict.fromkeys(task for score in scores for task in score.by_task):
            counts = (score.by_task.get(task) for score in scores)
            table.add_row(scores[0].in_suite(task), *("–" if found is None else _counted(*found) for found in counts))
        yield table


def _counted(successes: int, count: int) -> str:
    low, high = wilson_interval(successes, count)
    return f"{successes} of {count}\n{low:.0%} to {high:.0%}"


def _numbers(score: Score) -> list[str]:
    low, high = score.interval
    rate = "–" if score.rate is None else f"{score.rate:.0%}"
    return [f"{score.successes} of {score.count}", rate, f"{low:.0%} to {high:.0%}"]


def in_words(c: Comparison) -> str:
    """Return a comparison as a sentence."""
    return (
        f"\n{c.policy} against {c.baseline}, seeds of both {c.paired}: {c.only_policy} solved by {c.policy} alone, "
        f"{c.only_baseline} by {c.baseline} alone; McNemar's exact test p = {c.p:.2g}"
    )


def foreseen(score: Score) -> Iterator[str]:
    """Yield how well each signal of a policy tells its failures, as a sentence; none without failures or signals."""
    for signal, told in score.detections.items():
        if told.separation is not None:
            yield _foreseen_by(signal, told, score.name)


def _foreseen_by(signal: Signal, told: Detection, name: str) -> str:
    words = f"\n{name}, failures told by the {signal.title}: AUROC {told.separation:.2f}"
    if told.separation_early is not None:
        words += f", {told.separation_early:.2f} of the first {told.early_steps} steps"
    if told.threshold is None:
        return f"{words}. A threshold needs {least_successes()} successes."
    words += (
        f". Above {told.threshold:.3g} {signal.unit}, which at most {100 * FALSE_ALARMS:.0f} % of successes exceed, "
        f"{told.warned} of {told.failures} failures are warned of"
    )
    if told.warned_at is None:
        return f"{words}: it is no detector here."
    command = f"vla run --takeover browser --ask-when-unsure {Threshold(signal, told.threshold)}"
    return f"{words}, at step {told.warned_at:.0f} (median): {command}"


def as_asked_for(args: EvaluateArgs, folder: Path) -> str:
    """Return the command line that continues in this folder, or shows its results again."""
    worlds = ["--suite", *args.suite] if args.suite else ["--env", *args.env]
    if args.move_objects is not None:
        worlds += ["--move-objects", str(args.move_objects)]
    words = ["vla", "eval", *worlds, "--policy", *args.policy]
    words += ["--episodes", str(args.episodes), "--seed", str(args.first_seed)]
    if args.rows is not None:
        words += ["--rows", str(args.rows)]
    if args.device is not None:
        words += ["--device", args.device]
    if args.cluster is not None:
        words += ["--cluster", args.cluster, *(["--replicas", str(args.replicas)] if args.replicas > 1 else [])]
    if args.language != ("plain",):
        words += ["--language", *args.language]
    if args.videos != "failures":  # with "none", the episodes that are left render nothing either
        words += ["--videos", args.videos]
    return shlex.join([*words, "--out", short_path(folder)])
