"""Connects to a Ray cluster, and compares the versions of its nodes with ours before anything is sent there.

| --cluster | the cluster |
|---|---|
| local | one on this computer, made for this command; its ports listen on the loopback interface |
| auto | the one that this computer belongs to: `ray start` made it a node |
| ray://HOST:10001 | one that this computer does not belong to, by Ray's client port |
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_robot.cluster.ray_runner import RayRunner
from vla_robot.cluster.versions import differences, present
from vla_robot.core.errors import ContractError, RecipeError, TransportError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import available_cores

CLIENT = re.compile(r"ray://[^\s/]+:\d{1,5}")
_ADDRESS = re.compile(r"(?:ray://)?\[?([^\s/\[\]]+)\]?:(\d{1,5})")
_LISTENS_S = 10.0
PROBE_TIMEOUT_S = 300.0
"""Time limit of the comparison of versions [s]: a node starts a process of its own for it."""
TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps the token of a user's clusters."""
LOCAL_STORE_BYTES = 200 * 2**20
"""Size of the object store of a cluster of one command: tasks send plain numbers and short videos."""


def require_cluster_name(name: str) -> None:
    """Raise RecipeError unless it is a value of --cluster, and MissingDependencyError without the extra [cluster]."""
    if name not in ("local", "auto") and not CLIENT.fullmatch(name):
        raise RecipeError(f"--cluster {name}: say local, auto (this computer is a node) or ray://HOST:10001.")
    require("ray", "cluster", f"--cluster {name}")


@contextlib.contextmanager
def ray_cluster(name: str) -> Iterator[RayRunner]:
    """Connect to a cluster for a `with` block, and check its nodes.

    Raises:
        RecipeError: the name is none of the three forms.
        MissingDependencyError: Ray is not installed.
        TransportError: there is no cluster at that address.
        ContractError: a node has another version of Python, Ray or this package, or lacks it.
    """
    require_cluster_name(name)
    ray = _connect(name)
    try:
        _require_same_versions(ray)
        yield RayRunner(ray)
    finally:
        ray.shutdown()


def _connect(name: str) -> Any:
    if name != "local":
        _use_token()
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a minute is short on a busy computer
    _require_listening(name, os.environ.get("RAY_ADDRESS", "") if name == "auto" else name)
    import ray
    from ray.exceptions import AuthenticationError

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        with _handler_of_sigterm_kept():
            match name:
                case "local":
                    options = {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
                    ray.init("local", num_cpus=available_cores(), _node_ip_address="127.0.0.1", **options, **quiet)
                case "auto":
                    ray.init(address="auto", **quiet)
                case _:
                    ray.init(address=name, **quiet)
    except (ConnectionError, TimeoutError, AuthenticationError) as error:
        raise TransportError(f"--cluster {name}: no Ray cluster answers. {_cure(name)} {_TOKEN_CURE}") from error
    except RuntimeError as error:  # Ray's own comparison of versions, on which its protocol depends
        if "ersion mismatch" not in str(error):
            raise
        raise ContractError(f"--cluster {name}: {_one_line(error)} {_SAME}") from error
    except Exception as error:  # Ray raises a bare one when a process of its own was not up within 15 s
        if "timed out during startup" not in str(error):
            raise
        raise TransportError(
            f"--cluster {name}: Ray did not start here, so this computer is very busy or has no memory left. "
            "Run the same command again."
        ) from error
    return ray


@contextlib.contextmanager
def _handler_of_sigterm_kept() -> Iterator[None]:
    """Give SIGTERM its handler back after Ray started, whose own one ends the process at once with status 15."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _use_token() -> None:
    """Show the cluster Ray's token where this computer has one, as `ray start` asks for it then."""
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or TOKEN.is_file()
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _require_listening(name: str, address: str) -> None:
    """Raise TransportError if nothing listens at HOST:PORT: Ray would try for minutes, and end the process."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_LISTENS_S).close()
    except (OSError, OverflowError) as error:
        raise TransportError(f"--cluster {name}: nothing listens at {found[1]}:{found[2]}. {_cure(name)}") from error


_TOKEN_CURE = (
    "If it asks for a token, this computer needs the same RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token: docs/security.md."
)
_SAME = "Install the same versions on every node: docs/cluster.md says how."


def _cure(name: str) -> str:
    if name == "auto":
        return "Start one with `ray start --head`, join one with `ray start --address=HOST:6379`, or say local."
    return "Is it running, and does its head listen there? `ray start --head` opens port 10001 for clients."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."


def _require_same_versions(ray: Any) -> None:
    """Raise ContractError unless every node has our versions; the message names each node that has not.

    A node that dies meanwhile is none: Ray thinks a dead node alive for some seconds.
    """
    nodes = _alive(ray)
    asked = {node: _asked(ray, node) for node in nodes}
    ready, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    problems = {node: _problem(ray, reference) for node, reference in asked.items() if reference in ready}
    problems |= {node: "it did not answer" for node, reference in asked.items() if reference in late}
    still = _alive(ray) if any(problems.values()) else nodes
    told = [f"{nodes[node]} ({problem})" for node, problem in problems.items() if problem and node in still]
    if told:
        raise ContractError(f"nodes of the cluster differ from this computer: {', '.join(told)}. {_SAME}")


def _alive(ray: Any) -> dict[str, str]:
    """Return the nodes that Ray thinks alive: id -> name of the computer."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def _asked(ray: Any, node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=place, max_retries=0)(_probe()).remote()


def _probe() -> Callable[[], dict[str, str] | str]:
    """Return a function that a node without this package can run, too: a nested one is sent as code."""

    def versions() -> dict[str, str] | str:
        try:
            from vla_robot.cluster.versions import present
        except ImportError as error:
            return f"vla_robot cannot be imported there: {error}"
        return present()

    return versions


def _problem(ray: Any, reference: Any) -> str:
    """Return what is wrong with a node; empty if nothing is."""
    try:
        found = ray.get(reference)
    except ray.exceptions.RayError as error:
        return f"it cannot run a task: {_one_line(error)[:200]}"
    return found if isinstance(found, str) else differences(found, present())
