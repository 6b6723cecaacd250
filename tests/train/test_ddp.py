"""Two processes train as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Observation
from vla_robot.data.questions import QuestionWriter
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, HeadRecipe, QuestionsRecipe
from vla_robot.train.finetune import finetune
from vla_robot.train.parallel.ddp import Ranks

LAUNCHER = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from vla_robot.core.errors import CheckpointError
from vla_robot.train.finetune import finetune
from vla_robot.train.trainer import Trainer
from vla_robot.recipe import read
from vla_robot.recipe.finetune import FinetuneRecipe

def spoilt(what, forward, trainer, *args):
    output = forward(trainer, *args)
    if trainer.step == 2 and what == "gradient":
        output.loss.register_hook(lambda gradient: gradient * float("nan"))
    return replace(output, loss=output.loss * float("nan")) if trainer.step == 2 and what == "loss" else output

def train(rank, recipe, out, stop_at, spoilt_rank, what):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    losses, reached = [], [0]
    watch = lambda p: losses.append(p.metrics["loss"]) if p.phase == "steps" else None

    def should_stop():
        reached[0] += 1
        return reached[0] == stop_at

    if rank == spoilt_rank:
        forward = Trainer._forward
        Trainer._forward = lambda *args: spoilt(what, forward, *args)
    try:
        finetune(read(FinetuneRecipe, Path(recipe)), Path(out), watch, should_stop)
    except CheckpointError as error:
        (Path(out) / f"error_{rank}").write_text(str(error))
        return
    (Path(out) / f"losses_{rank}.json").write_text(json.dumps(losses))

def begin(rank, *what):
    child = os.fork()
    if child == 0:
        try:
            train(rank, *what)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    return child

for line in sys.stdin:
    processes, port, *what = json.loads(line)
    os.environ |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [begin(rank, *what) for rank in range(processes)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running]), flush=True)
"""

Launch = Callable[..., list[Any]]

HEADS = {
    "l1": HeadRecipe(),
    "flow": HeadRecipe("flow", width=32, ff_dim=48),
    "prefix": HeadRecipe("flow", width=32, ff_dim=48, prefix=2),
}
QUICK_HEADS = [("openvla", "l1"), ("paligemma", "prefix")]
OTHER_HEADS = [("openvla", "flow"), ("paligemma", "l1"), ("qwen2_vl", "l1"), ("qwen2_vl", "flow"), ("qwen3_vl", "flow")]
OF_HEADS = [*QUICK_HEADS, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHER_HEADS)]
SHARDED = {"shard": True, "activation_checkpointing": True}


@pytest.fixture(scope="module")
def together() -> Iterator[Launch]:
    """`together(recipe, out, processes, steps)` runs it in several processes, connected as torchrun would, for so many
    steps, and returns the first one's losses. With `spoilt_rank`, the loss, or only the gradient, is nan in the third
    step of that process alone, and all errors are returned.

    They are forks of one process that has imported torch, which takes longer than the training, and done nothing else.
    """
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        assert launcher.stdin is not None and launcher.stdout is not None
        orders, ended = launcher.stdin, launcher.stdout

        def launch(
            recipe: FinetuneRecipe,
            out: Path,
            processes: int,
            steps: int = -1,
            spoilt_rank: int = -1,
            spoilt: str = "loss",
        ) -> list[Any]:
            out.mkdir(exist_ok=True)
            (out.parent / "run.toml").write_text(dump(recipe))
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            order = [processes, port, str(out.parent / "run.toml"), str(out), steps, spoilt_rank, spoilt]
            print(json.dumps(order), file=orders, flush=True)
            assert json.loads(ended.readline()) == [0] * processes
            if spoilt_rank >= 0:
                return [(out / f"error_{rank}").read_text() for rank in range(processes)]
            assert json.loads((out / "losses_1.json").read_text()) == [], "the first speaks for all"
            return json.loads((out / "losses_0.json").read_text())

        yield launch
        os.killpg(launcher.pid, signal.SIGKILL)


