"""A new model reads the cameras that its recipe names, out of those of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation, StepResult
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.testing import toy_embodiment
from vla_robot.train.finetune import finetune

ARM = toy_embodiment(step_m=1, cameras=("front", "side", "wrist"), height=28, width=28)


def seen(rng: np.random.Generator) -> Observation:
    images = {camera.name: rng.integers(0, 256, (28, 28, 3), np.uint8) for camera in ARM.cameras}
    return Observation(images, rng.uniform(-1, 1, 1), "go", stamp_ns=0, step=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("cameras") / "data", np.random.default_rng(0)
    with LeRobotWriter(root) as writer:
        for seed in range(4):
            builder = DemonstrationBuilder()
            for step in range(6):
                observation, action = seen(rng), np.array([rng.uniform(-1, 1), 1.0])
                last = step == 5
                after = StepResult(observation, action, success=last, terminated=last, truncated=False)
                builder.add(observation, action, after)
            writer.write(builder.finish(ARM, seed, "expert"))
    return root


def recipe(data: Path, tiny: Architecture, *cameras: str) -> DemosFinetuneRecipe:
    return DemosFinetuneRecipe(
        data=(data,), architecture=replace(tiny, cameras=cameras, initializer_range=0.0), dataset_name="toy", steps=2,
        batch_size=6, warmup_steps=0, shift_px=0, held_out=0.3,
    )  # fmt: skip


def test_the_named_cameras_alone_are_read_in_their_order(
    data: Path, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    folder = finetune(recipe(data, tiny_architecture, "wrist", "front"), tmp_path / "run", lambda _: None).policy
    policy = family_of(folder).load(folder, Loading())
    assert policy.embodiment is not None
    assert [camera.name for camera in policy.embodiment.cameras] == ["wrist", "front"]

    observation = seen(np.random.default_rng(1))
    front, side, wrist = (observation.images[name] for name in ("front", "side", "wrist"))
    pixels = policy.read([observation]).pixels
    assert pixels.shape[:2] == (1, 2)
    assert torch.equal(policy.read([replace(observation, images={"wrist": wrist, "front": front})]).pixels, pixels)
    swapped = policy.read([replace(observation, images={"wrist": front, "front": wrist})]).pixels
    assert torch.equal(swapped, pixels.flip(1)) and not torch.equal(swapped, pixels)
    unread = policy.read([replace(observation, images={**observation.images, "side": 255 - side})]).pixels
    assert torch.equal(unread, pixels)


def test_a_camera_that_the_data_lack_is_refused_before_training(
    data: Path, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match="unknown camera 'wristt'; did you mean 'wrist'"):
        finetune(recipe(data, tiny_architecture, "wristt"), tmp_path / "run", lambda _: None)
    with pytest.raises(ContractError, match="front, front; give each once"):
        finetune(recipe(data, tiny_architecture, "front", "front"), tmp_path / "run", lambda _: None)
