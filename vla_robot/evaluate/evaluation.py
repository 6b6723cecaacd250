"""An examination of policies: the same seeds for each, in each wording of the task; and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.host.provenance import row
from vla_robot.core.ports import Guard, Policy, World
from vla_robot.core.stats import mcnemar_p, wilson_interval
from vla_robot.evaluate.eval_wrappers import InstructedWorld
from vla_robot.evaluate.instruction_variants import Language, Words
from vla_robot.loop.control_loop import always_false, run_episode
from vla_robot.loop.events import EpisodeEnded, Event, Subscriber
from vla_robot.loop.results import EpisodeResult


@dataclass(frozen=True)
class Question:
    """One episode that is to be driven.

    Attributes:
        policy: its name in the report.
        language: how the task is said.
        seed: of world and policy.
    """

    policy: str
    language: Language
    seed: int


@dataclass(frozen=True)
class Trial:
    """One episode that was driven.

    Attributes:
        question: what was asked for.
        task: what the world asked for and judged by.
        instruction: what the policy was told.
        raised: the object that was highest above where it had lain when the episode ended; None when none was.
        result: how it went.
    """

    question: Question
    task: str
    instruction: str
    raised: str | None
    result: EpisodeResult

    @property
    def followed(self) -> bool:
        """The object that was raised is the one that the instruction names, whatever the task was."""
        return self.raised is not None and self.raised in self.instruction.split()

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Latencies are left out: with several worlds on the same cores they belong to no policy."""
        result = self.result.to_dict()
        return {
            "policy": self.question.policy,
            "language": self.question.language,
            "task": self.task,
            "instruction": self.instruction,
            "raised": self.raised,
            **{name: result[name] for name in result if name not in ("rate_hz", "capture_to_command_ms")},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """What `to_dict` made. Raises KeyError where something is missing."""
        question = Question(values["policy"], values["language"], values["seed"])
        result = EpisodeResult(
            seed=values["seed"],
            outcome=values["outcome"],
            steps=values["steps"],
            duration_s=values["duration_s"],
            clamps=values["clamps"],
            missed_ticks=values["missed_ticks"],
            error=values["error"],
        )
        return cls(question, values["task"], values["instruction"], values["raised"], result)


@dataclass(frozen=True)
class Examiner:
    """A world and a policy that wait for questions.

    Attributes:
        world: gives the simulator's truth.
        policy: the one that is evaluated.
        guard: limits the actions.
        words: how the task is said in each language.
        should_stop: True breaks an episode off.
        subscribers: for a question, the subscribers of its events.
    """

    world: World
    policy: Policy
    guard: Guard
    words: Mapping[Language, Words]
    should_stop: Callable[[], bool] = always_false
    subscribers: Callable[[Question], Sequence[Subscriber]] = lambda question: ()

    def __call__(self, question: Question) -> Trial:
        """Drive the episode. The death of the world is an error of this episode, and of no other.

        Raises:
            VlaError: anything else: it would be the same in every episode.
        """
        world = InstructedWorld(self.world, self.words[question.language])
        result = EpisodeResult(question.seed, "error", 0, 0.0)

        def note(event: Event) -> None:
            nonlocal result
            if isinstance(event, EpisodeEnded):
                result = event.result

        subscribers = [*self.subscribers(question), note]
        try:
            run_episode(
                world,
                self.policy,
                question.seed,
                guard=self.guard,
                subscribers=subscribers,
                should_stop=self.should_stop,
            )
        except (WorldError, TransportError) as failure:
            result = replace(result, outcome="error", error=str(failure))
        return Trial(question, world.task, world.instruction, world.raised, result)


@dataclass(frozen=True)
class Score:
    """All trials of one policy in one language, in the order of their seeds.

    Attributes:
        policy: its name.
        language: how the task was said.
        trials: what was driven.
    """

    policy: str
    language: Language
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """Of the row."""
        return self.policy if self.language == "plain" else f"{self.policy}, {self.language}"

    @property
    def count(self) -> int:
        return len(self.trials)

    @property
    def successes(self) -> int:
        return sum(trial.result.success for trial in self.trials)

    @property
    def rate(self) -> float | None:
        """None when nothing was driven."""
        return self.successes / self.count if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate."""
        return wilson_interval(self.successes, self.count)

    @property
    def wrong(self) -> int:
        """Episodes that the world ended because another object was raised than the task is about."""
        return sum(trial.result.outcome == "failure" for trial in self.trials)

    @property
    def followed(self) -> int:
        """Episodes that ended with the object raised that the policy was told of."""
        return sum(trial.followed for trial in self.trials)

    @property
    def errors(self) -> int:
        """Episodes that say nothing of the policy's skill: it had no action, or its world died."""
        return sum(trial.result.outcome == "error" for trial in self.trials)

    @property
    def median_steps(self) -> float | None:
        """Of the episodes that succeeded; None when none did."""
        steps = [trial.result.steps for trial in self.trials if trial.result.success]
        return float(np.median(steps)) if steps else None

    @property
    def by_task(self) -> dict[str, tuple[int, int]]:
        """What the world asked for -> successes, episodes."""
        asked = Counter(trial.task for trial in self.trials)
        solved = Counter(trial.task for trial in self.trials if trial.result.success)
        return {task: (solved[task], asked[task]) for task in sorted(asked)}


@dataclass(frozen=True)
class Comparison:
    """Two scores on the same seeds.

    Attributes:
        baseline: name of the row that is compared with.
        policy: of the other one.
        paired: seeds that both finished.
        only_baseline: of these, how many only the baseline solved.
        only_policy: of these, how many only the other one solved.
    """

    baseline: str
    policy: str
    paired: int
    only_baseline: int
    only_policy: int

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely such a split is between equals."""
        return mcnemar_p(self.only_baseline, self.only_policy)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "baseline": self.baseline,
            "policy": self.policy,
            "paired": self.paired,
            "only_baseline": self.only_baseline,
            "only_policy": self.only_policy,
            "mcnemar_p": self.p,
        }


def compare(baseline: Score, other: Score) -> Comparison:
    """Pair the episodes of two scores by seed; a seed that only one of them has is left out."""
    solved = {trial.question.seed: trial.result.success for trial in baseline.trials}
    pairs = [(solved[t.question.seed], t.result.success) for t in other.trials if t.question.seed in solved]
    return Comparison(baseline.name, other.name, len(pairs), pairs.count((True, False)), pairs.count((False, True)))


@dataclass(frozen=True)
class Evaluation:
    """What was asked for, and what came of it so far.

    Attributes:
        env: name of the world's recipe.
        policies: their names, the baseline first.
        languages: how the task is said; others are compared with the first.
        seeds: of each policy in each language.
        trials: what was driven, in any order.
        started_at: wall clock, ISO 8601 with the zone's offset.
    """

    env: str
    policies: tuple[str, ...]
    languages: tuple[Language, ...]
    seeds: range
    trials: tuple[Trial, ...]
    started_at: str

    @property
    def planned(self) -> int:
        return len(self.policies) * len(self.languages) * len(self.seeds)

    @property
    def complete(self) -> bool:
        return len(self.trials) == self.planned

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """A row each; those without a trial are left out."""
        rows = (self._score(policy, language) for policy in self.policies for language in self.languages)
        return tuple(row for row in rows if row.trials)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Each policy with the first in the same language, and each language with the first of the same policy."""
        return tuple(compare(base, row) for row in self.scores for base in self.scores if self._are_compared(base, row))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a row a score, every episode, the comparisons, and the first row's score."""
        first = self.scores[0] if self.scores else Score(self.policies[0], self.languages[0], ())
        return {
            "env": self.env,
            "started_at": self.started_at,
            "planned": self.planned,
            "interrupted": not self.complete,
            "rows": [row for score in self.scores for row in _rows(score, first)],
            "by_task": {score.name: score.by_task for score in self.scores},
            "episodes": [trial.to_dict() for score in self.scores for trial in score.trials],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "successes": first.successes,
            "success_rate": first.rate,
            "success_interval_95": list(first.interval),
        }

    def _score(self, policy: str, language: Language) -> Score:
        own = [t for t in self.trials if (t.question.policy, t.question.language) == (policy, language)]
        return Score(policy, language, tuple(sorted(own, key=lambda trial: trial.question.seed)))

    def _are_compared(self, base: Score, row: Score) -> bool:
        other_policy = base.policy == self.policies[0] != row.policy and base.language == row.language
        other_language = base.language == self.languages[0] != row.language and base.policy == row.policy
        return other_policy or other_language


def questions(policies: Iterable[str], languages: Sequence[Language], seeds: range) -> list[Question]:
    """All that is to be driven: every seed, in every language, by every policy."""
    return [Question(policy, language, seed) for policy in policies for language in languages for seed in seeds]


def _rows(score: Score, first: Score) -> list[dict[str, Any]]:
    measured = {"success_rate": (score.rate, first.rate), "wrong_object_rate": (_share(score.wrong, score), None)}
    if score.language == "wrong-object":
        measured["followed_rate"] = (_share(score.followed, score), None)
    return [
        row(f"{what}/{score.name}", value, "1", baseline, value / baseline if value is not None and baseline else None)
        for what, (value, baseline) in measured.items()
    ]


def _share(count: int, score: Score) -> float | None:
    return count / score.count if score.count else None
