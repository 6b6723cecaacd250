from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import normalise, unnormalise
from vla_robot.data.formats import png
from vla_robot.data.formats.images import decode_image
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.layout import RECORDING, write_tasks
from vla_robot.data.pipeline.mixture import Choices
from vla_robot.data.pipeline.shuffle import Pooled
from vla_robot.data.pipeline.windows import Window
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.train.batches import stream
from vla_robot.train.batches.augment import RandomShift
from vla_robot.train.batches.data import TrainingData, data_of_demos, datasets_of
from vla_robot.train.batches.frames import Batch
from vla_robot.train.batches.stream import Encoder
from vla_robot.train.finetune import finetune
from vla_robot.train.parallel.ddp import Ranks

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def policy(
    demos_folder: Path, tiny_architecture: Architecture, tmp_path_factory: pytest.TempPathFactory
) -> OpenVLAPolicy:
    return trained(demos_folder, tiny_architecture, tmp_path_factory.mktemp("run"))


def trained(folder: Path, architecture: Architecture, out: Path, **more: Any) -> OpenVLAPolicy:
    recipe = DemosFinetuneRecipe(
        data=(folder,), architecture=architecture, dataset_name="light", steps=1, batch_size=4, **more
    )
    return load(finetune(recipe, out, lambda progress: None).policy)


def data_of(folder: Path, policy: OpenVLAPolicy, **more: Any) -> TrainingData:
    recipe = DemosFinetuneRecipe(data=(folder,), dataset_name="light", **{"batch_size": 4, "shift_px": 0, **more})
    return data_of_demos(recipe, open_demos(folder), policy, Ranks(), lambda done, total: None)


def all_of(folder: Path, policy: OpenVLAPolicy) -> Batch:
    """Every frame, in the order in which they were recorded."""
    demos, chunk = open_demos(folder), policy.model.config.chunk
    choices = Choices(window=Window(future=chunk - 1), cameras=("front",), known=("front",))
    drawn = np.ones(len(demos.episodes), dtype=np.bool_)
    datasets = datasets_of(demos, "light", choices, drawn, policy.statistics["light"])
    samples = [dataset.sample(step) for dataset in datasets for step in range(len(dataset))]
    return Encoder.of(policy, ("front",), as_acting=True)(samples, np.arange(len(samples)))


def test_labels_are_the_action_tokens_and_the_end_and_nothing_else(policy: OpenVLAPolicy, demos_folder: Path) -> None:
    batch = all_of(demos_folder, policy)
    labelled = batch.labels != IGNORE
    assert set(labelled.sum(dim=1).tolist()) == {3}  # two action dimensions and </s>
    torch.testing.assert_close(batch.labels[labelled], batch.input_ids[labelled])
    tokens = batch.labels[labelled].reshape(-1, 3)
    assert (tokens[:, -1] == policy.tokenizer.eos).all()
    stats = policy.action_stats("light")
    actions = unnormalise(policy.codec.values[policy.codec.rows(tokens[:, :2].numpy())], stats)
    stored = np.clip(open_demos(demos_folder).actions, [stats.q01[0], 0], [stats.q99[0], 1])
    np.testing.assert_allclose(actions, stored, atol=0.01)


def test_each_frame_is_taught_with_its_own_instruction(
    policy: OpenVLAPolicy, demos_folder: Path, tmp_path: Path
) -> None:
    """Several tasks within one episode, which LeRobot's task_index of each step allows."""
    root = tmp_path / "two"
    shutil.copytree(demos_folder, root)
    write_tasks(root, ["push the red cube", "open the lid"])
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        tasks = pa.array(np.arange(len(table)) % 2)
        pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", tasks), path)
    taught = all_of(root, policy)
    for row in range(4):
        prompt = policy.tokenizer(("push the red cube", "open the lid")[row % 2])
        np.testing.assert_array_equal(taught.input_ids[row, : len(prompt)].numpy(), prompt)


