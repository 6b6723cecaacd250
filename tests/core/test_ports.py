"""Every port stands in core/ports, one file a port; what one room keeps to itself is listed here, with its reason."""

from __future__ import annotations

from pathlib import Path

from benchmarks.source_structure import protocols
from vla_robot.core import ports

PRIVATE = {
    "Clock": "core/clock.py: beside its implementations, in core too",
    "Frames": "core/episode.py: a part of the noun Episode",
    "Storage": "data: folders that an RLDS dataset may lie in",
    "Drive": "evaluate: how its runner calls the two loops",
    "Writer": "record: mentions Demonstration, a noun of data",
    "Controllable": "record: a world or a robot in a person's hands, both its own",
    "Log": "serve: mentions EpisodeStep, a noun of record",
    "Socket": "serve: the server's end, for tests without a network",
    "Pace": "serve: the ticker, for tests without time",
    "Words": "serve: families of openpi's clients",
    "TeleopDevice": "teleop: a device behind the terminal",
    "Sticks": "teleop: a device that springs back",
    "Bound": "world: limits of a real arm's joints together, all its own",
    "Slots": "policy: mentions Tensor, which core does not import",
    "Inputs": "policy: the tensors of a block, which core does not import",
    "Reasoner": "policy: the same",
    "VLAConfig": "policy: what its models' configurations have in common",
    "Family": "policy: mentions its models",
    "Order": "data: which sample comes when, both its own",
    "Closable": "testing: what a check releases in the end",
    "Tracker": "train: who is told a run's numbers",
}


def test_every_port_stands_in_one_place(repository: Path) -> None:
    package = repository / "vla_robot"
    found = {
        name: str(path.relative_to(repository))
        for path in package.rglob("*.py")
        if path.parent != package / "core" / "ports"
        for name in protocols(path.read_text(encoding="utf-8"))
    }
    assert {name: file for name, file in found.items() if name not in PRIVATE} == {}
    assert set(PRIVATE) <= set(found), "a name in PRIVATE is gone: take it out of this test"


def test_the_package_names_all_of_its_ports(repository: Path) -> None:
    files = (repository / "vla_robot" / "core" / "ports").glob("*.py")
    assert sorted(name for file in files for name in protocols(file.read_text("utf-8"))) == sorted(ports.__all__)


def test_a_protocol_is_recognised_with_and_without_parameters() -> None:
    source = "class A(Protocol): ...\nclass B(World, typing.Protocol): ...\nclass C[T](Protocol[T]): ...\nclass D: ..."
    assert protocols(source) == ["A", "B", "C"]
