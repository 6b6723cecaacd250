"""Toy worlds, served from a thread of the test or, by `toy_command`, from a process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, Clock, FakeClock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.core.messages import Clamp, Observation, StepResult, Vector
from vla_robot.serve.world.server import WorldServer
from vla_robot.testing import toy_embodiment
from vla_robot.transport.sockets import ServerSocket

EMBODIMENT = toy_embodiment()
WORLD_MS, RENDER_MS = 30, 16
UNAVAILABLE_SEED = 13


@dataclass
class ToyWorld:
    """Adds up its actions; `on_step` may do anything in the midst of one."""

    clock: Clock = field(default_factory=MonotonicClock)
    on_step: Callable[[], None] = lambda: None
    stamps_commands: bool = True
    image_height: int = 6
    embodiment: Embodiment = EMBODIMENT
    instruction: str = "gå rett frem"
    x: float = 0.0
    steps: int = 0
    closed: bool = False

    def reset(self, seed: int) -> Observation:
        if seed == UNAVAILABLE_SEED:
            raise WorldError(f"seed {seed} leads nowhere.")
        self.x, self.steps = float(seed), 0
        return self._observe()

    def step(self, action: Vector) -> StepResult:
        command_ns = self.clock.now_ns() if self.stamps_commands else 0
        self.on_step()
        self._pass_ms(WORLD_MS)
        self.x, self.steps = self.x + float(action[0]), self.steps + 1
        clamps = (Clamp("dx", "wall", 0.5, 0.25),) if self.steps == 2 else ()
        return StepResult(self._observe(), action, self.x > 0, self.steps == 5, self.steps == 9, clamps, command_ns)

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> Observation:
        stamp_ns = self.clock.now_ns()
        self._pass_ms(RENDER_MS)
        image = np.full((self.image_height, 8, 3), self.steps, np.uint8)
        truth = {"cube_pos": np.array([self.x, 0.0, 0.0])}
        return Observation({"front": image}, np.array([self.x]), self.instruction, stamp_ns, self.steps, truth)

    def _pass_ms(self, duration_ms: int) -> None:
        if isinstance(self.clock, FakeClock):
            self.clock.advance_ns(duration_ms * NS_PER_MS)


@pytest.fixture
def serve() -> Iterator[Callable[[ToyWorld], str]]:
    """Serves a world until the test ends, by its clock, and gives the address."""
    with ExitStack() as stack:

        def start(world: ToyWorld) -> str:
            stop = threading.Event()
            socket = stack.enter_context(ServerSocket())
            server = WorldServer(world, socket, world.clock)
            thread = threading.Thread(target=server.serve, args=(stop.is_set,), daemon=True)
            thread.start()
            stack.callback(thread.join, timeout=60)
            stack.callback(stop.set)
            return socket.address

        yield start


@pytest.fixture
def toy_command() -> Callable[[str], list[str]]:
    """The command of a process that serves one of BUILDS."""
    script = (
        "import runpy, sys; from vla_robot.serve.world.server import run_child;"
        "sys.exit(run_child(runpy.run_path(sys.argv[1])['BUILDS'][sys.argv[2]]))"
    )
    return lambda build: [sys.executable, "-c", script, __file__, build]


class Stubborn(ToyWorld):
    """Never gets done with closing."""

    def close(self) -> None:
        threading.Event().wait()


def _noisy() -> ToyWorld:
    print("welcome to the simulator", flush=True)
    os.write(1, b"from C, too\n")
    return ToyWorld()


def _misspelt() -> ToyWorld:
    raise RecipeError("unknown robosuite task 'Lifft'; did you mean 'Lift'?")


def _buggy() -> ToyWorld:
    raise ZeroDivisionError("in the simulator")


def _dying() -> ToyWorld:
    def die() -> None:
        print("Segmentation fault, more or less", file=sys.stderr, flush=True)
        os._exit(3)

    return ToyWorld(on_step=die)


def _slow() -> ToyWorld:
    threading.Event().wait()
    return ToyWorld()


BUILDS: dict[str, Callable[[], ToyWorld]] = {
    "toy": ToyWorld,
    "stubborn": Stubborn,
    "noisy": _noisy,
    "misspelt": _misspelt,
    "buggy": _buggy,
    "dying": _dying,
    "slow": _slow,
}


@pytest.fixture
def make_toy() -> type[ToyWorld]:
    return ToyWorld
