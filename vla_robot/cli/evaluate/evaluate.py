"""`vla eval`: scores policies on the same seeds, with intervals, with the task's own and other instructions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Event

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED, on, shown, shown_env
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.evaluate.eval_summary import as_asked_for, in_words, score_table, task_tables, trial_line
from vla_robot.cli.evaluate.plan import EvaluateArgs, Plan, plan
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError, RecipeError
from vla_robot.core.ports import Policy
from vla_robot.evaluate.eval_wrappers import ReplaceableWorld
from vla_robot.evaluate.evaluation import Evaluation, Examiner, Trial, TrialKey, trial_keys
from vla_robot.evaluate.evaluation_report import write_evaluation
from vla_robot.evaluate.trial_log import TrialLog
from vla_robot.evaluate.video_selection import VideoSelection
from vla_robot.evaluate.worker_pool import run_in_pool
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.record.collect import WithoutTruth
from vla_robot.serve.policy.shared_policy import SharedPolicy


def main(args: EvaluateArgs) -> int:
    """Score; status 0 if no episode ended in an error, whatever the score.

    Raises:
        VlaError: a recipe, the world, a policy or the folder cannot be used, or they do not fit. Finished episodes are
            kept, and the same command continues after them.
    """
    what = plan(args)
    say(f"vla eval: {', '.join(what.suites)}; {_of_what(what)}", flush=True)
    with TrialLog(what.folder, what.header(), datetime.now().astimezone().isoformat(timespec="seconds")) as log:
        rates_hz = {name: world.recipe.rate_hz for name, world in what.worlds.items()}
        videos = VideoSelection(what.folder, args.videos, rates_hz, log.trials.values())
        try:
            _drive(what, log, videos, args.workers or what.most_workers())
        except Exception:
            with contextlib.suppress(DataError):  # a full disk may have ended the evaluation
                _report(args, what, what.evaluation(log))
            raise
        evaluation = what.evaluation(log)
        _report(args, what, evaluation)
    if evaluation.trials:
        say(f"Next: {_next(args, what, evaluation)}")
    return _status(evaluation)


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
        for suite, protocol in evaluation.protocols.items():
            console.print(f"\n{suite}: the protocol is {protocol}.", soft_wrap=True)
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
    asked = trial_keys(tuple(what.policies), tuple(what.worlds), what.languages, what.seeds)
    left = [q for q in asked if q not in log.trials or log.trials[q].result.outcome == "error"]
    if len(left) < len(asked):
        say(f"  {len(asked) - len(left)} of {len(asked)} episodes are finished already", flush=True)
    if not left:
        return
    with stop_on_interrupt() as stop, contextlib.ExitStack() as stack:
        seats = [stack.enter_context(contextlib.closing(_Seat(what))) for _ in range(min(num_workers, len(left)))]
        session = _Session(what, log, videos, seats, stop)
        begun_s = time.monotonic()
        if not what.films:
            say("  no video is asked for: frames are rendered only for policies that look at them", flush=True)
        for name in what.policies:
            session.examine(name, [key for key in left if key.policy == name])
        took_s = time.monotonic() - begun_s
    say(f"\n  {session.driven} episodes in {took_s:.0f} s: {60 * session.driven / took_s:.1f} a minute\n", flush=True)


class _Seat:
    """A place for one world at a time. It shows the simulator's state."""

    def __init__(self, what: Plan) -> None:
        self._what = what
        self._of: tuple[str, EnvRecipe] | None = None
        self._world: ReplaceableWorld | None = None

    def enter(self, name: str, policy: str) -> ReplaceableWorld:
        """Return the named world for a policy, opened; the one before is closed, since its memory may be needed."""
        recipe = self._what.world_for(name, policy)
        if self._world is None or (name, recipe) != self._of:
            self.close()
            self._world, self._of = ReplaceableWorld(partial(open_world, recipe, privileged=True)), (name, recipe)
        self._world.open()
        return self._world

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None