def test_a_policy_of_three_actions_learns_those_of_the_next_three_steps(
    demos_folder: Path, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    policy = trained(demos_folder, tiny_architecture, tmp_path, chunk=3)
    demos, batch = open_demos(demos_folder), all_of(demos_folder, policy)
    last = demos.episodes[0].stop - 1
    labels = batch.labels[[0, last]]
    labelled = labels != IGNORE
    assert labelled.sum(dim=1).tolist() == [7, 7]  # three times two action dimensions, and </s>
    said = policy.codec.values[policy.codec.rows(labels[labelled].reshape(2, 7)[:, :6].numpy())].reshape(2, 3, 2)
    wanted = normalise(demos.actions[[0, 1, 2, last]], policy.action_stats("light"))
    np.testing.assert_allclose(said[0], np.clip(wanted[:3], -1, 1), atol=0.005)
    # Behind the end nothing is to be done: no motion, the gripper as it was.
    np.testing.assert_allclose(said[1], np.clip([wanted[3], [0, wanted[3, 1]], [0, wanted[3, 1]]], -1, 1), atol=0.005)

    frame = demos.images(0)
    (chunk,) = policy.act([Observation(frame, demos.states[0], demos.episodes[0].instruction, 0, 0)])
    assert chunk.actions.shape == (3, 2)


def test_a_batch_is_what_the_policy_sees_when_it_acts(policy: OpenVLAPolicy, demos_folder: Path) -> None:
    images = open_demos(demos_folder).images(3)
    np.testing.assert_array_equal(
        all_of(demos_folder, policy).pixels[3:4].numpy(), policy.preprocessor([[images["front"]]])
    )


def test_frames_that_are_kept_are_those_that_are_read_as_they_are_drawn(
    policy: OpenVLAPolicy, demos_folder: Path
) -> None:
    data, everything = data_of(demos_folder, policy, held_out=0.0), all_of(demos_folder, policy)
    order = Pooled([len(everything.pixels)], 4, 0)
    for step in (0, 7, 30):  # of the first epoch and the second
        rows = [order.place(number)[1] for number in range(4 * step, 4 * step + 4)]
        batch = data.batch(step)
        for name in ("pixels", "input_ids", "labels", "state", "actions"):
            assert torch.equal(getattr(batch, name), getattr(everything, name)[rows]), name


def asked_twice(root: Path, out: Path) -> Path:
    """A copy of a dataset whose second half of episodes shows the frames of the first."""
    shutil.copytree(root, out)
    files = sorted((out / "data").rglob("*.parquet"))
    tables, name = [pq.read_table(path) for path in files], "observation.images.front"
    cells = [cell for table in tables for cell in table[name].to_pylist()]
    cells = [cells[number % (len(cells) // 2)] for number in range(len(cells))]
    for path, table in zip(files, tables, strict=True):
        own, cells = cells[: len(table)], cells[len(table) :]
        column = pa.array(own, table.schema.field(name).type)
        pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    return out


def test_equal_frames_are_decoded_and_kept_once(
    policy: OpenVLAPolicy, demos_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = asked_twice(demos_folder, tmp_path / "twice")
    files = [cell["bytes"] for path in (root / "data").rglob("*.parquet")
             for cell in pq.read_table(path)["observation.images.front"].to_pylist()]  # fmt: skip
    decoded = list[bytes]()
    monkeypatch.setattr(stream, "decode_image", lambda data, *rest: decoded.append(data) or decode_image(data, *rest))
    data = data_of(root, policy, held_out=0.0)
    assert sorted(decoded) == sorted(set(files)), "each file once"
    assert len(decoded) <= len(files) / 2
    size = len(set(files)) * 28 * 28 * 3 / 1e9
    (note,) = data.notes
    assert note.startswith(f"frames of {len(files)} steps, {len(decoded)} different ones, take {size:.2f} GB")
    everything = all_of(root, policy)
    order = Pooled([len(everything.pixels)], 4, 0)
    rows = [order.place(number)[1] for number in range(4, 8)]
    assert torch.equal(data.batch(1).pixels, everything.pixels[rows])


def test_demonstrations_that_do_not_fit_into_main_memory_are_an_error(
    policy: OpenVLAPolicy, demos_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(available=400_000_000)
    monkeypatch.setattr(stream.psutil, "virtual_memory", lambda: free)
    with pytest.raises(DataError, match=r"do not fit into main memory: after 0\.0 GB .* only 0\.4 GB are free"):
        data_of(demos_folder, policy)


def test_a_gripper_that_never_moves_keeps_its_value(policy: OpenVLAPolicy, demos_folder: Path, tmp_path: Path) -> None:
    """Normalised to 0 as the reference's data are, it would close."""
    root = tmp_path / "open"
    shutil.copytree(demos_folder, root)
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        held = pa.array([[action[0], 1.0] for action in table["action"].to_pylist()], table.schema.field("action").type)
        pq.write_table(table.set_column(table.column_names.index("action"), "action", held), path)
    block = {**policy.statistics["light"]["action"], "min": [-1.0, 1.0], "max": [1.0, 1.0]}
    statistics = {**policy.statistics["light"], "action": block}
    choices, demos = Choices(cameras=("front",), known=("front",)), open_demos(root)
    (dataset,) = datasets_of(demos, "light", choices, np.ones(len(demos.episodes), np.bool_), statistics)
    assert dataset.sample(0).actions[0, 1] == 1.0


def test_a_shift_depends_on_seed_and_step_alone() -> None:
    frames = torch.randint(0, 256, (6, 1, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there, shift = torch.ones((6, 1), dtype=torch.bool), RandomShift(3, seed=0, rows=6)
    one, same, other = (shift(frames, there, 6 * step + np.arange(6)) for step in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    halves = [shift(frames[k : k + 3], there[k : k + 3], 6 + k + np.arange(3)) for k in (0, 3)]
    assert torch.equal(torch.cat(halves), one), "each rank moves its share as one process would"


def test_frames_of_a_run_are_shifted_as_its_recipe_says(
    policy: OpenVLAPolicy, demos_folder: Path, tmp_path: Path
) -> None:
    root, rng = tmp_path / "noise", np.random.default_rng(0)
    shutil.copytree(demos_folder, root)
    for path in (root / "data").rglob("*.parquet"):
        table, name = pq.read_table(path), "observation.images.front"
        noise = [png.encode(rng.integers(0, 256, (28, 28, 3), np.uint8)) for _ in range(len(table))]
        cells = pa.array([{"bytes": data, "path": None} for data in noise], table.schema.field(name).type)
        pq.write_table(table.set_column(table.column_names.index(name), name, cells), path)
    moved_by, plain = (data_of(root, policy, shift_px=px).batch(3).pixels for px in (2, 0))
    shift = RandomShift(2, seed=0, rows=4)
    frames = plain.movedim(2, -1)  # (B, N, S, S, C), as before they are normalised
    expected = shift(frames, torch.ones((4, 1), dtype=torch.bool), np.arange(12, 16)).movedim(-1, 2)
    assert torch.equal(moved_by, expected) and not torch.equal(moved_by, plain)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    rows, columns = ((torch.arange(6) + by).clamp(0, 5) for by in (down, right))
    return image[rows][:, columns]


def test_a_shift_moves_whole_images_and_repeats_the_border() -> None:
    frame = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6, 1).repeat(64, 1, 1, 1, 3)
    moved_by = RandomShift(2, seed=0, rows=64)
    found = set()
    for image in moved_by(frame, torch.ones((64, 1), dtype=torch.bool), np.arange(64))[:, 0, :, :, 0]:
        offsets = [o for o in product(range(-2, 3), repeat=2) if torch.equal(image, moved(frame[0, 0, :, :, 0], *o))]
        assert len(offsets) == 1
        found.add(offsets[0])
    assert len(found) > 15


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3).filter(any), batch=st.integers(1, 20),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_an_epoch_shows_each_frame_at_most_once_and_is_a_new_shuffle(counts: list[int], batch: int, seed: int) -> None:
    order, count = Pooled(counts, batch, seed), sum(counts)
    starts = np.cumsum([0, *counts])
    length = count // order.size * order.size
    for epoch in (0, 1):
        places = [order.place(number) for number in range(epoch * length, (epoch + 1) * length)]
        assert all(0 <= step < counts[which] for which, step in places)
        rows = [int(starts[which]) + step for which, step in places]
        assert rows == np.random.default_rng([seed, 0, epoch]).permutation(count)[:length].tolist()


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.01, 1), (0.25, 2), (1.0, 7)])
def test_whole_episodes_are_held_out_and_one_always_trains(
    policy: OpenVLAPolicy, demos_folder: Path, share: float, held: int
) -> None:
    data = data_of(demos_folder, policy, held_out=share, batch_size=500)
    trained_on, measured = data.batch(0), list(data.held_out())
    assert len(trained_on.pixels) == 12 * (8 - held)  # 8 episodes of 12 steps, every frame in one batch
    assert sum(len(batch.pixels) for batch in measured) == 12 * held
    assert trained_on.state is not None
    seen = {float(x) for x in trained_on.state[:, 0]}
    assert not seen & {float(x) for batch in measured if batch.state is not None for x in batch.state[:, 0]}


def test_frames_whose_actions_are_lost_behind_a_gap_are_not_trained_on(
    policy: OpenVLAPolicy, demos_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cut"
    shutil.copytree(demos_folder, root)
    notes = [json.loads(line) for line in (root / RECORDING).read_text().splitlines()]
    notes[0] |= {"part": 1, "parts": 2}  # the robot went on behind the first episode
    (root / RECORDING).write_text("".join(json.dumps(note) + "\n" for note in notes))
    demos = open_demos(root)
    drawn = np.ones(len(demos.episodes), dtype=np.bool_)

    def steps(future: int) -> int:
        choices = Choices(window=Window(future=future), cameras=("front",), known=("front",))
        (dataset,) = datasets_of(demos, "light", choices, drawn, policy.statistics["light"])
        return len(dataset)

    assert (steps(0), steps(2)) == (demos.num_frames, demos.num_frames - 2)
