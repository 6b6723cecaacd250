"""What the scripted expert of LIBERO's placing tasks is told, and what it does with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_robot.core.embodiment import GRIPPER_CLOSED, GRIPPER_OPEN
from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import Observation
from vla_robot.policy.scripted.experts import build_expert
from vla_robot.testing import TOOL_AXES, toy_embodiment, toy_observation
from vla_robot.world.sim.libero.goal import Placing, bounds_of, freest_rim, placings_of, shapes_of

mujoco: Any = pytest.importorskip("mujoco")

SCENE = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 0.1"/>
    <body name="can" pos="0.1 0.2 0.3" euler="0 0 90">
      <geom type="box" size="0.02 0.01 0.05"/>
      <geom type="box" size="0.2 0.2 0.2" contype="0" conaffinity="0"/>
      <body pos="0.1 0 0"><geom type="sphere" size="0.01"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def environment(*goals: list[str]) -> Any:
    return SimpleNamespace(
        parsed_problem={"goal_state": list(goals)},
        object_sites_dict={
            "basket_1_contain_region": SimpleNamespace(parent_name="basket_1"),
            "stove_1_cook_region": SimpleNamespace(parent_name="stove_1"),
        },
        objects_dict=dict.fromkeys(("soup_1", "basket_1", "plate_1")),
    )


IN_BASKET = ("in", "soup_1", "basket_1_contain_region")
ON_PLATE = ("On", "soup_1", "plate_1")
ON_STOVE = ("on", "soup_1", "stove_1_cook_region")


@pytest.mark.parametrize(
    ("goals", "placings"),
    [
        ([IN_BASKET], (Placing(IN_BASKET, "soup_1", place="basket_1"),)),
        ([ON_STOVE], (Placing(ON_STOVE, "soup_1", region="stove_1_cook_region"),)),
        (
            [ON_PLATE, IN_BASKET],
            (Placing(ON_PLATE, "soup_1", place="plate_1"), Placing(IN_BASKET, "soup_1", place="basket_1")),
        ),
        ([("open", "cabinet_1_top")], ()),
        ([ON_PLATE, ("turnon", "stove_1")], ()),
        ([("on", "soup_1", "table")], ()),
    ],
)
def test_the_goals_are_placings_if_each_brings_a_movable_object_somewhere(
    goals: list[tuple[str, ...]], placings: tuple[Placing, ...]
) -> None:
    assert placings_of(environment(*map(list, goals))) == placings


def test_the_box_of_an_object_holds_its_collision_shapes_alone() -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    low, high = bounds_of(model, data, shapes_of(model, model.body("can").id))
    np.testing.assert_allclose(low, [0.09, 0.18, 0.25], atol=1e-6)  # turned by 90 degrees
    np.testing.assert_allclose(high, [0.11, 0.31, 0.35], atol=1e-6)


def rim_of_bowl(wall: str) -> np.ndarray:
    """Return the offset of the rim's point of a 10 cm wide, 5 cm high box beside a wall."""
    bowl = '<body name="bowl" pos="0.5 0 0.2"><geom type="box" size="0.05 0.05 0.025"/></body>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bowl}{wall}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return freest_rim(model, data, shapes_of(model, model.body("bowl").id))


def test_a_rim_is_held_at_y_where_there_is_room() -> None:
    np.testing.assert_allclose(rim_of_bowl(""), [0, 0.05, 0.025], atol=1e-9)
    far = '<geom type="box" size="0.2 0.01 0.2" pos="0.5 0.11 0.2"/>'
    np.testing.assert_allclose(rim_of_bowl(far), [0, 0.05, 0.025], atol=1e-9)


@pytest.mark.parametrize("yaw", [-25, 25])
def test_a_rim_is_not_held_where_a_wall_is_near(yaw: int) -> None:
    # A wall across the +y side, open towards one end: the front of LIBERO's drawer stands so beside the bowl in it.
    wall = f'<geom type="box" size="0.1 0.01 0.1" pos="{0.5 + np.sign(yaw) * 0.08} 0.08 0.2" euler="0 0 {yaw}"/>'
    point = rim_of_bowl(wall)
    assert np.sign(point[0]) == -np.sign(yaw)
    assert np.hypot(*point[:2]) == pytest.approx(0.05)


def test_shapes_that_touch_nothing_take_no_room() -> None:
    ghost = '<geom type="box" size="0.2 0.01 0.2" pos="0.5 0.07 0.2" group="1" contype="0" conaffinity="0"/>'
    np.testing.assert_allclose(rim_of_bowl(ghost), [0, 0.05, 0.025], atol=1e-9)