def alone(recipe: FinetuneRecipe, out: Path, steps: int = -1) -> list[float]:
    """The same in this process."""
    losses: list[float] = []
    asked = count(1)
    finetune(
        recipe,
        out,
        lambda p: losses.append(p.metrics["loss"]) if p.phase == "steps" else None,
        should_stop=lambda: next(asked) == steps,
    )
    return losses


def assert_same_policy(one: Path, other: Path) -> None:
    """But for the order of sums."""
    assert_same(*(load_file(out / "final" / "model.safetensors") for out in (one, other)))


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """But for the order of sums."""
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=2e-4, rtol=1e-3)


def test_two_processes_lose_as_much_as_one_in_each_of_twenty_steps(
    recipe: FinetuneRecipe, together: Launch, tmp_path: Path
) -> None:
    recipe = replace(recipe, steps=20, micro_batch=2, shift_px=2, checkpoint_every=10)
    one, two = alone(recipe, tmp_path / "one"), together(recipe, tmp_path / "two", 2)
    assert two == pytest.approx(one, abs=1e-5)
    assert_same_policy(tmp_path / "one", tmp_path / "two")


def test_a_model_that_two_processes_share_learns_as_a_whole_one_and_goes_on_in_one(
    recipe: FinetuneRecipe, together: Launch, tmp_path: Path
) -> None:
    recipe = replace(recipe, steps=23, micro_batch=2, checkpoint_every=10)
    one, mixed = alone(recipe, tmp_path / "one"), tmp_path / "mixed"
    sharded = replace(recipe, shard=True, activation_checkpointing=True)
    losses = together(sharded, mixed, 2, steps=20) + alone(recipe, mixed)
    assert losses == pytest.approx(one, abs=1e-5)
    assert_same_policy(tmp_path / "one", mixed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NEW_MODELS if name != "openvla"])
def test_a_model_of_any_family_that_two_processes_share_learns_as_a_whole_one(
    recipe: DemosFinetuneRecipe, together: Launch, tmp_path: Path, name: str
) -> None:
    size = 28 if name == "paligemma" else 56
    tiny = replace(recipe.architecture, family=name, image_size=size, tower_depth=3, max_positions=256)
    recipe = replace(recipe, architecture=tiny, steps=6, micro_batch=2, checkpoint_every=3)
    one = alone(recipe, tmp_path / "one")
    shared = together(replace(recipe, shard=True), tmp_path / "two", 2)
    assert shared == pytest.approx(one, abs=1e-5)
    assert_same_policy(tmp_path / "one", tmp_path / "two")


def of_head(recipe: DemosFinetuneRecipe, family: str, head: str) -> DemosFinetuneRecipe:
    """Three steps of a new policy with a head."""
    size = 28 if family in ("openvla", "minivla", "paligemma") else 56
    tiny = replace(recipe.architecture, family=family, image_size=size, tower_depth=3, max_positions=256)
    return replace(recipe, architecture=tiny, chunk=3, head=HEADS[head], steps=3, micro_batch=2, evaluate_every=2)


def assert_same_head(one: Path, other: Path) -> None:
    """The folders load, their weights are the same but for the order of sums, and so is what they do."""
    policies: list[Any] = [family_of(out / "final").load(out / "final") for out in (one, other)]
    assert_same(*(dict(policy.model.named_parameters()) for policy in policies))
    seen = Observation({"front": np.full((28, 28, 3), 90, np.uint8)}, np.zeros(1), "go to the light", 1, 1)
    alike, acted = (policy.act([seen])[0].actions for policy in policies)
    np.testing.assert_allclose(acted, alike, atol=1e-3)


