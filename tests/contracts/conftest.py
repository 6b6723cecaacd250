"""Servers of toys in threads of the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vla_robot.core.clock import MonotonicClock
from vla_robot.core.ports import Arm
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.transport.sockets import ServerSocket

Serve = Callable[[Callable[[ServerSocket], Any]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs the server that is made of a socket in a thread, until the test ends, and gives the address."""
    with contextlib.ExitStack() as stack:

        def start(make_server: Callable[[ServerSocket], Any]) -> str:
            socket, stop = stack.enter_context(ServerSocket()), threading.Event()
            thread = threading.Thread(target=make_server(socket).serve, args=(stop.is_set,), daemon=True)
            thread.start()
            stack.callback(thread.join, timeout=60)
            stack.callback(stop.set)
            return socket.address

        yield start


@pytest.fixture
def bridge_of(serve: Serve) -> Callable[[Arm], str]:
    """Serves an arm behind a bridge that a busy computer does not make impatient, and gives the address."""

    def start(arm: Arm) -> str:
        clock = MonotonicClock()
        limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
        watchdog = Watchdog(clock, hold_after_s=30, stop_after_s=100, beat_after_s=30)
        bridge = Bridge(arm, limits, watchdog, clock, ExecutionConfig(max_age_s=10))
        return serve(lambda socket: BridgeServer(bridge, socket, clock))

    return start
