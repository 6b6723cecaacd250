"""The ports: what one room asks of another. Whatever implements one can stand where it is asked for.

One file a port. It may import the nouns of core. Nothing here is implemented; `vla_robot.testing` checks who claims to.
"""

from vla_robot.core.ports.arm import Arm, Motors, Streamed
from vla_robot.core.ports.episode_source import EpisodeSource, MarksGaps
from vla_robot.core.ports.guard import ActionFilter, Guard
from vla_robot.core.ports.policy import Policy
from vla_robot.core.ports.robot import ReportsStatus, Robot, StoppableRobot
from vla_robot.core.ports.teleoperator import Kinematics, LeaderArm, SharesControl, Teleoperator
from vla_robot.core.ports.world import ReportsStages, VisibleWorld, World

__all__ = [
    "ActionFilter",
    "Arm",
    "EpisodeSource",
    "Guard",
    "Kinematics",
    "LeaderArm",
    "MarksGaps",
    "Motors",
    "Policy",
    "ReportsStages",
    "ReportsStatus",
    "Robot",
    "SharesControl",
    "StoppableRobot",
    "Streamed",
    "Teleoperator",
    "VisibleWorld",
    "World",
]
