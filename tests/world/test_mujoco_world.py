"""Tests of MuJoCo scenes: the arm follows its actions, objects lie in their areas, and errors name what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.core.geometry import quat_from_matrix, quat_from_rotvec, rotate
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import Policy
from vla_robot.policy.scripted.experts import build_expert
from vla_robot.policy.scripted.simple import HoldPolicy, RandomPolicy
from vla_robot.recipe import find, read
from vla_robot.recipe.env import CameraRecipe, MujocoRecipe, PlacementRecipe, SuccessRecipe
from vla_robot.world.kinds import build_world
from vla_robot.world.real.kinematics.tool_ik import ToolIk
from vla_robot.world.sim.mujoco_world import MujocoWorld

HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
TABLETOP = dataclasses.replace(read(MujocoRecipe, "tabletop"), cameras=())
SCENE = (find("envs", "tabletop").parent / "tabletop.xml").read_text(encoding="utf-8")
HOME_RAD = [0.0, 0.628005, 1.652885, 0.0, 0.860703, 0.0]


def act(**values: float) -> Vector:
    names = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    return np.array([values.get(name, 1.0 if name == "gripper" else 0.0) for name in names])


@pytest.fixture(scope="module")
def world() -> Iterator[MujocoWorld]:
    with contextlib.closing(MujocoWorld(TABLETOP, privileged=True)) as built:
        yield built


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., MujocoRecipe]:
    """A function that returns the recipe of a scene in which texts are replaced."""

    def change(*replacements: tuple[str, str], **fields: object) -> MujocoRecipe:
        text = SCENE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "scene.xml").write_text(text, encoding="utf-8")
        return dataclasses.replace(TABLETOP, scene=tmp_path / "scene.xml", **fields)

    return change


def play(world: MujocoWorld, policy: Policy, seed: int) -> bool:
    policy.reset(seed)
    observation = world.reset(seed)
    while True:
        result = world.step(policy.act([observation])[0].actions[0])
        observation = result.observation
        if result.terminated or result.truncated:
            return result.terminated


def repeat(world: MujocoWorld, action: Vector, steps: int) -> Observation:
    return [world.step(action).observation for _ in range(steps)][-1]


def tool_quat(observation: Observation) -> Vector:
    """Return the orientation of the tool in the base frame, (4,)."""
    return quat_from_rotvec(observation.state[3:6])


def test_the_scripted_expert_lifts_the_cube_in_every_one_of_twenty_episodes(world: MujocoWorld) -> None:
    assert all(play(world, build_expert("lift", world.embodiment.action), seed) for seed in range(20))


@pytest.mark.parametrize("policy", [HoldPolicy, RandomPolicy])
def test_hold_and_random_policies_do_not_lift_the_cube(world: MujocoWorld, policy: type) -> None:
    assert not any(play(world, policy(world.embodiment.action), seed) for seed in range(3))


def test_success_must_hold_before_the_episode_ends(world: MujocoWorld) -> None:
    expert = build_expert("lift", world.embodiment.action)
    observation, successes = world.reset(0), []
    while not successes or not successes[-1][1]:
        result = world.step(expert.act([observation])[0].actions[0])
        observation = result.observation
        successes.append((result.success, result.terminated))
    assert successes[-4:] == [(False, False), (True, False), (True, False), (True, True)]


@pytest.mark.parametrize(("axis", "dim"), [(0, "dx"), (1, "dy"), (2, "dz")])
def test_a_translation_goes_along_its_axis_and_does_not_tilt_the_tool(world: MujocoWorld, axis: int, dim: str) -> None:
    start = world.reset(0)
    end = repeat(world, act(**{dim: 0.02}), 6)
    moved = end.state[:3] - start.state[:3]
    assert 0.04 < moved[axis] < 0.12
    assert np.abs(np.delete(moved, axis)).max() < 0.005
    assert abs(tool_quat(end) @ tool_quat(start)) > np.cos(0.02 / 2)


@pytest.mark.parametrize(("axis", "dim"), [(0, "droll"), (1, "dpitch"), (2, "dyaw")])
def test_a_rotation_turns_about_its_axis_by_what_was_asked(world: MujocoWorld, axis: int, dim: str) -> None:
    start = world.reset(0)
    repeat(world, act(**{dim: 0.1}), 4)
    end = repeat(world, HOLD, 5)
    turn = np.zeros(3)
    turn[axis] = 0.4
    assert abs(tool_quat(end) @ rotate(tool_quat(start), turn)) > np.cos(0.02 / 2)


def test_actions_of_zero_keep_the_pose(world: MujocoWorld) -> None:
    start = world.reset(0).state
    assert np.abs(repeat(world, HOLD, 20).state - start).max() < 1e-3


def test_the_gripper_closes_at_zero_opens_at_one_and_goes_half_way(world: MujocoWorld) -> None:
    world.reset(0)
    widths = [repeat(world, act(gripper=g), 8).state[-1] for g in (0.0, 1.0, 0.5)]
    np.testing.assert_allclose(widths, [0.0, 0.08, 0.04], atol=0.002)
    assert min(widths) >= 0


def test_the_target_does_not_move_on_while_the_tool_pushes_against_the_table(world: MujocoWorld) -> None:
    world.reset(0)
    low = repeat(world, act(dz=-0.05), 20).state[2]
    assert low > 0
    assert repeat(world, act(dz=0.05), 2).state[2] > low + 0.02


def test_an_arm_that_is_sent_out_of_reach_stops_at_its_end(world: MujocoWorld) -> None:
    world.reset(0)
    far = repeat(world, act(dx=0.05), 30)
    farther = repeat(world, act(dx=0.05), 10)
    assert np.isfinite(farther.state).all()
    assert np.abs(farther.state[:3] - far.state[:3]).max() < 0.05
    assert np.linalg.norm(farther.state[:3]) < 1.0


def test_state_and_actions_are_in_the_base_frame(changed: Callable[..., MujocoRecipe]) -> None:
    recipe = changed(('<body name="base" ', '<body name="base" pos="-0.3 0.2 0.05" euler="0 0 70" '))
    straight, askew = (MujocoWorld(r, privileged=True) for r in (TABLETOP, recipe))
    for world in (straight, askew):
        world.reset(0)
    ours, theirs = (repeat(w, act(dx=0.03, dy=0.02, dyaw=0.1), 4) for w in (straight, askew))
    np.testing.assert_allclose(ours.state, theirs.state, atol=1e-3)
    there = theirs.privileged["cube_pos"]
    np.testing.assert_allclose(np.hypot(*there[:2]), np.hypot(*(askew._data.body("cube").xpos[:2] - [-0.3, 0.2])))


def test_objects_lie_at_rest_within_their_area(world: MujocoWorld) -> None:
    (area,) = TABLETOP.placements
    places = np.array([world.reset(seed).privileged["cube_pos"] for seed in range(40)])
    assert (places[:, :2].min(axis=0) >= [area.x[0] - 1e-3, area.y[0] - 1e-3]).all()
    assert (places[:, :2].max(axis=0) <= [area.x[1] + 1e-3, area.y[1] + 1e-3]).all()
    assert np.ptp(places[:, 0]) > 0.8 * (area.x[1] - area.x[0])
    np.testing.assert_allclose(places[:, 2], 0.021, atol=1e-3)


SECOND_CUBE = (
    "</worldbody>",
    '<body name="box" pos="0.3 0.2 0.021"><freejoint/><geom type="box" size=".021 .021 .021"/></body></worldbody>',
)
HOME_OF_TWO = ('0.45 0 0.021 1 0 0 0"', '0.45 0 0.021 1 0 0 0  0.3 0.2 0.021 1 0 0 0"')


def test_objects_do_not_overlap(changed: Callable[..., MujocoRecipe]) -> None:
    areas = tuple(PlacementRecipe(body, (0.40, 0.48), (-0.04, 0.04)) for body in ("cube", "box"))
    world = MujocoWorld(changed(SECOND_CUBE, HOME_OF_TWO, placements=areas), privileged=True)
    for seed in range(30):
        truth = world.reset(seed).privileged
        assert np.linalg.norm((truth["cube_pos"] - truth["box_pos"])[:2]) > 0.042


def test_an_area_that_is_too_small_for_its_objects_is_named(changed: Callable[..., MujocoRecipe]) -> None:
    areas = tuple(PlacementRecipe(body, (0.40, 0.41), (0.0, 0.01)) for body in ("cube", "box"))
    with pytest.raises(WorldError, match=r"no free place for 'box' in x 0\.4 to 0\.41 m.*Make its area .* larger"):
        MujocoWorld(changed(SECOND_CUBE, HOME_OF_TWO, placements=areas))


def test_a_test_of_two_objects_sees_both(changed: Callable[..., MujocoRecipe]) -> None:
    home = ('0.45 0 0.021 1 0 0 0"', '0.45 0 0.021 1 0 0 0  0.45 0 0.063 1 0 0 0"')
    success = SuccessRecipe("on_top", "box", "cube", 0.02)
    stacked = MujocoWorld(changed(SECOND_CUBE, home, placements=(), success=success))
    apart = MujocoWorld(changed(SECOND_CUBE, HOME_OF_TWO, placements=(), success=success))
    assert stacked.step(HOLD).success
    assert not apart.step(HOLD).success


def test_the_error_for_a_missing_scene_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"scene '.*nowhere\.xml' does not exist\. Paths are relative"):
        build_world(dataclasses.replace(TABLETOP, scene=tmp_path / "nowhere.xml"))


def test_a_scene_that_is_not_mjcf_is_a_recipe_error(changed: Callable[..., MujocoRecipe]) -> None:
    with pytest.raises(RecipeError, match=r"is not valid MJCF: .*hinng"):
        build_world(changed(('type="hinge"', 'type="hinng"')))


def test_everything_that_a_scene_lacks_is_named_at_once(changed: Callable[..., MujocoRecipe]) -> None:
    recipe = changed(
        ('site name="tool"', 'site name="tooll"'),
        ('key name="home"', 'key name="start"'),
        cameras=(CameraRecipe("wrist", source="wrst"),),
        success=SuccessRecipe("near", "cube", "tray"),
        placements=(PlacementRecipe("hand", (0, 1), (0, 1)),),
        rate_hz=30.0,
    )
    with pytest.raises(RecipeError) as caught:
        build_world(recipe)
    message = str(caught.value)
    for part in (
        "unknown site 'tool'; did you mean 'tooll'?",
        "unknown keyframe 'home'. Available: start.",
        "unknown camera 'wrst'; did you mean 'wrist'?",
        "unknown body 'tray'",
        "unknown body with a free joint 'hand'. Available: cube.",
        "rate_hz 30 is not a whole number of the scene's physics steps of 0.005 s.",
    ):
        assert part in message


offset = st.floats(-0.5, 0.5, width=32)


@settings(max_examples=40)
@given(st.tuples(*[offset] * 6))
def test_inverse_kinematics_undoes_kinematics(offsets: tuple[float, ...]) -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    site, joints = model.site("tool").id, list(range(6))
    there, here = mujoco.MjData(model), mujoco.MjData(model)
    here.qpos[:6] = HOME_RAD
    there.qpos[:6] = np.array(HOME_RAD) + np.array(offsets)
    mujoco.mj_kinematics(model, there)
    position, quat = there.site_xpos[site].copy(), quat_from_matrix(there.site_xmat[site])
    ik = ToolIk(model, site, joints)
    for _ in range(4):  # control steps
        here.qpos[:6] = ik.solve(here.qpos, position, quat)
    mujoco.mj_kinematics(model, here)
    np.testing.assert_allclose(here.site_xpos[site], position, atol=1e-3)
    assert abs(quat_from_matrix(here.site_xmat[site]) @ quat) > 1 - 1e-4


@pytest.mark.sim
def test_both_cameras_show_the_cube() -> None:
    with contextlib.closing(build_world(read(MujocoRecipe, "tabletop"))) as world:
        images = world.reset(0).images
    assert set(images) == {"front", "wrist"}
    for image in images.values():
        red = (image[..., 0] > 100) & (image[..., 1] < 60)
        assert 0.005 < red.mean() < 0.2


@pytest.mark.sim
def test_shadows_change_the_picture() -> None:
    recipe = read(MujocoRecipe, "tabletop")
    plain, shaded = (build_world(dataclasses.replace(recipe, shadows=s)).reset(0).images["front"] for s in (0, 1))
    assert (plain != shaded).any(axis=2).mean() > 0.02


@pytest.mark.sim
def test_a_frame_needs_no_display_even_when_mujoco_was_imported_first_and_prints_no_errors() -> None:
    script = (
        "import mujoco\n"
        "from vla_robot.recipe import read\n"
        "from vla_robot.recipe.env import MujocoRecipe\n"
        "from vla_robot.world.kinds import build_world\n"
        "world = build_world(read(MujocoRecipe, 'tabletop'))\n"
        "print(world.reset(0).images['front'].std() > 10)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_no_opengl_is_a_world_error_that_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    with pytest.raises(WorldError, match=r"OpenGL cannot start here .*eglQueryString.*apt-get install libegl1"):
        build_world(read(MujocoRecipe, "tabletop"))
