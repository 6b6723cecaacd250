"""A world in a process of its own, which ends when its parent does.

parent  --stdin, held open-->   child    its end tells the child that the parent closed it, or died
        <--one line of JSON--            address, or why the world could not be built
        <--stderr, to a file--           shown only if the child dies unexpectedly
        <====== ZeroMQ ======>
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import WorldError
from vla_robot.core.host.child_process import end_child
from vla_robot.core.host.exit_status import exit_in_words
from vla_robot.recipe import dump
from vla_robot.recipe.env import EnvRecipe, SuiteRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.serve.world import isolated
from vla_robot.serve.world.client import RESET_TIMEOUT_S, STEP_TIMEOUT_S, RemoteWorld
from vla_robot.transport.codec import MessageReader, unpack_error
from vla_robot.transport.sockets import SLICE_S
from vla_robot.world.environments.location import Environment, find_environment
from vla_robot.world.kinds import environment_of

START_TIMEOUT_S = 180.0
"""Time limit of the start [s]: importing a simulator and compiling its kernels can take a minute."""

STOP_TIMEOUT_S = 1.4
"""A child that has not ended after this time is killed [s]; GRACE_S of it is for closing its world."""

TAIL_LINES = 8

PARENTS_OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables of the parent that name its packages; a child in an environment of its own does not get them."""


@dataclass(frozen=True)
class TimeLimits:
    """Time limits of a world's process.

    Attributes:
        start_s: limit of its start, until the world is built [s].
        reset_s: limit of a reset [s].
        step_s: limit of a control step [s].
    """

    start_s: float = START_TIMEOUT_S
    reset_s: float = RESET_TIMEOUT_S
    step_s: float = STEP_TIMEOUT_S


@contextlib.contextmanager
def spawn_world(env: str | Path | EnvRecipe, privileged: bool = False) -> Iterator[RemoteWorld]:
    """Run the world of a recipe in a process of its own during a `with` block.

    A recipe that names an environment of its own runs with that environment's interpreter and packages, and with this
    very package.

    Args:
        env: name or path of the recipe, or the recipe.
        privileged: put the simulator's state into `Observation.privileged`, for scripted experts and labels.

    Raises:
        RecipeError: the recipe does not exist, or names something that does not.
        MissingDependencyError: its environment is not installed; the message names the command.
        WorldError: the world cannot be built, or its process died.
    """
    recipe = env if isinstance(env, EnvRecipe) else find_env(env).recipe
    if isinstance(recipe, SuiteRecipe):
        recipe.require_one()
    own = environment_of(recipe)
    environment = None if own is None else find_environment(own)
    with tempfile.TemporaryDirectory(prefix="vla_world_") as folder:
        path = Path(folder, "world.toml")  # merged and checked: the child searches no base
        path.write_text(dump(recipe), encoding="utf-8")
        arguments = [str(path), *(["--privileged"] if privileged else [])]
        with _started(environment, arguments) as world:
            yield world


def _started(
    environment: Environment | None, arguments: Sequence[str]
) -> contextlib.AbstractContextManager[RemoteWorld]:
    if environment is None:
        return connected([sys.executable, "-P", "-m", "vla_robot.serve.world.server", *arguments])
    environment.require_made("this world")
    command = [str(environment.python), "-I", str(Path(isolated.__file__)), *arguments]
    of = environment.recipe
    limits = TimeLimits(of.start_timeout_s, of.reset_timeout_s, of.step_timeout_s)
    variables = {name: value for name, value in os.environ.items() if name not in PARENTS_OWN}
    return connected(command, limits, variables)


@contextlib.contextmanager
def connected(
    command: Sequence[str], limits: TimeLimits | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[RemoteWorld]:
    """Run a program that calls `run_child`, and yield its world during a `with` block.

    Args:
        command: the program and its arguments.
        limits: time limits; by default those of a world in this environment.
        variables: the program's environment variables; by default this process's.
    """
    limits = limits or TimeLimits()
    with (
        WorldProcess(command, variables=variables) as process,
        RemoteWorld(
            process.await_address(limits.start_s),
            check_peer=process.require_alive,
            reset_timeout_s=limits.reset_s,
            step_timeout_s=limits.step_s,
        ) as world,
    ):
        yield world


class WorldProcess:
    """Child process of a world; leaving its `with` block ends it in less than 2 s."""

    def __init__(
        self, command: Sequence[str], clock: Clock | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=variables,
            # Ctrl-C in a terminal goes to the whole group: the parent decides what it means for the world.
            process_group=0,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_address(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Wait until the world is built, and return its address.

        Raises:
            VlaError: the error that building the world raised in the child.
            WorldError: the child died, or took too long.
        """
        line = self._first_line(timeout_s)
        if not line:
            self._process.wait()
            raise self._died("while it started")
        announced: dict[str, Any] = json.loads(line)
        reader = MessageReader(announced, "announcement")
        if "error" in announced:
            raise unpack_error(reader)
        return reader.text("address")

    def require_alive(self) -> None:
        """Raise WorldError if the child has died."""
        if self._process.poll() is not None:
            raise self._died("unexpectedly")

    def stop(self) -> None:
        """End the child by closing its stdin, then by killing it. May be called twice."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        end_child(self._process, STOP_TIMEOUT_S)
        _pipe(self._process.stdout).close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _first_line(self, timeout_s: float) -> bytes:
        """Return the first line of the child's stdout; empty if the child closed it. Ctrl-C interrupts the waiting."""
        pipe = _pipe(self._process.stdout)
        deadline_ns = self._clock.now_ns() + round(timeout_s * NS_PER_S)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while self._clock.now_ns() < deadline_ns:
                if selector.select(SLICE_S):
                    return pipe.readline()
        raise WorldError(f"the world was not ready within {timeout_s:g} s.{self._tail()}")

    def _died(self, when: str) -> WorldError:
        return WorldError(
            f"the world's process died {when} ({exit_in_words(self._process.returncode)}).{self._tail()} "
            "`vla doctor` checks what a world needs."
        )

    def _tail(self) -> str:
        """Return the last lines of the child's stderr, as a sentence."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " It said last: " + " | ".join(line.strip() for line in lines[-TAIL_LINES:]) + "." if lines else ""


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # Popen was asked for it
    return pipe
