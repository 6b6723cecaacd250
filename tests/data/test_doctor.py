"""Tests that each fault of a dataset is found with its fix, and that a sound dataset has no problems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vla_robot.core.episode import Episode, Field
from vla_robot.data import doctor
from vla_robot.data.doctor import Finding, Patient
from vla_robot.data.formats.source import EncodedFrames, require_fields
from vla_robot.data.pipeline.steps import step_table
from vla_robot.recipe.oxe import Cameras, SourceRecipe

STEPS, EPISODES = 30, 6
CAMERA, TEXT = "observation/image", "language_instruction"


class Recording:
    """A dataset in memory that a test may change."""

    name, location, metadata_fields, splits = "mine", "memory", {}, {"train": EPISODES}
    left_out: Mapping[str, str] = {}
    notes, skipped, num_skipped = (), (), 0

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rate_hz: float | None = 10.0
        self.columns: list[dict[str, Any]] = []
        for episode in range(EPISODES):
            action = rng.uniform(-0.05, 0.05, (STEPS, 7))
            action[:, 6] = np.arange(STEPS) < STEPS / 2
            self.columns.append(
                {
                    "action": action,
                    TEXT: ("lift the cube",) * STEPS if episode % 2 else ("open the drawer",) * STEPS,
                    "timestamp": np.arange(STEPS) / 10,
                    CAMERA: [bytes([episode, step]) for step in range(STEPS)],
                }
            )

    @property
    def fields(self) -> dict[str, Field]:
        kinds = {CAMERA: "image", TEXT: "text"}
        dtypes = {CAMERA: "uint8", TEXT: "string"}
        shapes: dict[str, tuple[int, ...]] = {"action": (7,)}
        return {
            name: Field(name, kinds.get(name, "number"), dtypes.get(name, "float32"), shapes.get(name, ()))  # type: ignore[arg-type]
            for name in self.columns[0]
        }

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.full(EPISODES, STEPS, dtype=np.int64)

    def __len__(self) -> int:
        return EPISODES

    def episode(self, index: int, fields: Any = None) -> Episode:
        names = require_fields(fields, self.fields, "memory")
        steps = {name: self.columns[index][name] for name in names}
        if CAMERA in steps:
            steps[CAMERA] = EncodedFrames(steps[CAMERA], self.fields[CAMERA], "memory")
        return Episode(index, {}, steps, STEPS, f"memory, episode {index}")

    def encoded(self, index: int, field: str, step: int) -> bytes:
        return self.columns[index][field][step]


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def examine(tmp_path: Path):
    def run(recording: Recording, reference: Mapping[str, Any] | None = None) -> list[Finding]:
        recipe = SourceRecipe("source", ("action",), cameras=Cameras(primary=CAMERA))
        table = step_table("mine", recipe, [recording], tmp_path)
        return doctor.examine(Patient(recipe, (recording,), table), reference)

    return run


def problems(findings: list[Finding]) -> list[str]:
    return [f"{f.check}: {f.text} FIX {f.fix}" for f in findings if f.verdict == "problem"]


def test_a_sound_dataset_has_no_problems(recording: Recording, examine: Any) -> None:
    findings = examine(recording)
    assert problems(findings) == []
    assert {f.check for f in findings} == {"no-ops", "outliers", "gripper", "rate", "frames", "instructions"}


def test_idle_steps_are_found(recording: Recording, examine: Any) -> None:
    recording.columns[0]["action"][3:9, :6] = 0
    (found,) = problems(examine(recording))
    assert found.startswith("no-ops: 3.3% of the steps do nothing") and "skip_still = true" in found


def test_an_outlier_is_named_with_its_place_and_the_usual_range(recording: Recording, examine: Any) -> None:
    recording.columns[4]["action"][7, 2] = 3.0
    (found,) = problems(examine(recording))
    assert "the worst is 3 in dimension 2 (episode 4, step 7), where 98 % lie in -0.0" in found


@pytest.mark.parametrize(
    ("spoil", "seen", "fix"),
    [
        (lambda g: 1 - 2 * g, "its action goes from -1 to 1", "| clip | invert"),
        (lambda g: 1 - g, "it begins closed in 100% of the episodes", "| invert"),
        (lambda g: np.arange(STEPS) % 2 == 0, "it flips between open and closed in 97% of the steps", "| binarise"),
    ],
)
def test_a_wrong_gripper_is_found(recording: Recording, examine: Any, spoil: Any, seen: str, fix: str) -> None:
    for columns in recording.columns:
        columns["action"][:, 6] = spoil(columns["action"][:, 6])
    (found,) = problems(examine(recording))
    assert seen in found and fix in found


def test_a_rate_other_than_the_datasets_is_found(recording: Recording, examine: Any) -> None:
    recording.rate_hz = 30.0
    (found,) = problems(examine(recording))
    assert "10 Hz by 'timestamp'" in found and "but the dataset says 30 Hz" in found


def test_dropped_steps_are_found(recording: Recording, examine: Any) -> None:
    for columns in recording.columns:
        columns["timestamp"] = columns["timestamp"] + 0.2 * (np.arange(STEPS) // 10)
    (found,) = problems(examine(recording))
    assert found.startswith("rate: ") and "steps were dropped or came late" in found


def test_a_frozen_camera_is_found(recording: Recording, examine: Any) -> None:
    for columns in recording.columns:
        columns[CAMERA] = [columns[CAMERA][step // 2] for step in range(STEPS)]
    (found,) = problems(examine(recording))
    assert "camera 'primary': 51.7% of the frames repeat the one before although the arm moves" in found


def test_steps_without_an_instruction_are_found(recording: Recording, examine: Any) -> None:
    recording.columns[2][TEXT] = (" ",) * STEPS
    (found,) = problems(examine(recording))
    assert "16.7% of the steps have no instruction" in found


def test_ambiguous_instructions_are_noted(recording: Recording, examine: Any) -> None:
    recording.columns[0][TEXT] = ("Open the  drawer.",) * STEPS
    recording.columns[1][TEXT] = ("lift",) * STEPS
    notes = " ".join(f.text for f in examine(recording) if f.verdict == "note")
    assert "1 of 4 end with a full stop, e.g. 'Open the  drawer.'" in notes
    assert "1 of 4 differ from another only in capitals, spaces or full stops" in notes
    assert "1 have fewer than two words, e.g. 'lift'" in notes


def test_another_unit_than_the_checkpoints_is_found(recording: Recording, examine: Any) -> None:
    reference = {"action": {"q01": [-5.0] * 6 + [0], "q99": [5.0] * 6 + [1]}}
    (found,) = problems(examine(recording, reference))
    assert "the range of actions differs from the checkpoint's (dimension 0: 0.00" in found


def test_actions_of_another_size_than_the_checkpoints_are_found(recording: Recording, examine: Any) -> None:
    (found,) = problems(examine(recording, {"action": {"q01": [0.0] * 14, "q99": [1.0] * 14}}))
    assert "the checkpoint's actions have 14 dimensions, the dataset's 7" in found
