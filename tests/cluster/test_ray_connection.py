"""What --cluster names, and what is said when there is none or a node differs."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.cluster import ray_connection, versions
from vla_robot.cluster.ray_connection import ray_cluster, require_cluster_name
from vla_robot.core.errors import ContractError, MissingDependencyError, RecipeError, TransportError
from vla_robot.core.host import optional


@pytest.mark.parametrize("name", ["here", "ray://", "ray://host", "http://host:1", "host:6379", "ray://h:1/x", ""])
def test_another_word_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="say local, auto"):
        require_cluster_name(name)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(optional, "installed", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"vla_robot\[cluster\]"):
        require_cluster_name("local")
    assert main(["eval", "--env", "lift", "--policy", "hold", "--cluster", "local"]) == EXIT_USER_ERROR
    assert "vla_robot[cluster]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["auto", "ray://127.0.0.1:{port}"])
def test_no_cluster_at_the_address_is_told_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with (
        pytest.raises(TransportError, match=rf"nothing listens at 127\.0\.0\.1:{port}"),
        ray_cluster(name.format(port=port)),
    ):
        pass


def test_a_computer_that_is_too_busy_to_start_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray has it

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(TransportError, match="Ray did not start here"), ray_cluster("local"):
        pass


def _node(name: str, is_alive: bool = True) -> dict[str, object]:
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": is_alive}


class Cluster:
    """Ray with these nodes, of which some cannot run a task."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lists: list[dict[str, object]], broken: str = "") -> None:
        self.ray: Any = pytest.importorskip("ray")
        self._lists, self._broken = iter(lists), broken
        monkeypatch.setattr(ray_connection, "_asked", lambda ray, node: node)
        for name in ("init", "shutdown"):
            monkeypatch.setattr(self.ray, name, lambda *_, **__: None)
        monkeypatch.setattr(self.ray, "nodes", lambda: next(self._lists))
        monkeypatch.setattr(self.ray, "wait", lambda asked, **_: (asked, []))
        monkeypatch.setattr(self.ray, "get", self._get)

    def _get(self, node: str) -> object:
        if node == self._broken:
            raise self.ray.exceptions.TaskUnschedulableError("the node does not exist any more")
        return versions.present()


def test_a_node_that_dies_while_versions_are_compared_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    both, one = [_node("a"), _node("b")], [_node("a"), _node("b", is_alive=False)]
    Cluster(monkeypatch, both, one, broken="b")
    with ray_cluster("local"):
        pass
    Cluster(monkeypatch, both, both, broken="b")
    with pytest.raises(ContractError, match=r"host-b \(it cannot run a task"), ray_cluster("local"):
        pass


def test_sigterm_has_its_handler_after_ray_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [])
    monkeypatch.setattr(cluster.ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, lambda *_: None))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        with ray_cluster("local"):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_versions_that_differ_are_named() -> None:
    here = versions.present()
    assert versions.differences(here, here) == ""
    there = here | {"ray": "2.59.0", "Python": "3.11.9"}
    told = versions.differences(there, here)
    assert "ray 2.59.0 there and" in told and "Python 3.11.9 there and" in told and "vla_robot" not in told
    assert versions.differences({}, here).count("none there") == 3
