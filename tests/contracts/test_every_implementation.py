"""No class of the package implements a port without being asked for its contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from vla_robot.core import ports

from ..cluster import test_runners
from . import (
    test_action_codec_contract,
    test_action_head_contract,
    test_arm_contract,
    test_episode_source_contract,
    test_guard_contract,
    test_log_contract,
    test_motors_contract,
    test_policy_contract,
    test_teleoperator_contract,
    test_world_contract,
)
from .implementations import built_as, class_definitions, implementations
from .kinds import as_named, classes_of

WORLDS = ("TOYS or KINDS of test_world_contract.py", (test_world_contract.TOYS, test_world_contract.KINDS))
TELEOPERATORS = ("KINDS of test_teleoperator_contract.py", (test_teleoperator_contract.KINDS,))
ARMS = ("ARMS of test_arm_contract.py", (test_arm_contract.ARMS,))
ROBOTS = ("ROBOTS of test_arm_contract.py", (test_arm_contract.ROBOTS,))
SOURCES = (
    "WRITERS of test_episode_source_contract.py",
    (test_episode_source_contract.WRITERS, test_episode_source_contract.IN_MEMORY),
)
RUNNERS = ("RUNNERS of tests/cluster/test_runners.py", (test_runners.RUNNERS,))
SUITES: dict[str, tuple[str, tuple[Iterable[str], ...]]] = {
    "ActionCodec": ("CODECS of test_action_codec_contract.py", (test_action_codec_contract.CODECS,)),
    "ActionFilter": ("FILTERS of test_guard_contract.py", (test_guard_contract.FILTERS,)),
    "ActionHead": ("HEADS of test_action_head_contract.py", (test_action_head_contract.HEADS,)),
    "AnswersQuestions": ("KINDS of test_policy_contract.py", (test_policy_contract.KINDS,)),
    "Arm": ARMS,
    "EpisodeSource": SOURCES,
    "Guard": ("GUARDS of test_guard_contract.py", (test_guard_contract.GUARDS,)),
    "Kinematics": ("MODELS of test_motors_contract.py", (test_motors_contract.MODELS,)),
    "LeaderArm": ("LEADERS of test_motors_contract.py", (test_motors_contract.LEADERS, test_motors_contract.MOTORS)),
    "Log": ("LOGS of test_log_contract.py", (test_log_contract.LOGS,)),
    "MarksGaps": SOURCES,
    "MeasuresChunkGap": ("KINDS of test_policy_contract.py", (test_policy_contract.KINDS,)),
    "Motors": ("MOTORS of test_motors_contract.py", (test_motors_contract.MOTORS,)),
    "OutlinesObjects": WORLDS,
    "Policy": ("KINDS of test_policy_contract.py", (test_policy_contract.KINDS,)),
    "PreparesAhead": ("KINDS of test_policy_contract.py", (test_policy_contract.KINDS,)),
    "ReadsHistory": ("KINDS of test_policy_contract.py", (test_policy_contract.KINDS,)),
    "ReportsStages": (f"{WORLDS[0]}, or {ARMS[0]}", (*WORLDS[1], *ARMS[1], *ROBOTS[1])),
    "ReportsStatus": ROBOTS,
    "Robot": ROBOTS,
    "PlacedObject": RUNNERS,
    "SharedObject": RUNNERS,
    "SharesControl": TELEOPERATORS,
    "Sticks": TELEOPERATORS,
    "StoppableRobot": ROBOTS,
    "StepsWithoutFrames": WORLDS,
    "Streamed": ARMS,
    "TaskRunner": RUNNERS,
    "TeleopDevice": TELEOPERATORS,
    "Teleoperator": TELEOPERATORS,
    "VisibleWorld": WORLDS,
    "Workers": RUNNERS,
    "World": WORLDS,
}
"""Port -> where a new implementation joins, and the tables of its suite."""

NOT_ASKED: dict[str, dict[str, str]] = {
    "AnswersQuestions": {"Request": "a request to a policy's server, which hands over the answer"},
    "ReadsHistory": {
        "WrappedPolicy": "the base of policies that wrap another, each of which is asked",
        "SharedPolicy": "what gives each world a PolicySeat, which is asked",
        "SharedModel": "the same for every seat of an evaluation",
    },
    "ReportsStages": {"WrappedArm": "the base of arms that wrap another, each of which is asked"},
    "ReportsStatus": {
        "BridgeServer": "the status that RemoteRobot fetches",
        "Batcher": "the status of a server of policies, which is no robot",
        "ReplicatedBatcher": "the same with several processes",
        "_Seat": "one of its processes",
        "RemotePolicy": "a server's status, fetched",
        "_Link": "a bridge's status in the thread of its view",
    },
}
"""Port -> class that has its methods and is something else, with the reason."""


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in (root / "vla_robot").rglob("*.py")}


@pytest.fixture(scope="module")
def found(sources: dict[str, str]) -> dict[str, dict[str, str]]:
    """Port -> class -> its file."""
    return implementations(sources, sources)


def forgotten(port: str, found: Mapping[str, str]) -> list[str]:
    """What is to be done for each class that no suite asks."""
    where, tables = SUITES[port]
    asked = classes_of(*tables) | set(NOT_ASKED.get(port, {}))
    return [
        f"{name} in {file} implements {port}, and no suite asks it: add a line to {where} in tests/contracts"
        for name, file in found.items()
        if name not in asked
    ]


def test_every_port_has_its_suite() -> None:
    assert set(ports.__all__) <= set(SUITES), "a port of core/ports has no suite: add it to SUITES"


@pytest.mark.parametrize("port", SUITES)
def test_every_implementation_is_asked_for_its_contract(port: str, found: dict[str, dict[str, str]]) -> None:
    assert found[port], f"nothing implements {port}: the search is broken, or the port is dead"
    assert forgotten(port, found[port]) == []
    assert set(NOT_ASKED.get(port, {})) <= set(found[port]), "a class in NOT_ASKED is gone: take it out"


def test_what_is_built_as_a_port_is_found(sources: dict[str, str], found: dict[str, dict[str, str]]) -> None:
    """Lest a class whose signatures the search does not understand is asked for nothing."""
    classes = {name for text in sources.values() for name in class_definitions(text)}
    built = {(port, name) for port, name in built_as(sources, set(SUITES)) if name in classes}
    assert len(built) > 10
    assert {(port, name) for port, name in built if name not in found[port]} == set()


PORTS = """
class Valve(Protocol):
    @property
    def size(self) -> int: ...
    def turn(self, angle: float) -> Vector: ...
