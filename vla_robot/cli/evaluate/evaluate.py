"""`vla eval`: scores policies on the same seeds, with intervals, with the task's own and other instructions."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED, option, shown, shown_env
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.evaluate.eval_summary import as_asked_for, in_words, score_table, trial_line
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError, RecipeError
from vla_robot.core.host.provenance import available_cores
from vla_robot.core.ports import Policy
from vla_robot.core.seeds import seed_problem
from vla_robot.evaluate.eval_wrappers import ReplaceableWorld
from vla_robot.evaluate.evaluation import Evaluation, Examiner, Trial, TrialKey, trial_keys
from vla_robot.evaluate.evaluation_report import write_evaluation
from vla_robot.evaluate.instruction_variants import Language, Words, words_for
from vla_robot.evaluate.runner import new_run_folder
from vla_robot.evaluate.trial_log import TrialLog
from vla_robot.evaluate.video_selection import Videos, VideoSelection
from vla_robot.evaluate.worker_pool import run_in_pool
from vla_robot.recipe import dump
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.env_source import EnvSource, find_env
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.record.collect import WithoutTruth
from vla_robot.serve.policy.shared_policy import SharedPolicy

MOST_WORKERS = 8
"""Largest default of --workers: each holds a simulator, which grows to 1 GB."""


@dataclass(frozen=True)
class EvaluateArgs:
    """Score policies in closed loop on the same seeds. The same command with the same --out continues."""

    env: Annotated[str, option("ENV")]
    """the world, by name or path"""
    policy: Annotated[tuple[str, ...], option("POLICY ...")]
    """policy by name or path; several are compared on the same seeds, with the first as the baseline"""
    episodes: Annotated[int, option("N")] = 50
    """episodes of each policy in each language"""
    seed: Annotated[int, option("SEED")] = 10_000
    """the first episode's seed; the k-th has SEED + k. Training data should use others"""
    language: Annotated[tuple[Language, ...], option("LANGUAGE ...")] = ("plain",)
    """wording of the task: plain, none, paraphrase, wrong-object; docs/evaluate.md explains them"""
    rows: Annotated[int | None, option("N")] = None
    """execution horizon: how many actions of an answer are used before a policy is asked again"""
    workers: Annotated[int | None, option("N")] = None
    """number of worlds in parallel, each in its own process; by default one per core, at most 8"""
    videos: Videos = "failures"
    """which episodes get a video; "failures" also gives three successes"""
    out: Annotated[Path | None, option("FOLDER")] = None
    """folder of report, videos and finished episodes; by default a new one, runs/eval-<time>"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise RecipeError(f"--episodes {self.episodes}: at least 1.")
        if problem := seed_problem(self.seed, self.episodes):
            raise RecipeError(f"--seed {self.seed}: {problem}.")
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"--rows {self.rows}: at least 1.")
        if not self.policy:
            raise RecipeError("--policy names no policy. `vla list policies` shows them.")
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"--workers is {self.workers}; at least 1 is needed.")
        for name, values in (("--policy", self.policy), ("--language", self.language)):
            if len(set(values)) != len(values) or not values:
                raise RecipeError(f"{name} {' '.join(values)}: each once, and at least one.")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.episodes)


@dataclass(frozen=True)
class Plan:
    """An evaluation, with every name resolved.

    Attributes:
        env: the world.
        policies: name in the report -> the policy.
        words: language -> the task's wording.
        seeds: seeds of each policy in each language.
        rows: execution horizon of every policy; None for each recipe's.
        folder: the evaluation's folder.
    """

    env: EnvSource
    policies: dict[str, PolicySource]
    words: dict[Language, Words]
    seeds: range
    rows: int | None
    folder: Path

    def header(self) -> dict[str, Any]:
        """Return the values that a command must share with the one that it continues."""
        return {
            "world": {self.env.name: hashlib.sha256(dump(self.env.recipe).encode()).hexdigest()[:16]},
            "policies": {name: source.fingerprint() for name, source in self.policies.items()},
            "languages": list(self.words),
            "seed": self.seeds.start,
            "episodes": len(self.seeds),
            **({} if self.rows is None else {"rows": self.rows}),
        }

    def evaluation(self, log: TrialLog) -> Evaluation:
        """Return the results so far."""
        trials = tuple(log.trials.values())
        names, languages = tuple(self.policies), tuple(self.words)
        return Evaluation(self.env.name, names, languages, self.seeds, trials, log.started_at)


def plan(args: EvaluateArgs) -> Plan:
    """Resolve a command line, before any process starts.

    Raises:
        RecipeError: a name is unknown, or the world has no words for a language.
    """
    env = find_env(args.env)
    policies = _named([find_policy(name) for name in args.policy])
    words: dict[Language, Words] = {language: words_for(env.recipe, language) for language in args.language}
    folder = args.out or new_run_folder(Path("runs"), "eval-")
    return Plan(env, policies, words, args.seeds, args.rows, folder)


def main(args: EvaluateArgs) -> int:
    """Score; status 0 if no episode ended in an error, whatever the score.

    Raises:
        VlaError: a recipe, the world, a policy or the folder cannot be used, or they do not fit. Finished episodes are
            kept, and the same command continues after them.
    """
    what = plan(args)
    say(f"vla eval: {shown_env(what.env)}, {args.episodes} episodes from seed {args.seed}", flush=True)
    with TrialLog(what.folder, what.header(), datetime.now().astimezone().isoformat(timespec="seconds")) as log:
        videos = VideoSelection(what.folder, args.videos, what.env.recipe.rate_hz, log.trials.values())
        try:
            _drive(what, log, videos, args.workers or min(MOST_WORKERS, available_cores()))
        except Exception:
            with contextlib.suppress(DataError):  # a full disk may have ended the evaluation
                _report(args, what, what.evaluation(log))
            raise
        evaluation = what.evaluation(log)
        _report(args, what, evaluation)
    if evaluation.trials:
        say(f"Next: {_next(args, what, evaluation)}")
    return _status(evaluation)


def _report(args: EvaluateArgs, what: Plan, evaluation: Evaluation) -> None:
    """Print and write the results of the finished episodes."""
    if evaluation.trials:
        console = Terminal()
        console.print(score_table(evaluation))
        for comparison in evaluation.comparisons:
            console.print(in_words(comparison), soft_wrap=True)
        report = write_evaluation(what.folder, evaluation, as_asked_for(args, what.folder))
        say(f"\nReport: {report}", flush=True)
    else:
        say("No episode was finished.")
    if args.json:
        write_json(args.json, "eval", **evaluation.to_dict())


def _drive(what: Plan, log: TrialLog, videos: VideoSelection, num_workers: int) -> None:
    """Run every episode that has no trial yet. An episode that ended in an error is run again."""
    asked = trial_keys(tuple(what.policies), tuple(what.words), what.seeds)
    left = [q for q in asked if q not in log.trials or log.trials[q].result.outcome == "error"]
    if len(left) < len(asked):
        say(f"  {len(asked) - len(left)} of {len(asked)} episodes are finished already", flush=True)
    if not left:
        return
    with stop_on_interrupt() as stop, _worlds(what.env.recipe, min(num_workers, len(left))) as worlds:
        session = _Session(what, log, videos, worlds, stop)
        begun_s = time.monotonic()
        for name in what.policies:
            session.examine(name, [key for key in left if key.policy == name])
        took_s = time.monotonic() - begun_s
    say(f"\n  {session.driven} episodes in {took_s:.0f} s: {60 * session.driven / took_s:.1f} a minute\n", flush=True)


@dataclass
class _Session:
    """Evaluates one policy after the other in open worlds."""

    what: Plan
    log: TrialLog
    videos: VideoSelection
    worlds: Sequence[ReplaceableWorld]
    stop: Event
    driven: int = 0

    def examine(self, name: str, asked: Sequence[TrialKey]) -> None:
        """Run the episodes with one policy; write each finished trial."""
        if not asked or self.stop.is_set():
            return
        source, embodiment = self.what.policies[name], self.worlds[0].embodiment
        say(f"\n  {name}: {shown(source)}; {len(self.worlds)} at once", flush=True)
        with _policies(source, self.what, embodiment, len(self.worlds)) as policies:
            workers = [self._worker(world, policy) for world, policy in zip(self.worlds, policies, strict=True)]
            with contextlib.closing(run_in_pool(workers, asked)) as trials:
                self._keep(trials, len(asked))

    def _worker(self, world: ReplaceableWorld, policy: Policy) -> Callable[[TrialKey], Trial]:
        guard = build_guard(world.embodiment.action)
        examiner = Examiner(world, policy, guard, self.what.words, self.stop.is_set, self.videos.subscribers)
        return lambda key: self.videos.develop(examiner(key))

    def _keep(self, trials: Iterable[Trial], of: int) -> None:
        console = Terminal()
        for number, trial in enumerate(trials, start=1):
            if not trial.result.finished:
                return
            self.log.add(trial)
            self.driven += 1
            console.print(trial_line(trial, number, of), soft_wrap=True)
            if self.videos.failure is not None:
                raise self.videos.failure


@contextlib.contextmanager
def _worlds(env: EnvRecipe, count: int) -> Iterator[list[ReplaceableWorld]]:
    """Open worlds that show the simulator's state, all at the same time, since each takes seconds."""
    worlds = [ReplaceableWorld(partial(open_world, env, privileged=True)) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for world in worlds:
            stack.callback(world.close)
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(ReplaceableWorld.open, worlds))
        yield worlds


