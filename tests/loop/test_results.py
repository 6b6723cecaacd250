"""Two runs on the same seeds, compared."""

from __future__ import annotations

from collections.abc import Mapping

from vla_robot.loop.results import EpisodeResult, Outcome, RunInfo, RunSummary, compare


def run(policy: str, outcomes: Mapping[int, Outcome]) -> RunSummary:
    episodes = tuple(EpisodeResult(seed, outcome, 10, 1.0) for seed, outcome in outcomes.items())
    return RunSummary(RunInfo("toy", policy, "lift"), episodes, len(episodes), "2026-01-01T00:00:00+00:00")


def test_episodes_are_paired_by_seed_and_not_by_place() -> None:
    old = run("old", {1: "success", 2: "timeout", 3: "failure", 4: "success"})
    new = run("new", {4: "success", 3: "success", 2: "success", 1: "timeout"})
    found = compare(old, new)
    assert (found.paired, found.only_baseline, found.only_policy) == (4, 1, 2)
    assert found.p == 1.0


def test_a_seed_that_one_of_them_lacks_is_left_out() -> None:
    old = run("old", {1: "success", 2: "success", 3: "success"})
    new = run("new", {1: "error"})
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
        old = run("old", dict.fromkeys(range(seeds), "timeout"))
        new = run("new", dict.fromkeys(range(seeds), "success"))
        assert compare(old, new).p == p
