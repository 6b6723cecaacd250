"""Tests that every dataset of the registry is standardised exactly as in the reference.

golden/oxe/standardised.npz: what openvla/openvla @c8f03f48 made of invented episodes under TensorFlow 2.21; made by
tests/tools/make_oxe_golden.py.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.episode import Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.data.pipeline.standardise import fields_of, misfits, require_fit, standardise
from vla_robot.recipe import parse, read
from vla_robot.recipe.oxe import Columns, SourceRecipe

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "oxe" / "standardised.npz")
DATASETS = sorted({key.partition("|")[0] for key in GOLDEN})
NATURAL = "observation/natural_language_instruction"


def episode_of(steps: dict[str, Any]) -> Episode:
    return Episode(0, {}, steps, len(next(iter(steps.values()))), "shard-0, record 0")


def golden_episode(name: str, recipe: SourceRecipe) -> Episode:
    prefix = f"{name}|in|"
    steps: dict[str, Any] = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN if key.startswith(prefix)}
    for part in (*recipe.action_parts(), *recipe.state_parts()):
        if isinstance(part, Columns) and part.operations and part.operations[0].name == "inflate":
            steps[part.field] = tuple(zlib.compress(row.tobytes()) for row in steps[part.field])
    texts = tuple(f"do task {i}" for i in range(8))
    return episode_of({"language_instruction": texts, NATURAL: texts} | steps)


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_becomes_standard_as_the_reference_makes_it(name: str) -> None:
    recipe = read(SourceRecipe, name)
    made = standardise(recipe, golden_episode(name, recipe))
    np.testing.assert_allclose(made.actions, GOLDEN[f"{name}|out|action"], rtol=0, atol=2e-6)
    if recipe.state:
        np.testing.assert_allclose(made.state, GOLDEN[f"{name}|out|state"], rtol=0, atol=2e-6)
    else:
        assert not GOLDEN[f"{name}|out|state"].any(), "a recipe without a state stands for one of zeros only"
    assert list(made.instructions) == GOLDEN[f"{name}|out|instruction"].tolist()
    assert len(made) == len(made.state) == len(made.instructions)


def test_every_dataset_of_the_registry_was_compared(repository: Path) -> None:
    assert sorted(path.stem for path in (repository / "datasets" / "oxe").glob("*.toml")) == DATASETS


def own(**more: Any) -> SourceRecipe:
    return parse(SourceRecipe, {"kind": "source", "action": ["action[:6]", "action[6:]"], **more}, "mine")


def plain_episode(steps: int = 4) -> Episode:
    actions = np.arange(steps * 7, dtype=np.float64).reshape(steps, 7)
    return episode_of({"action": actions, "language_instruction": ("lift",) * steps, "observation/arm": actions[:, 0]})


def test_skipped_steps_leave_the_frames_where_they_are() -> None:
    made = standardise(own(skip_first=1, skip_last=2, state=["observation/arm"]), plain_episode())
    assert made.first == 1
    assert made.actions[:, 0].tolist() == [7.0]
    assert made.state.tolist() == [[7.0]]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_episode_that_is_too_short_has_no_steps(steps: int) -> None:
    assert len(standardise(own(skip_first=1, skip_last=2), plain_episode(steps))) == 0


def test_an_action_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"record 0: the recipe's action has 6 dimensions, but 'eef_pos' has 7"):
        standardise(own(action=["action[:6]"]), plain_episode())


def test_a_number_that_is_not_finite_is_named_by_its_step() -> None:
    episode = plain_episode()
    episode.numbers("action")[3, 2] = np.nan
    with pytest.raises(DataError, match=r"record 0: the action of step 3 is not finite \(.*nan.*Remove the episode"):
        standardise(own(skip_first=1), episode)


def test_an_operation_that_cannot_be_done_names_record_and_field() -> None:
    with pytest.raises(DataError, match=r"record 0: field 'action': quaternion_to_euler needs 4 columns.*got 2\."):
        standardise(own(action=["action[:2] | quaternion_to_euler", "action[3:7]"]), plain_episode())


def described(**more: Field) -> dict[str, Field]:
    fields = {
        "action": Field("action", "number", "float32", (7,)),
        "observation/arm": Field("observation/arm", "number", "float32", (3,)),
        "observation/image": Field("observation/image", "image", "uint8", (64, 64, 3)),
        "language_instruction": Field("language_instruction", "text", "str", ()),
    }
    return fields | more


def test_all_fields_that_a_dataset_lacks_are_named_at_once() -> None:
    recipe = own(state=["observation/arn"], cameras={"primary": "observation/imag"})
    with pytest.raises(DataError) as caught:
        require_fit(recipe, described(), "mine/1.0.0")
    assert (
        "mine/1.0.0 does not fit its recipe: unknown field 'observation/arn'; did you mean 'observation/arm'?"
        in str(caught.value)
    )
    assert "unknown camera 'observation/imag'; did you mean 'observation/image'?" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "field", "problem"),
    [
        ({}, Field("action", "number", "float32", (6,)), "the action has 6 dimensions, but 'eef_pos' has 7"),
        ({}, Field("action", "number", "float32", (None,)), "field 'action' holds float32 ?, not numbers"),
        ({}, Field("language_instruction", "number", "int32", (16,)), "holds int32 16, not text"),
        (
            {"cameras": {"primary": "observation/image"}},
            Field("observation/image", "image", "uint16", (64, 64, 1)),
            "field 'observation/image' holds image 64 x 64 x 1, not colour frames",
        ),
        (
            {"action": ["action[:3]", "action[3:7] | quaternion_to_euler"]},
            Field("action", "number", "float32", (8,)),
            "the action has 6 dimensions",
        ),
    ],
)
def test_a_field_of_another_kind_or_width_does_not_fit(more: dict[str, Any], field: Field, problem: str) -> None:
    (found,) = misfits(own(**more), described(**{field.name: field}))
    assert problem in found


@pytest.mark.parametrize("is_inflated", [False, True])
def test_compressed_numbers_may_have_been_inflated_by_the_reader(is_inflated: bool) -> None:
    numbers = np.arange(8, dtype=np.float32).reshape(4, 2)
    packed = tuple(zlib.compress(row.tobytes()) for row in numbers)
    steps = {"action": np.zeros((4, 7)), "arm": numbers if is_inflated else packed, "language_instruction": ("a",) * 4}
    made = standardise(own(state=["arm | inflate 2"]), episode_of(steps))
    np.testing.assert_array_equal(made.state, numbers)
    if is_inflated:
        with pytest.raises(DataError, match="field 'arm': it holds 2 numbers a step, not 7"):
            standardise(own(state=["arm | inflate 7"]), episode_of(steps))


def test_only_what_is_used_is_parsed() -> None:
    assert fields_of(read(SourceRecipe, "bridge_orig")) == ("observation/state", "action", "language_instruction")
