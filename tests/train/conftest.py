"""A dataset in which the brightness of the image says where to go, small enough to learn in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.messages import Observation, StepResult
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.testing import toy_embodiment

EMBODIMENT = toy_embodiment(step_m=1, height=28, width=28)
TINY = Architecture(
    image_size=28, tower_dim=24, tower_depth=2, tower_heads=2, llm_dim=32, llm_layers=2, llm_heads=2, llm_ff_dim=48,
    text_vocab=320, max_positions=96,
    initializer_range=0.02,  # the tests' tolerances were set for these weights
)  # fmt: skip


def write_demos(root: Path, episodes: int = 8, steps: int = 12, instruction: str = "go to the light") -> Path:
    rng = np.random.default_rng(0)
    with LeRobotWriter(root) as writer:
        for seed in range(episodes):
            builder = DemonstrationBuilder()
            for step in range(steps):
                light = rng.random()
                image = np.full((28, 28, 3), round(255 * light), np.uint8)
                action = np.array([2 * light - 1, float(light > 0.5)])
                seen = Observation({"front": image}, rng.uniform(-1, 1, 1), instruction, stamp_ns=step, step=step)
                last = step == steps - 1
                builder.add(seen, action, StepResult(seen, action, success=last, terminated=last, truncated=False))
            writer.write(builder.finish(EMBODIMENT, seed, "expert"))
    return root


@pytest.fixture(scope="session")
def demos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "light")


@pytest.fixture(scope="session")
def recipe(demos_folder: Path) -> DemosFinetuneRecipe:
    return DemosFinetuneRecipe(
        data=(demos_folder,), architecture=TINY, dataset_name="light", steps=6, batch_size=8, warmup_steps=2,
        evaluate_every=3, checkpoint_every=2, held_out=0.2,
    )  # fmt: skip


@pytest.fixture
def make_demos() -> Callable[..., Path]:
    return write_demos


@pytest.fixture(scope="session")
def tiny_architecture() -> Architecture:
    return TINY