@dataclass
class _Session:
    """Evaluates one policy after the other. Each seat opens the worlds one after the other."""

    what: Plan
    log: TrialLog
    videos: VideoSelection
    seats: Sequence[_Seat]
    stop: Event
    driven: int = 0

    def examine(self, name: str, asked: Sequence[TrialKey]) -> None:
        """Run the episodes with one policy; write each finished trial."""
        if not asked or self.stop.is_set():
            return
        source = self.what.policies[name]
        say(f"\n  {name}: {shown(source)}{on(self.what.devices.get(name))}; {len(self.seats)} at once", flush=True)
        with ThreadPoolExecutor(len(self.seats)) as threads:  # at the same time, since each takes seconds
            first, *_ = threads.map(lambda seat: seat.enter(asked[0].world, name), self.seats)
        with _policies(source, self.what, asked[0].world, first.embodiment, len(self.seats)) as policies:
            workers = [self._worker(seat, policy) for seat, policy in zip(self.seats, policies, strict=True)]
            with contextlib.closing(run_in_pool(workers, asked)) as trials:
                self._keep(trials, len(asked))

    def _worker(self, seat: _Seat, policy_in: PolicyIn) -> Callable[[TrialKey], Trial]:
        def examined(key: TrialKey) -> Trial:
            world = seat.enter(key.world, key.policy)
            policy, guard = policy_in(key.world, world.embodiment), build_guard(world.embodiment.action)
            words = self.what.words[key.world]
            examiner = Examiner(world, policy, guard, words, self.stop.is_set, self.videos.subscribers)
            return self.videos.develop(examiner(key))

        return examined

    def _keep(self, trials: Iterable[Trial], of: int) -> None:
        console = Terminal()
        for number, trial in enumerate(trials, start=1):
            if not trial.result.finished:
                return
            self.log.add(trial)
            self.driven += 1
            console.print(trial_line(trial, number, of, several=len(self.what.worlds) > 1), soft_wrap=True)
            if self.videos.failure is not None:
                raise self.videos.failure


PolicyIn = Callable[[str, Embodiment], Policy]
"""(world, its embodiment) -> the policy there."""


@contextlib.contextmanager
def _policies(
    source: PolicySource, what: Plan, world: str, embodiment: Embodiment, count: int
) -> Iterator[list[PolicyIn]]:
    """Yield a policy for each seat. Weights are loaded once for all; others are built anew in every world.

    Args:
        source: the policy.
        what: the evaluation.
        world: the first world.
        embodiment: that world's.
        count: number of seats.
    """
    if not isinstance(source.recipe, WeightsRecipe):
        first = [_Built(source, what, world, embodiment) for _ in range(count)]
        yield [built.policy_in for built in first]
        return
    policy = build_policy(source, what.worlds[world].recipe, embodiment, rows=what.rows)
    with SharedPolicy(WithoutTruth(policy), max_batch=count) as shared:
        yield [_same_arm(shared.seat(), world, embodiment) for _ in range(count)]


class _Built:
    """A policy without weights, which may have a state and know its task: one for the world of the moment."""

    def __init__(self, source: PolicySource, what: Plan, world: str, embodiment: Embodiment) -> None:
        self._source, self._what = source, what
        self._world, self._policy = world, self._build(world, embodiment)

    def policy_in(self, world: str, embodiment: Embodiment) -> Policy:
        if world != self._world:
            self._world, self._policy = world, self._build(world, embodiment)
        return self._policy

    def _build(self, world: str, embodiment: Embodiment) -> Policy:
        policy = build_policy(self._source, self._what.worlds[world].recipe, embodiment, rows=self._what.rows)
        return policy if self._source.is_privileged else WithoutTruth(policy)


def _same_arm(policy: Policy, first: str, embodiment: Embodiment) -> PolicyIn:
    """Return the policy for any world with the embodiment for which its weights were loaded.

    Raises (when called):
        RecipeError: the world has another arm, other cameras or another state.
    """

    def policy_in(world: str, found: Embodiment) -> Policy:
        if found != embodiment:
            raise RecipeError(f"'{world}' has another embodiment than '{first}': evaluate them one after the other.")
        return policy

    return policy_in


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
