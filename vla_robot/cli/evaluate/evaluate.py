"""`vla eval`: scores policies on the same seeds, with intervals, with the task's own and other instructions."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event

from vla_robot.cli.build import open_runner
from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED, on, shown, shown_env
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.evaluate.eval_summary import as_asked_for, foreseen, in_words, score_table, task_tables, trial_line
from vla_robot.cli.evaluate.plan import MOST_WORKERS, EvaluateArgs, Plan, plan, with_devices_of
from vla_robot.cli.evaluate.seats import (
    Examine,
    Examined,
    PolicyIn,
    PolicyModel,
    Seat,
    SeatHere,
    SeatThere,
    SharedModel,
    built_policy,
    embodiment_in,
    history_steps_of,
)
from vla_robot.core.errors import DataError
from vla_robot.core.ports import TaskRunner, Workers
from vla_robot.evaluate.evaluation import Evaluation, TrialKey, in_turn, trial_keys
from vla_robot.evaluate.evaluation_report import write_evaluation
from vla_robot.evaluate.trial_log import TrialLog
from vla_robot.evaluate.video_selection import VideoSelection
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.serve.policy.load import model_needs


def main(args: EvaluateArgs) -> int:
    """Score; status 0 if no episode ended in an error, whatever the score.

    Raises:
        VlaError: a recipe, the world, a policy or the folder cannot be used, or they do not fit. Finished episodes are
            kept, and the same command continues after them.
    """
    asked = plan(args)
    say(f"vla eval: {', '.join(asked.suites)}; {_of_what(asked)}", flush=True)
    with open_runner(args.cluster, MOST_WORKERS) as runner:
        what = with_devices_of(runner, asked)
        evaluation = _evaluated(args, what, runner)
    if evaluation.trials:
        say(f"Next: {_next(args, what, evaluation)}")
    return _status(evaluation)


def _evaluated(args: EvaluateArgs, what: Plan, runner: TaskRunner) -> Evaluation:
    """Run what is not finished, and report all that is."""
    with TrialLog(what.folder, what.header(), datetime.now().astimezone().isoformat(timespec="seconds")) as log:
        videos = VideoSelection(what.folder, args.videos, what.rates_hz, log.trials.values())
        try:
            _drive(args, what, runner, log, videos)
        except Exception:
            with contextlib.suppress(DataError):  # a full disk may have ended the evaluation
                _report(args, what, what.evaluation(log))
            raise
        evaluation = what.evaluation(log)
        _report(args, what, evaluation)
        return evaluation


def _of_what(what: Plan) -> str:
    """Return what is evaluated: the world's recipe, or the number of tasks; and the episodes."""
    worlds = list(what.worlds.values())
    where = shown_env(worlds[0]) if len(worlds) == 1 else f"{len(worlds)} worlds"
    return f"{where}, {len(what.seeds)} episodes{'' if len(worlds) == 1 else ' in each'} from seed {what.seeds.start}"


def _report(args: EvaluateArgs, what: Plan, evaluation: Evaluation) -> None:
    """Print and write the results of the finished episodes."""
    if evaluation.trials:
        console = Terminal()
        for table in task_tables(evaluation):
            console.print(table)
        console.print(score_table(evaluation))
        for title, words in evaluation.told().items():
            console.print(f"\n{title}: {words}.", soft_wrap=True)
        for comparison in evaluation.comparisons:
            console.print(in_words(comparison), soft_wrap=True)
        for words in itertools.chain.from_iterable(map(foreseen, evaluation.scores)):
            console.print(words, soft_wrap=True)
        report = write_evaluation(what.folder, evaluation, as_asked_for(args, what.folder))
        say(f"\nReport: {report}", flush=True)
    else:
        say("No episode was finished.")
    if args.json:
        write_json(args.json, "eval", **evaluation.to_dict())