@contextlib.contextmanager
def _policies(source: PolicySource, what: Plan, embodiment: Embodiment, count: int) -> Iterator[list[Policy]]:
    """Build a policy per world. Weights are loaded once for all; policies without weights may have a state."""
    build = partial(build_policy, source, what.env.recipe, embodiment, rows=what.rows)
    if not isinstance(source.recipe, WeightsRecipe):
        policies = [build() for _ in range(count)]
        yield policies if source.is_privileged else [WithoutTruth(policy) for policy in policies]
        return
    with SharedPolicy(WithoutTruth(build()), max_batch=count) as shared:
        yield [shared.seat() for _ in range(count)]


def _named(sources: Sequence[PolicySource]) -> dict[str, PolicySource]:
    """Return the policies by name, or by path if names repeat: every training ends in a folder 'final'."""
    counts = Counter(source.name for source in sources)
    return {source.name if counts[source.name] == 1 else shown(source): source for source in sources}


def _next(args: EvaluateArgs, what: Plan, evaluation: Evaluation) -> str:
    """Return a suggestion for the next command."""
    if not evaluation.complete or any(score.errors for score in evaluation.scores):
        return f"`{as_asked_for(args, what.folder)}` continues."
    return f"`vla run --env {args.env} --policy {args.policy[0]} --episodes 5` shows one in detail, with its timing."


def _status(evaluation: Evaluation) -> int:
    if not evaluation.complete:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(score.errors for score in evaluation.scores) else 0
