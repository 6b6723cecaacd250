"""Trials become scores, comparisons and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vla_robot.cli.evaluate.eval_summary import foreseen, score_table
from vla_robot.evaluate.evaluation import Evaluation, Score, Trial, TrialKey, compare, in_turn, trial_keys
from vla_robot.evaluate.evaluation_report import write_evaluation
from vla_robot.evaluate.instruction_variants import Language
from vla_robot.evaluate.video_selection import VideoSelection, film_path
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
    steps: int | None = None,
) -> Trial:
    error = "the world's process died <unexpectedly>" if outcome == "error" else None
    result = EpisodeResult(seed, outcome, steps or 10 + seed, 1.0, error=error)
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


def test_a_stall_is_a_failure_at_rest(tmp_path: Path) -> None:
    outcomes: list[Outcome] = ["timeout", "timeout", "failure", "success", "error"]
    rests = [2.0, 1.9, 5.0, 9.0, 9.0]
    trials = [trial(seed, outcome) for seed, outcome in enumerate(outcomes)]
    trials = [replace(t, result=replace(t.result, still_s=s)) for t, s in zip(trials, rests, strict=True)]
    found = Score("old", "plain", tuple(trials), ("toy",))
    assert found.stalled == 2
    assert Trial.from_dict(json.loads(json.dumps(trials[0].to_dict()))) == trials[0]
    assert "<th>stalled" in write_evaluation(tmp_path, evaluation(*trials), "vla eval").read_text()
    assert "<th>stalled" not in write_evaluation(tmp_path, evaluation(*trials[3:]), "vla eval").read_text()


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
        "stalled_rate/old": 0,
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


def test_the_page_says_what_smaller_limits_of_steps_would_leave(tmp_path: Path) -> None:
    trials = [trial(seed, "success", steps=steps) for seed, steps in ((1, 20), (2, 60))] + [
        trial(3, "timeout", steps=120)
    ]
    page = write_evaluation(tmp_path, evaluation(*trials), "vla eval").read_text()
    head = "".join(f"<th>{steps} steps</th>" for steps in (20, 40, 60, 80, 100, 120))
    assert f"<th>episodes</th>{head}" in page
    assert "<td>old</td><td>3</td><td>1</td><td>1</td><td>2</td><td>2</td><td>2</td><td>2</td>" in page


def test_the_page_says_how_well_entropy_tells_failures(tmp_path: Path) -> None:
    sure = [trial(seed, "success") for seed in range(20)]
    trials = [replace(t, result=replace(t.result, entropy=(1.0 + t.key.seed / 100,) * 15)) for t in sure]
    stall = trial(20, "timeout")
    trials.append(replace(stall, result=replace(stall.result, entropy=(None,) * 5 + (2.0,) * 10)))
    plain = evaluation(*trials, trial(1, "success", "new"))
    page = write_evaluation(tmp_path, plain, "vla eval").read_text()
    told = ("old", "entropy", 20, 1, "1.00", "1.00 <small>of 15 steps</small>", "1.19 <small>nats</small>")
    cells = "".join(f"<td>{cell}</td>" for cell in told)
    assert f"<tr>{cells}<td>1 of 1</td><td>10</td></tr>" in page and "19 successes" in page
    assert '<polyline points="0.00,100.00 0.00,0.00 ' in page, "the one failure is found before any false alarm"
    told = json.loads((tmp_path / "summary.json").read_text())["failure_detection"]
    assert told.keys() == {"old"} and told["old"].keys() == {"entropy"} and told["old"]["entropy"]["threshold"] == 1.19
    (said,) = foreseen(plain.scores[0])
    assert "AUROC 1.00" in said and "Above 1.19 nats" in said and said.endswith("--ask-when-unsure entropy:1.19")
    assert not list(foreseen(plain.scores[1]))
    assert "Failure detection" not in write_evaluation(tmp_path, evaluation(*sure), "vla eval").read_text()


def test_a_policy_with_two_signals_has_a_row_a_curve_and_a_threshold_of_each(tmp_path: Path) -> None:
    """The failure is the surest by its entropy and has the largest gap; the successes' gaps are 0.00 to 0.19."""
    trials = [trial(seed, "success" if seed < 20 else "timeout") for seed in range(21)]
    nats = [1.0 + seed / 100 for seed in range(20)] + [0.5]
    gaps = [seed / 100 for seed in range(20)] + [0.3]
    trials = [
        replace(t, result=replace(t.result, entropy=(n,) * 15, chunk_gap=(None, *(g,) * 14)))
        for t, n, g in zip(trials, nats, gaps, strict=True)
    ]
    both = evaluation(*trials)
    page = write_evaluation(tmp_path, both, "vla eval").read_text()
    early = "<small>of 15 steps</small>"
    rows = {
        "entropy": ("0.00", f"0.00 {early}", "1.19 <small>nats</small>", "0 of 1", "–"),
        "chunk gap": ("1.00", f"1.00 {early}", "0.19 <small>of the range</small>", "1 of 1", "6"),
    }
    for signal, cells in rows.items():
        cells = "".join(f"<td>{cell}</td>" for cell in ("old", signal, 20, 1, *cells))
        assert f"<tr>{cells}</tr>" in page
        assert f"</i>old, {signal}</span>" in page, "the key of the curves"
    assert page.count("<polyline") == 2
    told = json.loads((tmp_path / "summary.json").read_text())["failure_detection"]["old"]
    assert {name: (d["separation"], d["threshold"], d["warned"]) for name, d in told.items()} == {
        "entropy": (0.0, 1.19, 0),
        "chunk_gap": (1.0, 0.19, 1),
    }
    by_entropy, by_gap = foreseen(both.scores[0])
    assert "told by the entropy: AUROC 0.00" in by_entropy and by_entropy.endswith(
        "0 of 1 failures are warned of: it is no detector here."
    )
    assert "told by the chunk gap: AUROC 1.00" in by_gap and "Above 0.19 of the range" in by_gap
    assert by_gap.endswith("--ask-when-unsure chunk_gap:0.19")