def _drive(args: EvaluateArgs, what: Plan, runner: TaskRunner, log: TrialLog, videos: VideoSelection) -> None:
    """Run every episode that has no trial yet. An episode that ended in an error is run again."""
    asked = trial_keys(tuple(what.policies), tuple(what.worlds), what.languages, what.seeds)
    left = [q for q in asked if q not in log.trials or log.trials[q].result.outcome == "error"]
    if len(left) < len(asked):
        say(f"  {len(asked) - len(left)} of {len(asked)} episodes are finished already", flush=True)
    if not left:
        return
    needs = what.needs()
    room = runner.most_workers(needs) - (0 if runner.is_here else what.places_of_models(args.replicas))
    count = min(args.workers or max(1, room), len(left))
    with stop_on_interrupt() as stop:
        make = SeatHere(what, videos) if runner.is_here else SeatThere(what, args.videos)
        with runner.workers(make, count, needs) as workers, Bar("episodes", Terminal(), lines=False) as bar:
            session = _Session(what, log, videos, runner, workers, count, args.replicas, stop, bar, len(left))
            begun_s = time.monotonic()
            if not what.films:
                say("  no video is asked for: frames are rendered only for policies that look at them", flush=True)
            for names in _together(what):
                session.examine(names, in_turn([key for key in left if key.policy in names], what.worlds))
            took_s = time.monotonic() - begun_s
    say(f"\n  {session.driven} episodes in {took_s:.0f} s: {60 * session.driven / took_s:.1f} a minute\n", flush=True)


def _together(what: Plan) -> list[list[str]]:
    """Return the policies in the order in which they are evaluated, those together that share a world once opened.

    These are the ones that look at no frames and have no weights. Opening a world costs as much as several episodes.
    """
    blind = [name for name, source in what.policies.items() if not source.recipe.sees]
    return [names for name in what.policies if (names := blind if name in blind else [name])[0] == name]


@dataclass
class _Session:
    """Evaluates groups of policies one after the other. Each worker opens the worlds one after the other."""

    what: Plan
    log: TrialLog
    videos: VideoSelection
    runner: TaskRunner
    workers: Workers[Seat]
    count: int
    replicas: int
    stop: Event
    bar: Bar
    planned: int
    driven: int = 0

    def examine(self, names: Sequence[str], asked: Sequence[TrialKey]) -> None:
        """Run the episodes of policies that go together; write each finished trial."""
        if not asked or self.stop.is_set():
            return
        say("", flush=True)
        for name in names:
            source = self.what.policies[name]
            say(f"  {name}: {shown(source)}{on(self.what.devices.get(name))}; {self._where()}", flush=True)
        with self._policy(names[0], self.what.policies[names[0]], asked[0].world) as policy_in:
            if policy_in is None:
                return
            task = Examine(policy_in, sends_film=not self.runner.is_here)
            with contextlib.closing(self.workers.run(task, asked, self.stop.is_set)) as found:
                self._keep(found, len(asked), several_policies=len(names) > 1)

    def _where(self) -> str:
        return f"{self.count} at once" if self.runner.is_here else f"up to {self.count} at once on the cluster"

    @contextlib.contextmanager
    def _policy(self, name: str, source: PolicySource, world: str) -> Iterator[PolicyIn | None]:
        """Yield the policy of every seat; None after Ctrl-C. Weights are loaded once for all, others in each seat."""
        if not isinstance(source.recipe, WeightsRecipe):
            yield built_policy
            return
        found = next(self.workers.run(embodiment_in, [(world, name)], self.stop.is_set), None)
        if found is None:
            yield None
            return
        make = PolicyModel(self.what, name, world, found, self.count)
        needs = model_needs(source, has_gpu=self.runner.has_gpu())
        with self.runner.share(make, self.count, needs, self.replicas) as model:
            yield SharedModel(model, world, found, model.call(history_steps_of))

    def _keep(self, found: Iterable[Examined], of: int, several_policies: bool) -> None:
        console, several = self.bar.console, (several_policies, len(self.what.worlds) > 1)
        for number, examined in enumerate(found, start=1):
            trial = examined.trial
            if not trial.result.finished:
                return
            self.log.add(trial)
            if examined.film is not None:
                self.videos.keep(trial, examined.film)
            self.driven += 1
            console.print(trial_line(trial, number, of, *several), soft_wrap=True)
            self.bar.update(self.driven, self.planned)
            if self.videos.failure is not None:
                raise self.videos.failure


def _next(args: EvaluateArgs, what: Plan, evaluation: Evaluation) -> str:
    """Return a suggestion for the next command."""
    if not evaluation.complete or any(score.errors for score in evaluation.scores):
        return f"`{as_asked_for(args, what.folder)}` continues."
    one = f"vla run --env {next(iter(what.worlds))} --policy {args.policy[0]} --episodes 5"
    return f"`{one}` shows one in detail, with its timing."


def _status(evaluation: Evaluation) -> int:
    if not evaluation.complete:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(score.errors for score in evaluation.scores) else 0
