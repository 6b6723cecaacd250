"""Trials become scores, comparisons and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vla_robot.evaluate.evaluation import Evaluation, Score, Trial, TrialKey, compare, trial_keys
from vla_robot.evaluate.evaluation_report import write_evaluation
from vla_robot.evaluate.instruction_variants import Language
from vla_robot.evaluate.video_selection import film_path
from vla_robot.loop.results import EpisodeResult, Outcome

STARTED = "2026-01-01T00:00:00+00:00"


def trial(
    seed: int,
    outcome: Outcome,
    policy: str = "old",
    language: Language = "plain",
    told: str = "lift the red cube",
    raised: str | None = None,
    world: str = "toy",
) -> Trial:
    error = "the world's process died <unexpectedly>" if outcome == "error" else None
    result = EpisodeResult(seed, outcome, 10 + seed, 1.0, error=error)
    return Trial(TrialKey(policy, language, world, seed), "lift the red cube", told, raised, result)


def score(policy: str, outcomes: Mapping[int, Outcome]) -> Score:
    return Score(policy, "plain", tuple(trial(seed, outcome, policy) for seed, outcome in outcomes.items()), ("toy",))


def evaluation(*trials: Trial, languages: tuple[Language, ...] = ("plain",)) -> Evaluation:
    return Evaluation({"toy": ("toy",)}, ("old", "new"), languages, range(1, 4), trials, STARTED)


def test_episodes_are_paired_by_seed_and_not_by_place() -> None:
    old = score("old", {1: "success", 2: "timeout", 3: "failure", 4: "success"})
    new = score("new", {4: "success", 3: "success", 2: "success", 1: "timeout"})
    found = compare(old, new)
    assert (found.paired, found.only_baseline, found.only_policy) == (4, 1, 2)
    assert found.p == 1.0


def test_a_seed_that_one_of_them_lacks_is_left_out() -> None:
    old = score("old", {1: "success", 2: "success", 3: "success"})
    new = score("new", {1: "error"})
    assert compare(old, new).to_dict() == {
        "baseline": "old",
        "policy": "new",
        "paired": 1,
        "only_baseline": 1,
        "only_policy": 0,
        "mcnemar_p": 1.0,
    }


def test_six_seeds_that_only_one_solves_are_evidence_and_five_are_not() -> None:
    for seeds, p in ((5, 0.0625), (6, 0.03125)):
        old = score("old", dict.fromkeys(range(seeds), "timeout"))
        new = score("new", dict.fromkeys(range(seeds), "success"))
        assert compare(old, new).p == p


def test_a_score_counts_what_happened() -> None:
    found = score("old", {1: "success", 2: "failure", 3: "timeout", 4: "error", 5: "success"})
    assert (found.count, found.successes, found.wrong, found.errors) == (5, 2, 1, 1)
    assert found.rate == 0.4
    assert found.median_steps == 13.0  # 11 and 15: those that did not succeed say nothing of the speed
    assert found.by_task == {"lift the red cube": (2, 5)}


def test_following_the_words_is_not_success() -> None:
    told = "lift the blue cube"
    trials = [
        trial(1, "failure", told=told, raised="blue", language="wrong-object"),
        trial(2, "success", told=told, raised="red", language="wrong-object"),
        trial(3, "timeout", told=told, raised=None, language="wrong-object"),
    ]
    found = Score("old", "wrong-object", tuple(trials), ("toy",))
    assert (found.followed, found.successes, found.name) == (1, 1, "old, wrong-object")


def test_a_policy_is_compared_with_the_first_in_its_language_and_a_language_with_the_first_of_its_policy() -> None:
    trials = [trial(1, "success", p, language) for p in ("old", "new") for language in ("plain", "none")]
    found = {(c.policy, c.baseline) for c in evaluation(*trials, languages=("plain", "none")).comparisons}
    assert found == {("new", "old"), ("new, none", "old, none"), ("old, none", "old"), ("new, none", "new")}


def test_every_policy_meets_every_seed_in_every_language() -> None:
    asked = trial_keys(("old", "new"), ("toy",), ("plain", "none"), range(3, 5))
    assert len(asked) == len(set(asked)) == 8
    assert {q.seed for q in asked if q.policy == "new" and q.language == "none"} == {3, 4}


def test_what_machines_read_has_the_trials_in_the_order_of_their_seeds_whatever_came_first() -> None:
    one = evaluation(trial(1, "success"), trial(2, "failure"), trial(3, "timeout"))
    other = evaluation(trial(3, "timeout"), trial(1, "success"), trial(2, "failure"))
    assert one.to_dict() == other.to_dict()
    found = one.to_dict()
    assert [e["seed"] for e in found["episodes"]] == [1, 2, 3]
    assert {row["name"]: row["value"] for row in found["rows"]} == {
        "success_rate/old": 1 / 3,
        "wrong_object_rate/old": 1 / 3,
    }
    assert found["interrupted"] and found["planned"] == 6


def test_a_trial_survives_json() -> None:
    one = trial(3, "error", raised="red", told="do something", language="none")
    assert Trial.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_the_page_shows_failures_first_and_lets_no_name_become_markup(tmp_path: Path) -> None:
    found = evaluation(trial(1, "success", "<new>"), trial(2, "error", "<new>"), trial(3, "failure", "<new>"))
    found = Evaluation({"toy": ("toy",)}, ("<new>",), ("plain",), range(1, 4), found.trials, STARTED)
    for one in found.trials:
        path = film_path(tmp_path, one.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    page = write_evaluation(tmp_path, found, "vla eval --policy '<new>'").read_text()
    places = [page.index(f"<h3>seed {seed} ") for seed in (2, 3, 1)]
    assert places == sorted(places)
    assert "<new>" not in page and "died &lt;unexpectedly&gt;" in page
    assert "33 %" in page and "1 of 3" in page
    assert "did as told" not in page  # nothing was misdirected
    assert json.loads((tmp_path / "summary.json").read_text())["command"] == "eval"


def test_an_unfinished_evaluation_says_so(tmp_path: Path) -> None:
    page = write_evaluation(tmp_path, evaluation(trial(1, "success")), "vla eval").read_text()
    assert "Not finished: 1 of 6 episodes are shown." in page


SUITES = {"base": ("base/0", "base/1"), "base_swap": ("base_swap/0", "base_swap/1")}


def of_suites(*trials: Trial) -> Evaluation:
    return Evaluation(SUITES, ("old",), ("plain",), range(1, 3), trials, STARTED, perturbed={"base_swap": "base"})


def test_a_suite_has_a_row_and_each_of_its_tasks_a_count() -> None:
    found = of_suites(
        trial(1, "success", world="base/1"),
        trial(2, "timeout", world="base/1"),
        trial(1, "success", world="base/0"),
        trial(1, "failure", world="base_swap/0"),
    )
    assert found.planned == 8
    assert [(s.name, s.successes, s.count) for s in found.scores] == [("old, base", 2, 3), ("old, base_swap", 0, 1)]
    assert list(found.scores[0].by_task.items()) == [
        ("base/0: lift the red cube", (1, 1)),
        ("base/1: lift the red cube", (1, 2)),
    ]


def test_a_perturbed_suite_is_compared_with_its_own_task_by_task_and_others_are_not() -> None:
    trials = [trial(seed, "success", world=f"base/{task}") for task in (0, 1) for seed in (1, 2)]
    trials += [trial(1, "success", world="base_swap/0"), trial(2, "timeout", world="base_swap/1")]
    [found] = of_suites(*trials).comparisons
    assert (found.policy, found.baseline, found.paired, found.only_baseline) == ("old, base_swap", "old, base", 2, 1)
    unrelated = Evaluation(SUITES, ("old",), ("plain",), range(1, 3), tuple(trials), STARTED)
    assert unrelated.comparisons == ()


def test_the_page_of_a_suite_shows_its_tasks_its_protocol_and_what_decides_the_score(tmp_path: Path) -> None:
    trials = (trial(1, "success", world="base/0"), trial(2, "timeout", world="base/1"))
    found = Evaluation(
        {"base": ("base/0", "base/1")}, ("old",), ("plain",), range(1, 3), trials, STARTED,
        protocols={"base": "the reference's: Departures: none"}, packages={"mujoco": "3.3.0"},
    )  # fmt: skip
    page = write_evaluation(tmp_path, found, "vla eval --suite base").read_text()
    assert "2 tasks, 2 seeds from 1 in each" in page
    assert "base/0: lift the red cube" in page and "1 of 1" in page and "0 of 1" in page
    assert "Departures: none" in page and "<dt>mujoco</dt><dd>3.3.0</dd>" in page
