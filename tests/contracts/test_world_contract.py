"""What every world promises, asked of every kind of world. A new kind joins by one line in KINDS, a wrapper in TOYS."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from libero_environment import needs_libero, needs_metaworld

from vla_robot.core.clock import MonotonicClock
from vla_robot.core.errors import ContractError, VlaError
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import StepsWithoutFrames, VisibleWorld, World
from vla_robot.evaluate.eval_wrappers import InstructedWorld, ReplaceableWorld
from vla_robot.recipe import dump, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.synchronous_env import SynchronousEnv
from vla_robot.serve.world.client import RemoteWorld
from vla_robot.serve.world.server import WorldServer
from vla_robot.serve.world.world_process import spawn_world
from vla_robot.testing import ToyWorld, check_world, toy_embodiment
from vla_robot.world.kinds import WORLDS, build_world, environment_of
from vla_robot.world.sim.paced_cameras import PacedCameras

from .kinds import Get, as_named, class_names

HORIZON = 6
HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
MOVES = np.random.default_rng(0).uniform(-0.8, 0.8, (HORIZON, 7)) * [*[0.05] * 3, *[0.5] * 3, 0.0] + HOLD


def fitting(move: Vector, world: World) -> Vector:
    """Return a move of seven numbers for a world that may take fewer, within its limits."""
    space = world.embodiment.action
    return _shorter(move, world).clip(space.low, space.high)


def _shorter(move: Vector, world: World) -> Vector:
    """Return the numbers of a move that the world takes; the gripper is last."""
    return np.append(move[: len(world.embodiment.action) - 1], move[-1])


Build = Callable[[EnvRecipe, bool, Path], contextlib.AbstractContextManager[World]]


def here(recipe: EnvRecipe, privileged: bool, folder: Path) -> contextlib.AbstractContextManager[World]:
    return contextlib.closing(build_world(recipe, privileged))


def in_a_process(recipe: EnvRecipe, privileged: bool, folder: Path) -> contextlib.AbstractContextManager[World]:
    path = folder / "world.toml"
    path.write_text(dump(recipe), encoding="utf-8")
    return spawn_world(path, privileged)


def shipped(name: str) -> EnvRecipe:
    return dataclasses.replace(read(EnvRecipe, name), horizon=HORIZON)


def blind(name: str) -> EnvRecipe:
    return dataclasses.replace(shipped(name), cameras=())


def libero() -> EnvRecipe:
    """Return a task of LIBERO with cheap frames."""
    recipe = find_env("libero_object/0").recipe
    cameras = tuple(dataclasses.replace(camera, height=32, width=32) for camera in recipe.cameras)
    return dataclasses.replace(recipe, horizon=HORIZON, cameras=cameras, shadows=False)


def metaworld() -> EnvRecipe:
    """Return a task of Meta-World with cheap frames."""
    recipe = find_env("metaworld_mt50/reach").recipe
    cameras = tuple(dataclasses.replace(camera, height=32, width=32) for camera in recipe.cameras)
    return dataclasses.replace(recipe, horizon=HORIZON, cameras=cameras, shadows=False)


KINDS: dict[str, tuple[EnvRecipe, Build]] = {
    "MujocoWorld without cameras": (blind("tabletop"), here),
    "MujocoWorld": (shipped("tabletop"), here),
    "RemoteWorld in a process": (shipped("tabletop"), in_a_process),
    "RobosuiteWorld": (shipped("lift"), here),
    "LiberoWorld in a process": (libero(), in_a_process),
    "MetaWorldWorld in a process": (metaworld(), in_a_process),
}
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "MujocoWorld without cameras": (),
    "LiberoWorld in a process": (pytest.mark.sim, pytest.mark.slow, needs_libero),
    "MetaWorldWorld in a process": (pytest.mark.sim, pytest.mark.slow, needs_metaworld),
}
PARAMETERS = [pytest.param(kind, marks=MARKS.get(kind, (pytest.mark.sim,)), id=kind) for kind in KINDS]


@pytest.fixture(scope="module", params=PARAMETERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def world(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    recipe, build = KINDS[kind]
    with build(recipe, False, tmp_path_factory.mktemp("world")) as built:
        yield built


def episode(world: World, seed: int, steps: int = 3) -> list[Observation]:
    """An episode of fixed moves."""
    return [world.reset(seed), *(world.step(fitting(move, world)).observation for move in MOVES[:steps])]


def content(observations: list[Observation]) -> list[bytes]:
    """Everything but the stamps."""
    return [
        o.state.tobytes() + b"".join(image.tobytes() for image in o.images.values()) + o.instruction.encode()
        for o in observations
    ]


@pytest.mark.parametrize("seed", [2**32, 2**40, 2**63 - 1])
def test_any_seed_of_63_bits_begins_an_episode_of_its_own(world: World, seed: int) -> None:
    there = content([world.reset(seed)])
    assert content([world.reset(seed)]) == there
    if world.embodiment.cameras:  # they show where the objects lie; the arm begins at home with every seed
        assert content([world.reset(seed & 0xFFFFFFFF)]) != there


def test_a_negative_seed_is_refused_in_a_sentence(world: World) -> None:
    with pytest.raises(ContractError, match=r"seed -1 is outside 0 .*Nothing moved"):
        world.reset(-1)


CLOCK = MonotonicClock()
TWO_CAMERAS = toy_embodiment(cameras=("front", "wrist"))
TOYS: dict[str, Callable[[Get], World]] = {
    "ToyWorld": lambda get: ToyWorld(),
    "InstructedWorld": lambda get: InstructedWorld(ToyWorld(), lambda task, seed: f"please {task}"),
    "ReplaceableWorld": lambda get: ReplaceableWorld(lambda: contextlib.closing(ToyWorld())),
    "PacedCameras": lambda get: PacedCameras(ToyWorld(embodiment=TWO_CAMERAS), {"wrist": 5.0}),
    "SynchronousEnv RemoteRobot": lambda get: SynchronousEnv(RemoteRobot(get("bridge_of")(WorldArm(ToyWorld())))),
    "RemoteWorld": lambda get: RemoteWorld(get("serve")(lambda socket: WorldServer(ToyWorld(), socket, CLOCK))),
}
"""Wrappers and clients of worlds, over toys."""


@pytest.mark.parametrize("toy", TOYS)
def test_every_wrapper_and_client_of_a_world_is_a_world(toy: str, request: pytest.FixtureRequest) -> None:
    check_world(lambda: as_named(toy, TOYS[toy](request.getfixturevalue)))


def test_a_seed_gives_the_same_bytes_whatever_ran_before(world: World) -> None:
    first = content(episode(world, seed=5))
    for seed in (1, 2, 3):
        episode(world, seed)
    assert content(episode(world, seed=5)) == first


def test_frames_that_are_left_out_change_nothing(world: World) -> None:
    shown = episode(world, seed=5, steps=5)
    assert isinstance(world, StepsWithoutFrames)
    world.reset(5)
    for move, expected in zip(MOVES[:5], shown[1:], strict=True):
        left_out = expected.step not in (3, 5)
        step = world.step_without_frames if left_out else world.step
        observation = step(fitting(move, world)).observation
        if left_out:
            assert observation.images == {}
            np.testing.assert_array_equal(observation.state, expected.state)
        else:
            assert content([observation]) == content([expected])
    last = world.step_without_frames(fitting(MOVES[5], world))
    assert last.truncated
    assert set(last.observation.images) == {camera.name for camera in world.embodiment.cameras}


def test_a_look_after_a_step_without_frames_shows_the_present(kind: str, tmp_path: Path) -> None:
    recipe, build = KINDS[kind]
    with build(recipe, False, tmp_path) as world:
        if not isinstance(world, VisibleWorld):
            pytest.skip("it cannot be observed between its steps")
        assert isinstance(world, StepsWithoutFrames)
        world.reset(5)
        world.step_without_frames(fitting(MOVES[0], world))
        before, after = world.look(), world.look()
        assert content([before]) == content([after])
        assert set(before.images) == {camera.name for camera in world.embodiment.cameras}


def test_two_seeds_begin_differently(kind: str, tmp_path: Path) -> None:
    recipe, build = KINDS[kind]
    with build(dataclasses.replace(recipe, cameras=()), True, tmp_path) as world:
        first, second = (world.reset(seed).privileged for seed in (1, 2))
    objects = [name for name in first if name.endswith("_pos") and not name.startswith("eef")]
    assert objects
    assert any(not np.array_equal(first[name], second[name]) for name in objects)


def test_the_truth_is_given_only_when_asked_for(world: World) -> None:
    assert all(o.privileged == {} for o in episode(world, seed=1))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (HOLD[:6], r"shape \(6,\)"),
        (HOLD[None], r"shape \(1, 7\)"),
        (HOLD * np.nan, "not finite"),
        (HOLD + np.inf, "not finite"),
        (HOLD + [0.2, 0, 0, 0, 0, 0, 0], r"dx is 0\.2 m, allowed is -0\.0[15] to 0\.0[15]"),
        (HOLD + [0, 0, 0, 0, 0, 0, 0.5], r"gripper is 1\.5 1, allowed is 0 to 1"),
    ],
    ids=["too short", "too many axes", "nan", "infinite", "too far", "gripper too far"],
)
def test_a_bad_action_is_refused_and_nothing_moves(world: World, action: np.ndarray, message: str) -> None:
    undisturbed = content(episode(world, seed=3))
    world.reset(3)
    with pytest.raises(ContractError, match=message):
        world.step(_shorter(action, world) if action.shape == HOLD.shape else action)
    assert content([world.step(fitting(move, world)).observation for move in MOVES[:3]]) == undisturbed[1:]


def test_the_tool_goes_where_it_is_told(world: World) -> None:
    start = world.reset(1).state
    up = fitting(HOLD + [0, 0, 0.03, 0, 0, 0, 0], world)
    end = [world.step(up).observation.state for _ in range(round(0.12 / up[2]))][-1]
    assert 0.02 < end[2] - start[2] < 0.15
    assert np.abs(end[:2] - start[:2]).max() < 0.02


def test_the_horizon_truncates_at_its_step_and_not_before(world: World) -> None:
    world.reset(1)
    assert [world.step(fitting(HOLD, world)).truncated for _ in range(HORIZON)] == [False] * (HORIZON - 1) + [True]


def test_nothing_is_achieved_by_doing_nothing(world: World) -> None:
    world.reset(1)
    results = [world.step(fitting(HOLD, world)) for _ in range(3)]
    assert not any(r.success or r.terminated for r in results)


def test_an_observation_does_not_change_afterwards(world: World) -> None:
    first = world.reset(1)
    kept = content([first])
    second = world.step(fitting(MOVES[0], world)).observation
    episode(world, seed=2)
    assert content([first]) == kept
    assert not np.shares_memory(first.state, second.state)
    assert not any(np.shares_memory(first.images[name], second.images[name]) for name in first.images)


def test_a_closed_world_says_so_and_may_be_closed_twice(kind: str, tmp_path: Path) -> None:
    recipe, build = KINDS[kind]
    with build(dataclasses.replace(recipe, cameras=()), False, tmp_path) as world:
        world.close()
        world.close()
        for call in (lambda: world.reset(0), lambda: world.step(fitting(HOLD, world))):
            with pytest.raises(VlaError, match="was closed"):
                call()


def _as_named(kind: str, world: World) -> World:
    """Return the world; the class of one in an environment of its own is known by its recipe, as its process does."""
    recipe, _ = KINDS[kind]
    if environment_of(recipe) is None:
        return as_named(kind, world)
    assert WORLDS[type(recipe)].endswith(f":{class_names(kind)[0]}") and isinstance(world, RemoteWorld)
    return world


def test_every_kind_keeps_the_contract(kind: str, world: World) -> None:
    """The last of its world, which it closes."""
    assert isinstance(world, VisibleWorld) == ("in a process" not in kind)
    check_world(lambda: _as_named(kind, world))
