"""A camera of 480 x 640: demonstrations, training, an episode and a server, with the tokens of the published sizes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import CheckpointError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.loop.control_loop import run_episode
from vla_robot.policy.families import family_named, family_of
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.safety.limits import RangeGuard
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.testing import ToyWorld, toy_embodiment
from vla_robot.train.finetune import finetune
from vla_robot.transport.sockets import ANY_PORT, ServerSocket
from vla_robot.transport.wake import Wake

ARM = toy_embodiment(height=480, width=640)
PUBLISHED = {
    "qwen2_vl": ({"size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}}, 391),
    "gemma4": ({"max_soft_tokens": 280}, 266),
}
"""Family -> the budget of its published image processor, and the tokens of a frame of 480 x 640."""


def demos(root: Path) -> Path:
    world, rng = ToyWorld(embodiment=ARM), np.random.default_rng(0)
    with LeRobotWriter(root) as writer:
        for seed in range(3):
            builder, seen = DemonstrationBuilder(), world.reset(seed)
            for step in range(3):
                action = np.array([rng.uniform(-0.05, 0.05), 1.0])
                result = replace(world.step(action), success=step == 2, terminated=step == 2)
                builder.add(seen, action, result)
                seen = result.observation
            writer.write(builder.finish(ARM, seed, "expert"))
    return root


def start_of(folder: Path, name: str) -> Path:
    """A tiny model of random weights, with the budget of the published processor."""
    architecture = Architecture(
        family=name, image_size=56, tower_dim=24, tower_depth=2, tower_heads=2, llm_dim=32, llm_layers=2, llm_heads=2,
        llm_ff_dim=48, text_vocab=320, max_positions=1024,
        initializer_range=0.02,  # the tests' tolerances were set for these weights
    )  # fmt: skip
    statistics = {"toy": {part: _quantiles(size) for part, size in (("action", 2), ("proprio", 1))}}
    family_named(name).create(folder, architecture, ARM, statistics, ["go right"], seed=0)
    described = read_json(folder / "preprocessor_config.json")
    write_json(folder / "preprocessor_config.json", described | PUBLISHED[name][0])
    return folder


def _quantiles(size: int) -> dict[str, list[float]]:
    return {"q01": [-1.0] * size, "q99": [1.0] * size, "min": [-1.0] * size, "max": [1.0] * size}


@contextlib.contextmanager
def served(policy: Any) -> Iterator[str]:
    """The address of a server of a policy."""

    def act(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        return policy.act(observations)

    with contextlib.ExitStack() as stack:
        batcher, stopped = Batcher(act, Line(4, 2_000_000)), threading.Event()
        wake = stack.enter_context(contextlib.closing(Wake()))
        socket = stack.enter_context(ServerSocket(ANY_PORT, wake=wake))
        model = answering(batcher)
        server = PolicyServer(Served("wide", policy.embodiment, 4), batcher, socket, wake)
        network = threading.Thread(target=server.serve, args=(stopped.is_set,))
        network.start()
        try:
            yield socket.address
        finally:
            stopped.set()
            network.join()
            batcher.close()
            model.join()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_camera_that_is_not_square_from_demonstrations_to_a_served_policy(tmp_path: Path, name: str) -> None:
    recipe = DemosFinetuneRecipe(
        data=(demos(tmp_path / "demos"),), policy=start_of(tmp_path / "start", name), dataset_name="toy", steps=2,
        batch_size=2, warmup_steps=1, evaluate_every=2, checkpoint_every=2, held_out=0.3,
    )  # fmt: skip
    trained = finetune(recipe, tmp_path / "run", lambda *_: None)
    source = find_policy(trained.policy)
    check_policy(source.recipe)
    policy: Any = load_policy(source.recipe, ARM)
    assert policy.model.image_tokens == PUBLISHED[name][1]

    world = ToyWorld(embodiment=ARM, horizon=2)
    result = run_episode(world, policy, 1, guard=RangeGuard(ARM.action))
    assert result.outcome == "timeout" and len(world.actions) == 2

    seen = world.reset(2)
    prompt = policy.model.prompt(policy.read([seen]))
    assert prompt.embeds.shape[1] > PUBLISHED[name][1]
    with served(policy) as address, RemotePolicy(address) as remote:
        np.testing.assert_array_equal(remote.act([seen])[0].actions, policy.act([seen])[0].actions)


def test_cameras_of_different_aspect_ratios_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = start_of(tmp_path / "start", "qwen2_vl")
    described = read_json(folder / "embodiment.json")
    wide, *_ = described["cameras"]
    write_json(folder / "embodiment.json", described | {"cameras": [wide, wide | {"name": "wrist", "width": 480}]})
    with pytest.raises(CheckpointError, match=r"\[\(476, 476\), \(476, 644\)\]; give all cameras one aspect ratio"):
        family_of(folder).check(folder)


def test_memory_is_planned_for_the_arms_own_frames(tmp_path: Path) -> None:
    model = family_of(start_of(tmp_path / "start", "qwen2_vl")).on_meta(tmp_path / "start")
    assert model.pixel_shape() == (1, 3, 476, 644)
    assert model.image_tokens == 391
