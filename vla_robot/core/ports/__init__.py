"""The ports: protocols between rooms. Any implementation can be used where its port is asked for.

Each port has a file, which may import core's types. No port is implemented here; `vla_robot.testing` checks
implementations.
"""

from vla_robot.core.ports.action_codec import ActionCodec
from vla_robot.core.ports.action_head import ActionHead
from vla_robot.core.ports.arm import Arm, Motors, Streamed
from vla_robot.core.ports.episode_source import EpisodeSource, MarksGaps
from vla_robot.core.ports.guard import ActionFilter, Guard
from vla_robot.core.ports.policy import AnswersQuestions, MeasuresChunkGap, Policy, PreparesAhead, ReadsHistory
from vla_robot.core.ports.robot import ReportsStatus, Robot, StoppableRobot
from vla_robot.core.ports.tasks import PlacedObject, SharedObject, TaskRunner, Workers
from vla_robot.core.ports.teleoperator import Kinematics, LeaderArm, SharesControl, Teleoperator
from vla_robot.core.ports.world import OutlinesObjects, ReportsStages, StepsWithoutFrames, VisibleWorld, World

__all__ = [
    "ActionCodec",
    "ActionFilter",
    "ActionHead",
    "AnswersQuestions",
    "Arm",
    "EpisodeSource",
    "Guard",
    "Kinematics",
    "LeaderArm",
    "MarksGaps",
    "MeasuresChunkGap",
    "Motors",
    "OutlinesObjects",
    "PlacedObject",
    "Policy",
    "PreparesAhead",
    "ReadsHistory",
    "ReportsStages",
    "ReportsStatus",
    "Robot",
    "SharedObject",
    "SharesControl",
    "StepsWithoutFrames",
    "StoppableRobot",
    "Streamed",
    "TaskRunner",
    "Teleoperator",
    "VisibleWorld",
    "Workers",
    "World",
]