class Sluice(Valve, Protocol):
    def close(self) -> None: ...
"""
FAKES = """
class Method:
    size = 3
    def turn(self, angle: float, slowly: bool = False) -> Vector: ...
class Attribute:
    def __init__(self): self.size = 3
    def turn(self, angle) : ...
class Field:
    size: int
    turn: Callable[[float], Vector]
class Inherits(Field):
    def close(self) -> None: ...
class Abstract(ABC):
    size = 3
    def turn(self, angle: float) -> Vector: ...
class LacksOne:
    size = 3
class CallsItOtherwise(Method):
    def turn(self, radians: float) -> Vector: ...
class WantsMore(Method):
    def turn(self, angle: float, slowly: bool) -> Vector: ...
class GivesOther(Method):
    def turn(self, angle: float) -> str: ...
class HasNoMethod(Method):
    turn: float
"""


def test_a_fake_is_found_by_its_members_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = implementations({"fakes.py": FAKES}, {"ports.py": PORTS})
    assert fakes == {
        "Valve": dict.fromkeys(("Method", "Attribute", "Field", "Inherits"), "fakes.py"),
        "Sluice": {"Inherits": "fakes.py"},
    }
    monkeypatch.setitem(
        SUITES, "Valve", ("VALVES of test_valve.py", (["Method", "Field over a toy"], {"Attribute": 1}))
    )
    assert forgotten("Valve", fakes["Valve"]) == [
        "Inherits in fakes.py implements Valve, and no suite asks it: add a line to VALVES of test_valve.py in "
        "tests/contracts"
    ]
    monkeypatch.setitem(NOT_ASKED, "Valve", {"Inherits": "it leaks"})
    assert forgotten("Valve", fakes["Valve"]) == []


def test_a_line_of_a_suite_builds_what_it_names() -> None:
    """Lest a name in a table stands for another class."""
    over = test_teleoperator_contract.KINDS["TerminalTeleop KeyMotion"]()
    assert as_named("TerminalTeleop KeyMotion", over) is over
    with pytest.raises(AssertionError, match="builds a TerminalTeleop"):
        as_named("KeyMotion", over)
    with pytest.raises(AssertionError, match=r"builds nothing of \['Gamepad'\]"):
        as_named("TerminalTeleop Gamepad", over)
    over.close()