CAN = {"target_low": np.array([0.58, -0.12, 0.0]), "target_high": np.array([0.62, -0.08, 0.1])}
BOWL = {
    "target_low": np.array([0.55, -0.15, 0.0]),
    "target_high": np.array([0.65, -0.05, 0.05]),
    "target_rim": np.array([0.6, -0.05, 0.05]),
}
PLACE = {"place_low": np.array([0.55, 0.15, 0.0]), "place_high": np.array([0.65, 0.25, 0.01])}
DOWN = np.array([np.pi, np.pi, 0.0]) / np.sqrt(2)
"""Rotation vector of a tool that points down with its fingers apart along y."""

EXPERT = build_expert("place", toy_embodiment(axes=TOOL_AXES).action)


def told_observation(truth: Mapping[str, np.ndarray]) -> Observation:
    observation = toy_observation(toy_embodiment(axes=TOOL_AXES))
    return dataclasses.replace(observation, instruction="", privileged=truth)


def decided(
    tool: list[float], width: float = 0.08, speed: float = 0.0, target: Mapping[str, np.ndarray] = CAN
) -> tuple[np.ndarray, float]:
    """Return the motion of the tool along x, y and z as signs, and the gripper."""
    told = {
        "eef_pos": np.array(tool),
        "eef_rot": DOWN,
        "gripper_width": np.array([width]),
        "finger_speed": np.array([speed]),
    }
    action = EXPERT.act([told_observation({**told, **PLACE, **target})])[0].actions[0]
    return np.sign(np.round(action[:3], 3)), float(action[-1])


@pytest.mark.parametrize(
    ("what", "signs", "gripper"),
    [
        (decided([0.4, 0.0, 0.5]), (1, -1, -1), GRIPPER_OPEN),  # high above: straight to the funnel over the can
        (decided([0.4, -0.1, 0.32]), (1, 0, 0), GRIPPER_OPEN),  # at the height of the funnel
        (decided([0.4, -0.1, 0.05]), (0, 0, 1), GRIPPER_OPEN),  # low beside it: up first
        (decided([0.6, -0.1, 0.12]), (0, 0, -1), GRIPPER_OPEN),
        (decided([0.6, -0.1, 0.07]), (0, 0, 0), GRIPPER_CLOSED),
        (decided([0.6, -0.1, 0.07], width=0.06, speed=0.1), (0, 0, 0), GRIPPER_CLOSED),  # the fingers still close
        (decided([0.6, -0.1, 0.07], width=0.04), (0, 0, 1), GRIPPER_CLOSED),  # held: up, and not sideways yet
        (decided([0.6, -0.054, 0.036], width=0.045, target=BOWL), (0, 0, 0), GRIPPER_CLOSED),  # a bowl: by its rim
        (decided([0.4, -0.054, 0.5], target=BOWL), (1, 0, -1), GRIPPER_CLOSED),  # fingers wide open would meet a wall
        (decided([0.4, -0.054, 0.5], width=0.04, target=BOWL), (1, 0, -1), GRIPPER_OPEN),
    ],
)
def test_each_state_has_its_motion(what: tuple[np.ndarray, float], signs: tuple[int, int, int], gripper: float) -> None:
    assert (tuple(what[0]), what[1]) == (signs, gripper)


@pytest.mark.parametrize("degrees", [-30, 30])
def test_fingers_are_apart_across_the_rim(degrees: int) -> None:
    angle = np.radians(degrees)
    beside = {"target_rim": np.array([0.6 + 0.05 * np.sin(angle), -0.1 + 0.05 * np.cos(angle), 0.05])}
    told = {"eef_pos": np.zeros(3), "eef_rot": DOWN, "gripper_width": np.array([0.08]), "finger_speed": np.zeros(1)}
    turn = EXPERT.act([told_observation({**told, **PLACE, **BOWL, **beside})])[0].actions[0][3:6]
    np.testing.assert_allclose(turn, [0, 0, np.clip(-angle, -0.3, 0.3)], atol=1e-9)


def test_a_held_object_is_carried_high_and_let_go_over_its_place() -> None:
    high = {name: corner + [0, 0, 0.27] for name, corner in CAN.items()}
    motion, gripper = decided([0.6, -0.1, 0.34], width=0.04, target=high)
    assert motion[1] == 1 and gripper == GRIPPER_CLOSED
    over = {name: corner + [0, 0.3, 0.03] for name, corner in CAN.items()}
    assert decided([0.6, 0.2, 0.1], width=0.04, target=over)[1] == GRIPPER_OPEN


def test_another_task_than_a_placing_is_refused() -> None:
    with pytest.raises(PolicyError, match="the task of this world is another"):
        EXPERT.act([told_observation({"eef_pos": np.zeros(3)})])
