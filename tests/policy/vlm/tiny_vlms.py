"""New folders of each family, a few thousand weights, and what they see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.messages import Image, Observation
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.families import family_named
from vla_robot.recipe.finetune import Architecture, HeadRecipe
from vla_robot.testing import TOOL_AXES, toy_embodiment

CAMERAS = ("front", "wrist")
HEIGHT, WIDTH = 24, 40
PROCESSORS = {
    "gemma4": {"max_soft_tokens": 70},  # the library's processor takes no smaller budget
    "gemma4_unified": {"max_soft_tokens": 70},
    "smolvlm": {"do_image_splitting": True, "size": {"longest_edge": 112}},  # 2 x 2 parts, and the whole
    "idefics3": {"do_image_splitting": True, "size": {"longest_edge": 112}},
}
"""What differs from a new folder's preprocessor_config.json."""
INSTRUCTIONS = ("lift the red cube", "open the door and then the drawer")


def arm(states: int = 2) -> Embodiment:
    return toy_embodiment(
        axes=[Dim(name, "m", -1.0, 1.0) for name in TOOL_AXES],
        gripper=Dim("gripper", "m", -1.0, 1.0),
        state=tuple(Dim(f"s{n}", "m", -1.0, 1.0) for n in range(states)),
        cameras=CAMERAS,
        height=HEIGHT,
        width=WIDTH,
    )


def create(
    folder: Path, name: str, use_state: bool, head: HeadRecipe | None = None, initializer_range: float = 0.02
) -> Path:
    architecture = Architecture(
        family=name, image_size=28 if name == "paligemma" else 56, tower_dim=32, tower_depth=3, tower_heads=2,
        llm_dim=32, llm_layers=3, llm_heads=2, llm_ff_dim=48, text_vocab=320, max_positions=256, use_state=use_state,
        initializer_range=initializer_range,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    statistics = dataset_statistics("toy", rng.normal(size=(50, 7)), rng.normal(size=(50, 2)), 5)
    chunk = 1 if head is None else 3
    family = family_named(name)
    family.create(folder, architecture, arm(), statistics, INSTRUCTIONS, seed=0, chunk=chunk, head=head)
    described = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(described | PROCESSORS.get(name, {})))
    return folder


def frame(seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def observation(number: int) -> Observation:
    images = {camera: frame(10 * number + n) for n, camera in enumerate(CAMERAS)}
    return Observation(images, np.array([0.1, -0.2]) * number, INSTRUCTIONS[number % 2], stamp_ns=7, step=number)
