"""Evaluation of policies: each runs the same seeds in each world and instruction variant; scores and comparisons.

A suite is the worlds that share a row: the tasks of a benchmark's suite, or one world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.host.provenance import row
from vla_robot.core.ports import Guard, Policy, World
from vla_robot.core.stats import mcnemar_p, wilson_interval
from vla_robot.evaluate.eval_wrappers import InstructedWorld
from vla_robot.evaluate.failure_detection import Detection, detections_of
from vla_robot.evaluate.instruction_variants import Language, Words
from vla_robot.loop.control_loop import always_false, run_episode
from vla_robot.loop.events import EpisodeEnded, Event, Subscriber
from vla_robot.loop.failure_detector import Signal
from vla_robot.loop.results import EpisodeResult


@dataclass(frozen=True)
class TrialKey:
    """The key of a trial: which episode it is.

    Attributes:
        policy: its name in the report.
        language: the instruction variant.
        world: the world's name, e.g. "lift" or "libero_spatial/3".
        seed: seed of world and policy.
    """

    policy: str
    language: Language
    world: str
    seed: int


@dataclass(frozen=True)
class Trial:
    """One finished episode.

    Attributes:
        key: the episode's policy, language and seed.
        task: the world's own instruction, by which it judged success.
        instruction: the instruction that the policy got.
        raised: the object that was raised most when the episode ended; None if none was.
        result: the episode's result.
    """

    key: TrialKey
    task: str
    instruction: str
    raised: str | None
    result: EpisodeResult

    @property
    def followed(self) -> bool:
        """Whether the raised object is the one that the instruction names, which may differ from the task's."""
        return self.raised is not None and self.raised in self.instruction.split()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Latencies are left out: they depend on what else the cores do."""
        result = self.result.to_dict()
        return {
            "policy": self.key.policy,
            "language": self.key.language,
            "world": self.key.world,
            "task": self.task,
            "instruction": self.instruction,
            "raised": self.raised,
            **{name: result[name] for name in result if name not in ("rate_hz", "capture_to_command_ms")},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Make a trial from the data of `to_dict`. Raises KeyError if a key is missing."""
        key = TrialKey(values["policy"], values["language"], values["world"], values["seed"])
        result = EpisodeResult(
            seed=values["seed"],
            outcome=values["outcome"],
            steps=values["steps"],
            duration_s=values["duration_s"],
            clamps=values["clamps"],
            missed_ticks=values["missed_ticks"],
            error=values["error"],
            still_s=values.get("still_s", 0.0),  # older logs did not tell
            entropy=_each(values.get("entropy", ())),  # older: none
            chunk_gap=_each(values.get("chunk_gap", ())),  # older: none
        )
        return cls(key, values["task"], values["instruction"], values["raised"], result)


@dataclass(frozen=True)
class Examiner:
    """Runs episodes with one world and one policy.

    Attributes:
        world: the world; its observations hold the simulator's state.
        policy: the evaluated policy.
        guard: limits the actions.
        words: the instruction by language.
        should_stop: returns True to stop an episode.
        subscribers: returns the subscribers of an episode's events.
        frames_every: steps from one observation whose frames they read to the next, see `run_episode`.
    """

    world: World
    policy: Policy
    guard: Guard
    words: Mapping[Language, Words]
    should_stop: Callable[[], bool] = always_false
    subscribers: Callable[[TrialKey], Sequence[Subscriber]] = lambda key: ()
    frames_every: int | None = 1

    def __call__(self, key: TrialKey) -> Trial:
        """Run the episode. A failure of the world is an error of this episode alone.

        Raises:
            VlaError: any other error, which would occur in every episode.
        """
        world = InstructedWorld(self.world, self.words[key.language])
        result = EpisodeResult(key.seed, "error", 0, 0.0)

        def note(event: Event) -> None:
            nonlocal result
            if isinstance(event, EpisodeEnded):
                result = event.result

        subscribers = [*self.subscribers(key), note]
        try:
            run_episode(
                world,
                self.policy,
                key.seed,
                guard=self.guard,
                subscribers=subscribers,
                should_stop=self.should_stop,
                frames_every=self.frames_every,
            )
        except (WorldError, TransportError) as failure:
            result = replace(result, outcome="error", error=str(failure))
        return Trial(key, world.task, world.instruction, world.raised, result)