@pytest.mark.parametrize(("family", "head"), OF_HEADS)
def test_a_head_is_trained_by_two_processes_as_by_one_with_the_whole_model_in_each_or_a_part(
    recipe: DemosFinetuneRecipe, together: Launch, tmp_path: Path, family: str, head: str
) -> None:
    recipe = of_head(recipe, family, head)
    one = alone(recipe, tmp_path / "one")
    for name, changes in {"whole": {}, "parts": SHARDED}.items():
        assert together(replace(recipe, **changes), tmp_path / name, 2) == pytest.approx(one, abs=1e-5), name
        assert_same_head(tmp_path / "one", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["l1", "flow"])
@pytest.mark.parametrize("changes", [{}, SHARDED], ids=["whole", "parts"])
def test_a_head_beside_questions_and_adapters_is_trained_by_two_processes_as_by_one(
    recipe: DemosFinetuneRecipe, together: Launch, tmp_path: Path, head: str, changes: dict[str, Any]
) -> None:
    """Robot rows use the head and not the vocabulary, questions the vocabulary and not the head."""
    with QuestionWriter(tmp_path / "questions") as writer:
        for scene in range(20):
            images = {"front": np.full((28, 28, 3), 12 * scene, np.uint8)}
            writer.write("train" if scene < 15 else "held_out", scene, images, [("how bright is it?", "dark")])
    recipe = replace(
        of_head(recipe, "paligemma", head),
        questions=QuestionsRecipe(tmp_path / "questions", weight=0.5),
        lora_rank=2,
        train=("projector", "decoder"),
    )
    one = alone(recipe, tmp_path / "one")
    assert together(replace(recipe, **changes), tmp_path / "two", 2) == pytest.approx(one, abs=1e-5)
    assert_same_head(tmp_path / "one", tmp_path / "two")


def test_adapters_begin_in_one_process_and_end_in_two_that_share_them(
    recipe: FinetuneRecipe, together: Launch, tmp_path: Path
) -> None:
    recipe = replace(recipe, steps=20, lora_rank=4, checkpoint_every=10)
    one, mixed = alone(recipe, tmp_path / "one"), tmp_path / "mixed"
    losses = alone(recipe, mixed, steps=4) + together(replace(recipe, shard=True), mixed, 2)
    assert losses == pytest.approx(one, abs=1e-5)
    assert_same_policy(tmp_path / "one", mixed)


def test_a_loss_that_is_not_finite_in_one_process_stops_both(
    recipe: FinetuneRecipe, tmp_path: Path, together: Launch
) -> None:
    errors = together(replace(recipe, micro_batch=2), tmp_path / "out", 2, spoilt_rank=1)
    assert len(errors) == 2
    assert all(error.startswith("the loss is nan at step 2. Lower learning_rate") for error in errors)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shard": True, "clip_norm": 0.0},
        pytest.param({"clip_norm": 0.0}, marks=pytest.mark.slow),
        pytest.param({"shard": True}, marks=pytest.mark.slow),
    ],
)
def test_a_gradient_that_is_not_finite_in_one_process_stops_both(
    recipe: FinetuneRecipe, tmp_path: Path, together: Launch, changes: dict[str, Any]
) -> None:
    recipe = replace(recipe, checkpoint_every=1, **changes)
    errors = together(recipe, tmp_path / "out", 2, spoilt_rank=1, spoilt="gradient")
    good = f"the last good checkpoint is {tmp_path / 'out' / 'resume'}"
    assert all(e.startswith("the gradient norm is nan at step 2. Lower learning_rate") and good in e for e in errors)


def test_a_batch_that_cannot_be_shared_equally_is_refused() -> None:
    assert Ranks(count=4).share(8) == 2
    with pytest.raises(RecipeError, match="a step has 8 frames, which 3 processes cannot share equally"):
        Ranks(count=3).share(8)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.here() == Ranks(0, 1, 0)
    assert Ranks().any(True, torch.device("cpu"))
    assert not Ranks().any(False, torch.device("cpu"))
