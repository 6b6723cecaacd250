"""Tests of datasets as one shuffled sequence, over the RLDS samples.

golden/oxe/samples.npz: what TensorFlow Datasets 4.9 and openvla/openvla @c8f03f48 make of the same shards; made by
tests/tools/make_oxe_sample_golden.py.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import DataError, RecipeError
from vla_robot.data.pipeline.mixture import (
    Choices,
    Dataset,
    Member,
    Mixture,
    members_of,
    open_dataset,
    open_mixture,
    open_parts,
)
from vla_robot.data.pipeline.steps import normalised, step_table
from vla_robot.data.pipeline.windows import Window

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "oxe" / "samples.npz")
DATASETS = sorted({key.partition("|")[0] for key in GOLDEN})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the samples, since an index is written beside each."""
    folder = tmp_path_factory.mktemp("data") / "oxe"
    shutil.copytree(Path(__file__).parents[2] / "golden" / "rlds_samples", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(name: str, samples: Path, cache: Path, **choices: Any) -> Mixture:
    return open_mixture(name, samples, Choices(**choices), cache)


def own_member(folder: Path, samples: Path, text: str) -> Member:
    (folder / "mine.toml").write_text(f'kind = "source"\nlocation = "{samples / "bridge_orig"}"\n{text}')
    return members_of(folder / "mine.toml")[0]


@pytest.mark.parametrize("name", DATASETS)
def test_a_sample_dataset_becomes_standard_as_tensorflow_makes_it(name: str, samples: Path, cache: Path) -> None:
    table = opened(name, samples, cache).datasets[0].table
    assert len(table.episodes) == len({key for key in GOLDEN if key.startswith(name) and key.endswith("|instruction")})
    for number, episode in enumerate(table.episodes):
        rows = slice(int(episode["start"]), int(episode["start"] + episode["length"]))
        golden = {key: GOLDEN[f"{name}|{number:03d}|{key}"] for key in ("action", "state", "instruction")}
        np.testing.assert_allclose(table.actions[rows], golden["action"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(table.state[rows], golden["state"], rtol=0, atol=1e-6)
        assert [table.texts[i] for i in table.text_of[rows]] == golden["instruction"].tolist()


@pytest.mark.parametrize("name", DATASETS)
def test_statistics_are_the_references_over_train_and_val(name: str, samples: Path, cache: Path) -> None:
    statistics = opened(name, samples, cache).statistics[name]
    for block in ("action", "proprio"):
        for row in ("mean", "std", "max", "min", "q01", "q99"):
            np.testing.assert_allclose(statistics[block][row], GOLDEN[f"{name}|{block}|{row}"], rtol=0, atol=1e-6)
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert set(statistics) == {"action", "proprio", "num_transitions", "num_trajectories"}


def test_quantiles_are_numpys_over_all_transitions(samples: Path, cache: Path) -> None:
    dataset = opened("bridge_orig", samples, cache).datasets[0]
    expected = np.quantile(np.array(dataset.table.actions, dtype=np.float64), [0.01, 0.99], axis=0)
    assert [dataset.statistics["action"]["q01"], dataset.statistics["action"]["q99"]] == expected.tolist()


def test_bridge_is_relabelled_with_the_state_that_was_reached(samples: Path, cache: Path) -> None:
    """The first step is dropped, and the last one, which has no next state; the gripper is 0 or 1."""
    dataset = opened("bridge_orig", samples, cache).datasets[0]
    raw = open_parts(str(samples / "bridge_orig"))["train"].episode(0)
    state, episode = raw.numbers("observation/state"), dataset.table.episodes[0]
    assert (int(episode["first"]), int(episode["length"])) == (1, len(raw) - 2)
    np.testing.assert_array_equal(dataset.table.actions[0, :6], state[2, :6] - state[1, :6])
    assert set(np.unique(dataset.table.actions[:, 6])) <= {0.0, 1.0}


def test_a_frame_belongs_to_its_step(samples: Path, cache: Path) -> None:
    """Step t of bridge is raw step t + 1."""
    dataset = opened("bridge_orig", samples, cache, cameras=("primary", "secondary", "wrist")).datasets[0]
    frames, raw = dataset.sample(4).frames, open_parts(str(samples / "bridge_orig"))["train"]
    assert frames["primary"] == (raw.encoded(0, "observation/image_0", 5),)
    assert frames["secondary"] == (raw.encoded(0, "observation/image_1", 5),)
    assert frames["wrist"] == (b"",)


def test_an_epoch_draws_every_step_once(samples: Path, cache: Path) -> None:
    mixture = opened("libero_spatial_no_noops", samples, cache)
    count = len(mixture.datasets[0])
    for epoch in range(2):
        places = [mixture.place(epoch * count + i)[1] for i in range(count)]
        assert sorted(places) == list(range(count)) != places


def test_a_mixture_draws_by_weight_times_transitions(samples: Path, cache: Path) -> None:
    mixture = opened("bridge_rt_1", samples, cache)
    sizes = {name: block["num_transitions"] for name, block in mixture.statistics.items()}
    assert mixture.probabilities == pytest.approx({name: n / sum(sizes.values()) for name, n in sizes.items()})
    drawn = np.bincount([mixture.place(i)[0] for i in range(4096)])
    assert drawn / 4096 == pytest.approx(list(mixture.probabilities.values()), abs=0.001)
    assert mixture.epoch == sum(sizes.values()), "as many samples as there are steps, where all weights are 1"


def test_an_epoch_is_that_of_the_datasets_of_weight_one(samples: Path, cache: Path) -> None:
    datasets = opened("bridge_rt_1", samples, cache).datasets
    sizes = [d.statistics["num_transitions"] for d in datasets]
    assert Mixture(datasets, [1.0, 4.0], 0).epoch == int(sizes[0] + 4 * sizes[1])
    assert Mixture(datasets, [0.5, 0.1], 0).epoch == int(sizes[0] + 0.2 * sizes[1]), "the largest stands in for 1"


def test_a_sample_is_the_same_in_another_process(samples: Path, cache: Path) -> None:
    mixture = opened("bridge_rt_1", samples, cache, seed=4, window=Window(past=1, future=2))
    data = pickle.dumps(mixture)
    other: Mixture = pickle.loads(data)  # noqa: S301 - our own bytes
    assert len(data) < 200_000, "tables and indexes are mapped again, not sent"
    for number in (0, 17, 5000):
        ours, theirs = mixture.sample(number), other.sample(number)
        assert ours.frames == theirs.frames and ours.instruction == theirs.instruction
        np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_the_table_is_made_once_and_again_when_the_files_change(samples: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bridge_orig"
    shutil.copytree(samples / "bridge_orig", folder)
    calls: list[int] = []

    def table() -> Path:
        member = members_of("bridge_orig", tmp_path)[0]
        parts = tuple(open_parts(member.location).values())
        made = step_table(member.name, member.recipe, parts, cache, lambda done, total: calls.append(done)).folder
        assert made is not None
        return made

    first = table()
    made = len(calls)
    assert made == 4 and table() == first and len(calls) == made
    shard = next(folder.rglob("*.tfrecord-00000*"))
    shard.touch()
    assert table() != first


def test_a_damaged_table_says_what_to_remove(samples: Path, cache: Path) -> None:
    opened("bridge_orig", samples, cache)
    about = next(cache.rglob("about.json"))
    about.write_text("{}")
    with pytest.raises(DataError, match=r"the table .* is damaged .*Remove that folder"):
        opened("bridge_orig", samples, cache)


def test_a_dimension_that_never_changes_becomes_zero() -> None:
    block = {"q01": [0, 1], "q99": [2, 1], "min": [0, 1], "max": [2, 1], "mask": [True, False]}
    assert normalised(np.array([[1.5, 1.0]], np.float32), block).tolist() == [[0.5, 0.0]]


def test_val_is_the_datasets_own_or_its_end(samples: Path, cache: Path) -> None:
    train, val = (opened("bridge_orig", samples, cache, split=split).datasets[0] for split in ("train", "val"))
    assert len(train) + len(val) == len(train.table)
    with pytest.raises(DataError, match=r"fractal20220817_data: no step is left of \d+ in split 'val'"):
        opened("fractal20220817_data", samples, cache, split="val")


def test_limits_leave_episodes_out(samples: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="0 of 4 episodes"):
        opened("bridge_orig", samples, cache, max_action=0.5)


def test_complete_windows_end_before_the_episode_does(samples: Path, cache: Path) -> None:
    dataset = opened("libero_spatial_no_noops", samples, cache, window=Window(future=7, complete=True)).datasets[0]
    assert len(dataset) == len(dataset.table) - 7 * len(dataset.table.episodes)
    assert dataset.sample(len(dataset) - 1).actions.shape == (8, 7)


def still_member(tmp_path: Path, samples: Path) -> Dataset:
    text = 'action = ["zeros 6", "action[-1:]"]\nskip_still = true\n[cameras]\nprimary = "observation/image_0"\n'
    return open_dataset(own_member(tmp_path, samples, text), Choices(), tmp_path / "cache")


def test_steps_that_do_not_move_are_left_out(tmp_path: Path, samples: Path) -> None:
    with pytest.raises(DataError, match="mine: no step is left"):
        still_member(tmp_path, samples)


def test_swapped_cameras_are_swapped_in_half_of_the_draws(tmp_path: Path, samples: Path) -> None:
    text = 'action = ["action"]\nswap_outside = true\n[cameras]\nprimary = "observation/image_0"\n'
    member = own_member(tmp_path, samples, text + 'secondary = "observation/image_1"\n')
    dataset = open_dataset(member, Choices(cameras=("primary", "secondary")), tmp_path / "cache")
    plain, swapped = dataset.sample(3), dataset.sample(3, swap=True)
    assert plain.frames["primary"] == swapped.frames["secondary"] != swapped.frames["primary"]


def test_a_dataset_of_the_users_needs_one_new_file(tmp_path: Path, samples: Path) -> None:
    member = own_member(tmp_path, samples, 'action = ["action"]\n[cameras]\nprimary = "observation/image_0"\n')
    sample = open_dataset(member, Choices(), tmp_path / "cache").sample(0)
    assert sample.dataset == "mine" and sample.state.shape == (1, 0) and sample.frames["primary"][0][:2] == b"\xff\xd8"


def test_statistics_of_a_dataset_without_state_are_zeros(tmp_path: Path, samples: Path) -> None:
    member = own_member(tmp_path, samples, 'action = ["action"]\n')
    statistics = open_dataset(member, Choices(), tmp_path / "cache").statistics
    assert statistics["proprio"]["q99"] == [0.0] * 7
    assert json.loads(json.dumps(statistics)) == statistics


def test_a_recipe_that_does_not_fit_names_the_field(tmp_path: Path, samples: Path) -> None:
    member = own_member(tmp_path, samples, 'action = ["action"]\n[cameras]\nprimary = "observation/imge_0"\n')
    with pytest.raises(DataError, match=r"unknown camera 'observation/imge_0'; did you mean 'observation/image_0'"):
        open_dataset(member, Choices(), tmp_path / "cache")


def test_a_place_must_be_known() -> None:
    with pytest.raises(RecipeError, match=r"bridge_orig\.toml has no location of the dataset; set location"):
        members_of("bridge_orig")


def test_a_recording_recipe_is_no_mixture() -> None:
    with pytest.raises(RecipeError, match="is recorded with `vla record`"):
        members_of("lift_noisy")


def test_the_version_that_a_recipe_names_is_read() -> None:
    assert members_of("bc_z", "data")[0].location == "data/bc_z/0.1.0"


def test_an_unknown_camera_is_named() -> None:
    with pytest.raises(DataError, match="unknown camera 'primry'; did you mean 'primary'"):
        Choices(cameras=("primry",))