@dataclass(frozen=True)
class Score:
    """All trials of one policy in one language in one suite, in the order of its worlds and their seeds.

    Attributes:
        policy: its name.
        language: the instruction variant.
        trials: the trials.
        worlds: the suite's worlds, in order.
        suite: its name; empty if the evaluation has one suite.
    """

    policy: str
    language: Language
    trials: tuple[Trial, ...]
    worlds: tuple[str, ...]
    suite: str = ""

    @property
    def name(self) -> str:
        """Name of the row in tables."""
        language = "" if self.language == "plain" else self.language
        return ", ".join(part for part in (self.policy, language, self.suite) if part)

    @property
    def count(self) -> int:
        return len(self.trials)

    @property
    def successes(self) -> int:
        return sum(trial.result.success for trial in self.trials)

    @property
    def rate(self) -> float | None:
        """Share of successes; None without a trial."""
        return self.successes / self.count if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate."""
        return wilson_interval(self.successes, self.count)

    @property
    def wrong(self) -> int:
        """Number of episodes that the world ended because another object than the task's was raised."""
        return sum(trial.result.outcome == "failure" for trial in self.trials)

    @property
    def followed(self) -> int:
        """Number of episodes that ended with the object raised that the instruction names."""
        return sum(trial.followed for trial in self.trials)

    @property
    def stalled(self) -> int:
        """Number of failed episodes that ended with an arm at rest: the policy no longer did anything."""
        return sum(trial.result.stalled for trial in self.trials)

    @property
    def errors(self) -> int:
        """Number of episodes without a verdict: the policy had no action, or its world failed."""
        return sum(trial.result.outcome == "error" for trial in self.trials)

    @property
    def median_steps(self) -> float | None:
        """Median steps of the successful episodes; None if none succeeded."""
        steps = [trial.result.steps for trial in self.trials if trial.result.success]
        return float(np.median(steps)) if steps else None

    @cached_property
    def detections(self) -> Mapping[Signal, Detection]:
        """How well each signal that the policy has tells its failures; empty for a policy without any."""
        return detections_of([trial.result for trial in self.trials])

    def within(self, steps: int) -> int:
        """Return how many episodes succeeded within that many steps: the successes under that limit of steps."""
        return sum(trial.result.success and trial.result.steps <= steps for trial in self.trials)

    @property
    def by_task(self) -> dict[str, tuple[int, int]]:
        """Task -> (successes, episodes). Of a suite of several worlds, a task's world stands before it."""
        named = sorted({(self._places[t.key.world], self._task(t)) for t in self.trials})
        counts: dict[str, tuple[int, int]] = {task: (0, 0) for _, task in named}
        for trial in self.trials:
            solved, asked = counts[self._task(trial)]
            counts[self._task(trial)] = solved + trial.result.success, asked + 1
        return counts

    def in_suite(self, task: str) -> str:
        """Return a key of `by_task` without the suite's name: "suite/0: lift" is "0: lift"."""
        return task.removeprefix(self.worlds[0].rpartition("/")[0] + "/")

    def episodes(self) -> dict[tuple[int, int], bool]:
        """Return (number of the world, seed) -> success: what an episode of another score is paired by."""
        return {(self._places[t.key.world], t.key.seed): t.result.success for t in self.trials}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {world: number for number, world in enumerate(self.worlds)}

    def _task(self, trial: Trial) -> str:
        return f"{trial.key.world}: {trial.task}" if len(self.worlds) > 1 else trial.task


@dataclass(frozen=True)
class Comparison:
    """Comparison of two scores on the same seeds.

    Attributes:
        baseline: name of the baseline's row.
        policy: name of the other row.
        paired: number of seeds that both finished.
        only_baseline: number of these that only the baseline solved.
        only_policy: number of these that only the other one solved.
    """

    baseline: str
    policy: str
    paired: int
    only_baseline: int
    only_policy: int

    @property
    def p(self) -> float:
        """P-value of McNemar's exact two-sided test: the probability of such a split between equals."""
        return mcnemar_p(self.only_baseline, self.only_policy)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "baseline": self.baseline,
            "policy": self.policy,
            "paired": self.paired,
            "only_baseline": self.only_baseline,
            "only_policy": self.only_policy,
            "mcnemar_p": self.p,
        }


def compare(baseline: Score, other: Score) -> Comparison:
    """Pair the episodes of two scores by world and seed; those that only one of them has are left out."""
    solved = baseline.episodes()
    pairs = [(solved[place], success) for place, success in other.episodes().items() if place in solved]
    return Comparison(baseline.name, other.name, len(pairs), pairs.count((True, False)), pairs.count((False, True)))