def test_a_trial_of_an_older_log_has_no_signal() -> None:
    plain = trial(3, "success")
    older = {name: value for name, value in plain.to_dict().items() if name not in ("entropy", "chunk_gap")}
    assert Trial.from_dict(older) == plain
    told = replace(plain, result=replace(plain.result, chunk_gap=(None, 0.25), entropy=(1.5, None)))
    assert Trial.from_dict(json.loads(json.dumps(told.to_dict()))) == told


def test_policies_take_turns_in_each_world_also_where_one_is_ahead() -> None:
    asked = trial_keys(("old", "new"), ("base/0", "base/1"), ("plain",), range(2))
    left = in_turn(asked[2:], ("base/0", "base/1"))
    assert [(key.world, key.policy, key.seed) for key in left] == [
        ("base/0", "new", 0), ("base/0", "new", 1),
        ("base/1", "old", 0), ("base/1", "old", 1), ("base/1", "new", 0), ("base/1", "new", 1),
    ]  # fmt: skip


def test_what_is_the_same_for_several_suites_is_told_once() -> None:
    versions, protocols = {"mujoco": "3.3.0", "robosuite": "1.4.0"}, {"base": "as it is", "base_swap": "swapped"}
    found = Evaluation(
        SUITES, ("old",), ("plain",), range(1, 3), (), STARTED, protocols=protocols,
        packages={"base": versions, "base_swap": versions},
    )  # fmt: skip
    assert found.told() == {
        "base, base_swap: scored with": "mujoco 3.3.0, robosuite 1.4.0",
        "base: protocol": "as it is",
        "base_swap: protocol": "swapped",
    }


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
    assert found.scores[0].in_suite("base/1: lift the red cube") == "1: lift the red cube"


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
        protocols={"base": "the reference's: Departures: none"}, packages={"base": {"mujoco": "3.3.0"}},
        settings={"old": "frames mirrored; 8 actions of an answer are used"},
    )  # fmt: skip
    page = write_evaluation(tmp_path, found, "vla eval --suite base").read_text()
    assert "2 tasks, 2 seeds from 1 in each" in page
    assert ">0: lift the red cube<" in page and "1 of 1 <small>21 % to 100 %</small>" in page
    assert "0 of 1 <small>0 % to 79 %</small>" in page
    assert "Departures: none" in page and "<dt>base: scored with</dt><dd>mujoco 3.3.0</dd>" in page
    assert "<dt>old: settings</dt><dd>frames mirrored; 8 actions of an answer are used</dd>" in page


def test_a_benchmark_that_ends_no_episode_at_a_wrong_object_is_not_said_to_have_none(tmp_path: Path) -> None:
    def told(protocols: dict[str, str]) -> tuple[bool, bool, object]:
        found = replace(of_suites(trial(1, "timeout", world="base/0")), protocols=protocols)
        rates = {row["name"]: row["value"] for row in found.to_dict()["rows"]}
        page = write_evaluation(tmp_path, found, "vla eval --suite base").read_text()
        columns = [str(column.header) for column in score_table(found).columns]
        return "wrong\nobject" in columns, "<th>wrong object<" in page, rates["wrong_object_rate/old, base"]

    assert told({}) == (True, True, 0.0)
    assert told({"base": "the reference's"}) == (True, True, 0.0), "base_swap is no benchmark's here"
    assert told({"base": "the reference's", "base_swap": "the reference's"}) == (False, False, None)


def test_a_video_has_ten_frames_of_a_second_whatever_the_worlds_rate(tmp_path: Path) -> None:
    rates_hz = {"slow": 5.0, "usual": 20.0, "fast": 80.0}
    filming = VideoSelection(tmp_path, "all", rates_hz)
    assert [filming.frames_every(world) for world in rates_hz] == [1, 2, 8]
    assert VideoSelection(tmp_path, "none", rates_hz).frames_every("fast") is None
