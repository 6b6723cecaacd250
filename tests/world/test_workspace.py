"""Tests of the reach of an arm: it bounds the tool's distance in all poses, and a stretched pose comes close to it."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla_robot.core.errors import ContractError
from vla_robot.world.sim.workspace import reach_m

ARM = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="base" pos="3 0 0">
      <body name="rail" pos="0 0 0.1"> <joint type="slide" axis="1 0 0" range="-0.2 0.5"/> <geom size="0.01"/>
        <body name="upper" pos="0 0 0.3"> <joint axis="0 1 0" pos="0 0 -0.05" range="-3 3"/> <geom size="0.01"/>
          <body name="lower" pos="0 0 0.4"> <joint axis="0 1 0" range="-3 3"/> <geom size="0.01"/>
            <site name="tool" pos="0 0 0.15"/>
          </body>
        </body>
      </body>
    </body>
    <site name="elsewhere"/>
  </worldbody>
</mujoco>
"""


def test_the_reach_is_the_stretched_chain_with_its_rail_and_its_anchor_beside_the_joint() -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    reach = reach_m(model, model.body("base").id, model.site("tool").id)
    assert reach == pytest.approx(0.1 + 0.5 + 0.3 + 2 * 0.05 + 0.4 + 0.15)


def test_no_pose_of_the_joints_leads_further() -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    base, tool = model.body("base").id, model.site("tool").id
    furthest = 0.0
    for _ in range(2000):
        data.qpos[:] = rng.uniform(*model.jnt_range.T)
        mujoco.mj_kinematics(model, data)
        furthest = max(furthest, float(np.linalg.norm(data.site_xpos[tool] - data.xpos[base])))
    assert 0.7 * reach_m(model, base, tool) < furthest <= reach_m(model, base, tool)


def test_a_tool_that_hangs_on_something_else_is_refused() -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    with pytest.raises(ContractError, match="site 'elsewhere' is on no descendant of body 'base'"):
        reach_m(model, model.body("base").id, model.site("elsewhere").id)


def test_a_joint_without_a_limit_is_refused() -> None:
    model = mujoco.MjModel.from_xml_string(ARM.replace('range="-0.2 0.5"', 'name="rail"'))
    with pytest.raises(ContractError, match="joint 'rail' between base and tool has no limit"):
        reach_m(model, model.body("base").id, model.site("tool").id)