@dataclass(frozen=True)
class Evaluation:
    """Plan of an evaluation, and its trials so far.

    Attributes:
        suites: name of a suite -> its worlds, in order. One world is a suite of its own.
        policies: their names, the baseline first.
        languages: the instruction variants; the others are compared with the first.
        seeds: seeds of each policy in each language in each world.
        trials: finished trials, in any order.
        started_at: wall clock, ISO 8601 with the zone's offset.
        perturbed: name of a suite -> name of the suite whose tasks it perturbs, number by number.
        protocols: name of a suite -> the benchmark's protocol, and the departures from it; empty for other worlds.
        packages: name of a suite -> package that decides its score -> version in the suite's environment.
        devices: policy -> device of its weights, in words, where it has weights in this process.
        settings: policy -> what its recipe says that belongs to a protocol, in words: what becomes of frames, and how
            many actions of an answer are used.
    """

    suites: Mapping[str, tuple[str, ...]]
    policies: tuple[str, ...]
    languages: tuple[Language, ...]
    seeds: range
    trials: tuple[Trial, ...]
    started_at: str
    perturbed: Mapping[str, str] = field(default_factory=dict[str, str])
    protocols: Mapping[str, str] = field(default_factory=dict[str, str])
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    devices: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def env(self) -> str:
        """Name of the suites together."""
        return ", ".join(self.suites)

    @property
    def ends_at_wrong_objects(self) -> bool:
        """Whether a world ends an episode in which another object than the task's is raised; no benchmark's does."""
        return any(not self.protocols.get(suite) for suite in self.suites)

    def told(self) -> dict[str, str]:
        """Return what scores depend on, title -> words; what is the same for several suites is there once."""
        versions = {
            suite: ", ".join(f"{name} {version}" for name, version in packages.items())
            for suite, packages in self.packages.items()
        }
        return {
            **{f"{suites}: scored with": words for suites, words in _joined(versions).items()},
            **{f"{suites}: protocol": words for suites, words in _joined(self.protocols).items()},
            **{f"{policy}: settings": words for policy, words in self.settings.items()},
        }

    @property
    def planned(self) -> int:
        worlds = sum(map(len, self.suites.values()))
        return len(self.policies) * len(self.languages) * worlds * len(self.seeds)

    @property
    def complete(self) -> bool:
        return len(self.trials) == self.planned

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """One score per policy, language and suite that has a trial."""
        rows = (
            self._score(policy, language, suite)
            for suite in self.suites
            for policy in self.policies
            for language in self.languages
        )
        return tuple(row for row in rows if row.trials)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Each policy compared with the first, each language with the first, each perturbed suite with its own."""
        return tuple(compare(base, row) for row in self.scores for base in self.scores if self._are_compared(base, row))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: one row per score, every episode, the comparisons, and the first row's score."""
        first = self.scores[0] if self.scores else Score(self.policies[0], self.languages[0], (), ())
        return {
            "env": self.env,
            "suites": {name: list(worlds) for name, worlds in self.suites.items()},
            "protocols": dict(self.protocols),
            "packages": {name: dict(versions) for name, versions in self.packages.items()},
            "settings": dict(self.settings),
            "started_at": self.started_at,
            "planned": self.planned,
            "interrupted": not self.complete,
            "devices": dict(self.devices),
            "rows": [row for score in self.scores for row in _rows(score, first, self.ends_at_wrong_objects)],
            "by_task": {score.name: score.by_task for score in self.scores},
            "episodes": [trial.to_dict() for score in self.scores for trial in score.trials],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "failure_detection": {
                score.name: {signal.name: told.to_dict() for signal, told in score.detections.items()}
                for score in self.scores
                if score.detections
            },
            "successes": first.successes,
            "success_rate": first.rate,
            "success_interval_95": list(first.interval),
        }

    def _score(self, policy: str, language: Language, suite: str) -> Score:
        worlds = self.suites[suite]
        place = {world: number for number, world in enumerate(worlds)}
        own = [t for t in self.trials if (t.key.policy, t.key.language) == (policy, language) and t.key.world in place]
        own.sort(key=lambda trial: (place[trial.key.world], trial.key.seed))
        return Score(policy, language, tuple(own), worlds, suite if len(self.suites) > 1 else "")

    def _are_compared(self, base: Score, row: Score) -> bool:
        """Return whether two scores differ in one of policy, language and suite, and `base` is that one's baseline."""
        differences = [
            (base.policy != row.policy, base.policy == self.policies[0]),
            (base.language != row.language, base.language == self.languages[0]),
            (base.suite != row.suite, self.perturbed.get(row.suite) == base.suite),
        ]
        return [is_base for differs, is_base in differences if differs] == [True]


def _each(values: Iterable[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)


def _joined(words: Mapping[str, str]) -> dict[str, str]:
    """Return names -> words, with the names of equal words joined."""
    names: dict[str, list[str]] = {}
    for name, text in words.items():
        names.setdefault(text, []).append(name)
    return {", ".join(group): text for text, group in names.items()}


def trial_keys(
    policies: Iterable[str], worlds: Sequence[str], languages: Sequence[Language], seeds: range
) -> list[TrialKey]:
    """Return every seed in every language in every world for every policy, in an order that changes worlds seldom."""
    return [
        TrialKey(policy, language, world, seed)
        for policy in policies
        for world in worlds
        for language in languages
        for seed in seeds
    ]


def in_turn(keys: Iterable[TrialKey], worlds: Iterable[str]) -> list[TrialKey]:
    """Return keys world by world, so that several policies use a world that is open; else in their order."""
    places = {world: number for number, world in enumerate(worlds)}
    return sorted(keys, key=lambda key: places[key.world])


def _rows(score: Score, first: Score, ends_at_wrong_objects: bool) -> list[dict[str, Any]]:
    measured = {
        "success_rate": (score.rate, first.rate),
        "wrong_object_rate": (_share(score.wrong, score) if ends_at_wrong_objects else None, None),
        "stalled_rate": (_share(score.stalled, score), None),
    }
    if score.language == "wrong-object":
        measured["followed_rate"] = (_share(score.followed, score), None)
    return [
        row(f"{what}/{score.name}", value, "1", baseline, value / baseline if value is not None and baseline else None)
        for what, (value, baseline) in measured.items()
    ]


def _share(count: int, score: Score) -> float | None:
    return count / score.count if score.count else None
