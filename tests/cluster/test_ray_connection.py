"""What --cluster names, and what is said when there is none or a node differs."""

from __future__ import annotations

import socket

import pytest

from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.cluster import versions
from vla_robot.cluster.ray_connection import ray_cluster, require_cluster_name
from vla_robot.core.errors import MissingDependencyError, RecipeError, TransportError
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


def test_versions_that_differ_are_named() -> None:
    here = versions.present()
    assert versions.differences(here, here) == ""
    there = here | {"ray": "2.59.0", "Python": "3.11.9"}
    told = versions.differences(there, here)
    assert "ray 2.59.0 there and" in told and "Python 3.11.9 there and" in told and "vla_robot" not in told
    assert versions.differences({}, here).count("none there") == 3
