"""Support for tests, yours and ours: small stand-ins for each port, and checks of your own implementations.

    from vla_robot.testing import ToyWorld, check_policy, check_world, toy_embodiment

    def test_my_world_keeps_the_contract() -> None:
        check_world(lambda: MyWorld("desk.toml"))

    def test_my_policy_keeps_the_contract() -> None:
        check_policy(MyPolicy, ToyWorld().embodiment)

A check calls a port as the loops do. It raises BrokenContractError, whose message quotes the broken sentence of the
contract, what was seen instead and what to do. Each check's module begins with its sentences.

It may import every room below cli; no room imports it. Nothing heavier than numpy is imported here.
"""

from vla_robot.testing.arms import ToyArm
from vla_robot.testing.check_arm import check_arm
from vla_robot.testing.check_episode_source import check_episode_source
from vla_robot.testing.check_policy import check_policy
from vla_robot.testing.check_robot import check_robot
from vla_robot.testing.check_teleoperator import check_teleoperator
from vla_robot.testing.check_world import check_world
from vla_robot.testing.contract import BrokenContractError, Contract, Sentence
from vla_robot.testing.embodiments import TOOL_AXES, chunk_for, toy_embodiment, toy_observation
from vla_robot.testing.episodes import ToySource
from vla_robot.testing.policies import FunctionPolicy, NoLimits
from vla_robot.testing.robots import ToyRobot
from vla_robot.testing.teleoperators import ScriptedTeleoperator, move, press
from vla_robot.testing.worlds import ToyWorld

__all__ = [
    "TOOL_AXES",
    "BrokenContractError",
    "Contract",
    "FunctionPolicy",
    "NoLimits",
    "ScriptedTeleoperator",
    "Sentence",
    "ToyArm",
    "ToyRobot",
    "ToySource",
    "ToyWorld",
    "check_arm",
    "check_episode_source",
    "check_policy",
    "check_robot",
    "check_teleoperator",
    "check_world",
    "chunk_for",
    "move",
    "press",
    "toy_embodiment",
    "toy_observation",
]
