from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from vla_robot.cli.main import main
from vla_robot.core.errors import CheckpointError, ContractError, DataError
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.model import TrainingOutput
from vla_robot.recipe import dump, read
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe
from vla_robot.recipe.policy import OpenVLARecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.checkpoint import FOLDER, PREVIOUS
from vla_robot.train.finetune import Progress, Trained, finetune, open_run
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.trainer import Trainer

type Stopped = Callable[[int, Path], Path]


def quiet(_: Progress) -> None:
    pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(step: int):
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.phase == "steps":
            seen.append(progress.done)

    return watch, lambda: len(seen) + 1 >= step


@pytest.fixture(scope="module")
def whole(recipe: FinetuneRecipe, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that nothing interrupted, whose folder no test changes."""
    return finetune(recipe, tmp_path_factory.mktemp("whole"), quiet)


@pytest.fixture(scope="module")
def stopped(recipe: FinetuneRecipe, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """`stopped(step, out)`: a copy, as `out`, of the folder of a run that was stopped after that step."""
    root = tmp_path_factory.mktemp("stopped")

    @cache
    def made(step: int) -> Path:
        watch, stop = stop_after(step)
        assert finetune(recipe, root / str(step), watch, stop).steps == step
        return root / str(step)

    return lambda step, out: Path(shutil.copytree(made(step), out))


def test_training_teaches_what_the_image_says(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(
        recipe, steps=250, batch_size=32, learning_rate=3e-3, warmup_steps=20, shift_px=0, ema=0.95, evaluate_every=250,
        checkpoint_every=250,
    )  # fmt: skip
    finetune(recipe, tmp_path, quiet)
    policy = load(tmp_path / "final")
    for light in (0.1, 0.4, 0.9):
        frame = np.full((28, 28, 3), round(255 * light), np.uint8)
        seen = Observation({"front": frame}, np.zeros(1), "go to the light", stamp_ns=0, step=0)
        dx, gripper = policy.act([seen])[0].actions[0]
        assert dx == pytest.approx(2 * light - 1, abs=0.3)
        assert gripper == pytest.approx(float(light > 0.5), abs=0.1)


def test_a_run_that_was_stopped_ends_bit_for_bit_where_an_unbroken_one_does(
    recipe: FinetuneRecipe, whole: Trained, tmp_path: Path
) -> None:
    watch, stop = stop_after(3)
    first = finetune(recipe, tmp_path, watch, stop)
    assert first.steps == 3
    assert not (tmp_path / "final").exists()
    second = finetune(recipe, tmp_path, quiet)
    assert second.steps == recipe.steps
    assert_same_weights(whole.policy.parent, tmp_path)
    assert second.metrics == whole.metrics


def test_another_recipe_does_not_continue_a_run(recipe: FinetuneRecipe, stopped: Stopped, tmp_path: Path) -> None:
    out = stopped(2, tmp_path / "run")
    with pytest.raises(CheckpointError, match="was made by another recipe or from other data"):
        finetune(replace(recipe, learning_rate=1e-4), out, quiet)


def test_how_a_run_computes_may_change_when_it_goes_on(
    recipe: FinetuneRecipe, stopped: Stopped, tmp_path: Path
) -> None:
    out, otherwise = stopped(2, tmp_path / "run"), replace(recipe, activation_checkpointing=True, shard=True)
    assert finetune(otherwise, out, quiet).steps == recipe.steps


def test_a_damaged_checkpoint_is_told(recipe: FinetuneRecipe, stopped: Stopped, tmp_path: Path) -> None:
    out = stopped(2, tmp_path / "run")
    state = out / FOLDER / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"is damaged .* delete it to train from the start"):
        finetune(recipe, out, quiet)


def test_behind_a_damaged_checkpoint_stands_the_one_before(
    recipe: FinetuneRecipe, whole: Trained, stopped: Stopped, tmp_path: Path
) -> None:
    out = stopped(4, tmp_path / "broken")
    state = out / FOLDER / "state.safetensors"
    state.write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"delete it to go on from the one before, .*resume\.old\."):
        finetune(recipe, out, quiet)
    shutil.rmtree(state.parent)
    steps: list[int] = []
    finetune(recipe, out, lambda p: steps.append(p.done) if p.phase == "steps" else None)
    assert steps == [3, 4, 5, 6]
    assert_same_weights(whole.policy.parent, out)


def test_a_full_disk_loses_nothing_and_names_the_last_good_checkpoint(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def save_once(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if written:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        save_file(tensors, path)

    with monkeypatch.context() as full:
        full.setattr("vla_robot.train.checkpoint.save_file", save_once)
        with pytest.raises(
            DataError, match=r"cannot write the checkpoint of step 4: No space.* good checkpoint is .*resume"
        ):
            finetune(recipe, tmp_path, quiet)
    steps: list[int] = []
    finetune(recipe, tmp_path, lambda p: steps.append(p.done) if p.phase == "steps" else None)
    assert steps == [3, 4, 5, 6]


def test_a_system_that_takes_no_more_bytes_leaves_the_last_good_checkpoint(
    recipe: FinetuneRecipe, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    state = tmp_path / FOLDER / "state.safetensors"
    with ExitStack() as limits:

        def watch(_: Progress) -> None:
            if state.exists():  # from now on no file may be as long as a checkpoint
                limits.enter_context(file_limit(state.stat().st_size // 2))

        with pytest.raises(DataError, match=r"cannot write the checkpoint of step 4: File too large\.") as caught:
            finetune(recipe, tmp_path, watch)
    assert f"The last good checkpoint is {tmp_path / FOLDER}." in str(caught.value)
    steps: list[int] = []
    finetune(recipe, tmp_path, lambda p: steps.append(p.done) if p.phase == "steps" else None)
    assert steps == [3, 4, 5, 6]


def test_a_disk_that_fills_up_before_the_policy_is_written_loses_no_step(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("vla_robot.policy.openvla.family.save_model", full)
        with pytest.raises(DataError, match=r"cannot write .*final: No space.*good checkpoint is .*resume"):
            finetune(recipe, tmp_path, quiet)
    steps: list[int] = []
    assert finetune(recipe, tmp_path, lambda p: steps.append(p.done) if p.phase == "steps" else None).steps == 6
    assert steps == []


def test_checkpoints_and_the_trained_policy_survive_a_power_cut(
    recipe: FinetuneRecipe, tmp_path: Path, power_cut: Any
) -> None:
    out = tmp_path / "out"
    finetune(recipe, out, quiet)
    survivors = power_cut.survivors(tmp_path)
    written = {f"out/{path.relative_to(out)}": path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"out/recipe.toml", "out/metrics.jsonl", "out/resume/state.safetensors", "out/resume.old/state.json"} < set(
        written
    )
    assert {"out/start/model.safetensors", "out/final/model.safetensors", "out/final/tokenizer.json"} < set(written)
    assert {name for name, content in written.items() if survivors.get(name) != content} == set()


def test_two_trainings_do_not_write_one_folder(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    def second(_: Progress) -> None:
        with pytest.raises(DataError, match=rf"is being written by process {os.getpid()} "):
            finetune(replace(recipe, seed=7), tmp_path, quiet)

    finetune(replace(recipe, steps=2), tmp_path, second)
    assert read(FinetuneRecipe, tmp_path / "recipe.toml").seed == recipe.seed


def test_metrics_that_cannot_be_written_name_the_last_good_checkpoint(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "a disk that is gone" / "metrics.jsonl")
    with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl: .*last good checkpoint is .*resume"):
        finetune(recipe, tmp_path, quiet)


def test_a_crash_between_two_renames_loses_nothing(recipe: FinetuneRecipe, stopped: Stopped, tmp_path: Path) -> None:
    out = stopped(4, tmp_path / "run")
    shutil.rmtree(out / PREVIOUS)
    (out / FOLDER).rename(out / PREVIOUS)
    steps: list[int] = []
    finetune(recipe, out, lambda p: steps.append(p.done) if p.phase == "steps" else None)
    assert steps == [5, 6]


def test_metrics_of_training_and_held_out_episodes_are_kept(recipe: FinetuneRecipe, whole: Trained) -> None:
    last = json.loads((whole.policy.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == recipe.steps
    assert {"loss", "token_accuracy", "l1", "held_out_loss", "held_out_token_accuracy", "held_out_l1"} <= last.keys()


def test_a_policy_is_trained_on_with_its_own_statistics(
    recipe: DemosFinetuneRecipe, whole: Trained, make_demos, tmp_path: Path
) -> None:
    more = make_demos(tmp_path / "more", episodes=3)
    again = replace(recipe, policy=whole.policy, data=(*recipe.data, more), steps=2)
    finetune(again, tmp_path / "two", quiet)
    one, two = whole.policy.parent, tmp_path / "two"
    kept, new = (json.loads((run / "final" / "dataset_statistics.json").read_text()) for run in (one, two))
    assert kept == new
    before, after = weights(one), weights(two)
    assert not torch.equal(before["projector.fc1.weight"], after["projector.fc1.weight"])


def test_the_trained_policy_drives_by_the_statistics_of_its_newest_data(
    recipe: FinetuneRecipe, whole: Trained, tmp_path: Path
) -> None:
    later = replace(recipe, steps=1, policy=whole.policy, dataset_name="dusk")
    second = finetune(later, tmp_path / "two", quiet).policy
    assert set(json.loads((second / "dataset_statistics.json").read_text())) == {"light", "dusk"}
    found = find_policy(second).recipe
    assert isinstance(found, OpenVLARecipe)
    assert found.statistics_key == "dusk"
    assert found.checkpoint.resolve() == second.resolve()


@pytest.mark.parametrize(
    ("field", "changed", "said"),
    [
        ('"rate_hz": 10.0', '"rate_hz": 5.0', "rate: the policy was trained at 5 Hz, the data runs at 10 Hz"),
        ('"name": "front"', '"name": "fronte"', "unknown camera 'fronte'; did you mean 'front'?"),
        ('"name": "dx"', '"name": "dz"', r"action dimensions: the policy gives dz \[m\].*the data takes dx \[m\]"),
        ('"kind": "eef_delta"', '"kind": "joint_position"', "the policy gives 'joint_position', the data takes"),
        ('"name": "x"', '"name": "y"', r"unknown state \[m\] 'y'"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_the_field_and_the_commands(
    recipe: DemosFinetuneRecipe, whole: Trained, tmp_path: Path, field: str, changed: str, said: str
) -> None:
    policy = Path(shutil.copytree(whole.policy, tmp_path / "one"))
    path = policy / "embodiment.json"
    assert field in path.read_text()
    path.write_text(path.read_text().replace(field, changed))
    with pytest.raises(ContractError, match=said) as caught:
        finetune(replace(recipe, policy=policy), tmp_path / "two", quiet)
    for command in ("`vla record --env ENV --out FOLDER`", f"`vla finetune --data {recipe.data[0]} --out FOLDER`"):
        assert command in str(caught.value)
    assert "Choose another policy" not in str(caught.value)


def test_a_dataset_of_another_format_is_refused_with_the_command_that_converts_it(
    recipe: FinetuneRecipe, tmp_path: Path
) -> None:
    golden = Path(__file__).parent.parent / "golden" / "rlds_samples"
    rlds = Path(shutil.copytree(golden, tmp_path / "rlds_samples"))
    with pytest.raises(DataError, match=r"is an RLDS dataset.*`vla data convert .* FOLDER --to lerobot`"):
        finetune(replace(recipe, data=(rlds,)), tmp_path / "out", quiet)
    with pytest.raises(
        DataError, match=r"as it is: Its recipe is 'bridge_orig': --mixture bridge_orig --root \S+samples"
    ):
        finetune(replace(recipe, data=(rlds / "bridge_orig",)), tmp_path / "out", quiet)
    (tmp_path / "demo.hdf5").write_bytes(b"")
    with pytest.raises(DataError, match=r"demo.hdf5 is a robomimic file.*--to lerobot"):
        finetune(replace(recipe, data=(tmp_path / "demo.hdf5",)), tmp_path / "out", quiet)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, steps=40, learning_rate=1e12, warmup_steps=1, clip_norm=0, checkpoint_every=1)
    with pytest.raises(CheckpointError, match=r"the loss is nan at step \d+\. Lower learning_rate") as caught:
        finetune(recipe, tmp_path, quiet)
    assert f"the last good checkpoint is {tmp_path / FOLDER}" in str(caught.value)


class SpoiltLoss:
    """Makes the loss of one forward pass of a run nan."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self._left = number
        self._forward = Trainer._forward
        monkeypatch.setattr(Trainer, "_forward", lambda *args: self(*args))

    def __call__(self, trainer: Trainer, *args: Any) -> TrainingOutput:
        output = self._forward(trainer, *args)
        self._left -= 1
        return replace(output, loss=output.loss * float("nan")) if self._left == 0 else output


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_a_loss_that_is_not_finite_in_any_part_of_a_step_leaves_the_weights_alone(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    run, _ = open_run(replace(recipe, micro_batch=2), tmp_path, Ranks())
    run.advance()
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    SpoiltLoss(monkeypatch, part)
    with pytest.raises(CheckpointError, match="the loss is nan at step 1"):
        run.advance()
    assert run.step == 1
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone_whatever_the_loss(
    recipe: FinetuneRecipe, tmp_path: Path, clip_norm: float
) -> None:
    run, _ = open_run(replace(recipe, clip_norm=clip_norm), tmp_path, Ranks())
    run.advance()
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    next(run.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(CheckpointError, match=r"the gradient norm is (inf|nan) at step 1\. Lower learning_rate"):
        run.advance()
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, before[name])


class HostReads(TorchDispatchMode):
    """Counts how often a single number is read from its device, which has to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_look_at_the_loss_waits_for_the_device_in_no_part_of_a_step(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    counts: list[int] = []
    for parts in (1, 4):
        run, _ = open_run(replace(recipe, micro_batch=recipe.batch_size // parts), tmp_path / str(parts), Ranks())
        with HostReads() as reads:
            run.advance()
        counts.append(reads.count)
    assert counts == [1, 4]  # one in each pass: the attention asks whether there is padding


def test_the_learning_rate_that_is_told_is_the_one_of_the_step(
    recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *args: Any) -> Any:
        used.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    told: list[float] = []
    finetune(recipe, tmp_path, lambda p: told.append(p.metrics["learning_rate"]) if p.phase == "steps" else None)
    assert told == used
    peak = recipe.learning_rate
    assert told[:3] == [pytest.approx(peak / 2), pytest.approx(peak), pytest.approx(peak)]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["step"], line["learning_rate"]) == (recipe.steps, used[-1])


def test_the_command_trains_and_says_what_is_next(recipe: FinetuneRecipe, tmp_path: Path, capsys) -> None:
    (tmp_path / "tiny.toml").write_text(dump(replace(recipe, steps=2)))
    status = main(["finetune", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--json",
                   str(tmp_path / "out.json")])  # fmt: skip
    assert status == 0
    assert "Next: `vla run --env ENV --policy" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())
    assert {"name": "steps", "value": 2.0, "unit": "1", "baseline": None, "ratio": None} in results["rows"]


def test_the_command_without_data_says_how_to_get_some(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.toml").write_text('verb = "finetune"\n')
    assert main(["finetune", str(tmp_path / "empty.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "Record some with `vla record`" in " ".join(capsys.readouterr().err.split())
