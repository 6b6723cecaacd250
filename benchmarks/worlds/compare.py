"""`vla bench world`: what a step of a LIBERO task costs, beside the benchmark's own environment in the same run.

    the benchmark's own     OffScreenRenderEnv with robosuite's renderer, in a process of the environment `libero`
    reference quality       the recipe's world behind `spawn_world`; its frames are compared with the above
    fast quality            the same with `shadows = false`
    fewer triangles         with `mesh_cell_m = 0.004` besides
    frames left out         `step_without_frames`: a step in the middle of a chunk of actions

The five execute the same actions in turns, round by round. The cost is processor time, of the world's process and, for
ours, of this process that asks it: unlike wall time it hardly depends on other programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

import numpy as np
from rich.table import Table

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.core.host.provenance import row
from vla_robot.recipe.env import LiberoRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.serve.world.client import RemoteWorld
from vla_robot.serve.world.world_process import spawn_world
from vla_robot.world.environments.location import Environment, find_environment

THEIRS, REFERENCE, FAST = "the benchmark's own", "reference quality", "fast quality"
COARSE, LEFT_OUT = "fewer triangles", "frames left out"

PEER = Path(__file__).with_name("libero_peer.py")


@dataclass(frozen=True)
class WorldArgs:
    """Measure a step of a LIBERO task in both qualities and without frames, next to the benchmark's own environment."""

    env: Annotated[str, option("SUITE/TASK")] = "libero_spatial/0"
    """the task"""
    state: Annotated[int, option("K")] = 0
    """the initial state, 0 to 49"""
    rounds: Annotated[int, option("N")] = 6
    """number of turns of each contender"""
    steps: Annotated[int, option("N")] = 10
    """control steps in a turn"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps"):
            if not 1 <= getattr(self, name) <= 100:
                raise RecipeError(f"--{name} {getattr(self, name)}: 1 to 100.")
        if not 0 <= self.state < 50:
            raise RecipeError(f"--state {self.state}: 0 to 49.")


@dataclass(frozen=True)
class Turn:
    """One turn of a contender.

    Attributes:
        cpu_s: processor time of a step [s].
        wall_s: time of a step [s].
        frames: digest of the last frames.
    """

    cpu_s: float
    wall_s: float
    frames: str


class Contender(Protocol):
    """A world that executes actions."""

    def take(self, actions: np.ndarray) -> Turn:
        """Execute (N, 7) fractions of the controller's range, gripper -1 open, and measure it."""
        ...


@dataclass
class Measured:
    """The turns of each contender, in order."""

    turns: dict[str, list[Turn]] = field(default_factory=dict[str, list[Turn]])

    def median(self, name: str, what: str) -> float:
        """Return the median over a contender's turns of `cpu_s` or `wall_s` [s]."""
        return statistics.median(getattr(turn, what) for turn in self.turns[name])

    @property
    def equal_frames(self) -> int:
        """Number of turns after which the frames of reference quality are the benchmark's own to the bit."""
        pairs = zip(self.turns[THEIRS], self.turns[REFERENCE], strict=True)
        return sum(theirs.frames == ours.frames for theirs, ours in pairs)


def main(args: WorldArgs) -> int:
    """Measure, and print a line for each contender.

    Raises:
        RecipeError: the world is no task of LIBERO.
        MissingDependencyError: the environment `libero` is not installed; the message names the command.
        WorldError: a world fails.
    """
    say(f"vla bench world: {args.env}, two cameras, the same actions in turns", flush=True)
    found = measure(args)
    Terminal().print(_table(found))
    rounds = len(found.turns[THEIRS])
    say(
        "Frames of reference quality equal the benchmark's own to the bit after "
        f"{found.equal_frames} of {rounds} turns."
    )
    if args.json:
        write_json(args.json, "bench world", rows(found))
    return 0


def measure(args: WorldArgs) -> Measured:
    """Let the contenders take turns."""
    recipe = find_env(args.env).recipe
    if not isinstance(recipe, LiberoRecipe):
        raise RecipeError(
            f"--env {args.env}: it is no task of LIBERO; `vla bench world` compares those, e.g. libero_spatial/0."
        )
    recipe.require_one()
    recipe = replace(recipe, horizon=args.rounds * args.steps + 1)
    rng, found = np.random.default_rng(0), Measured()
    with contextlib.ExitStack() as stack:
        contenders: Mapping[str, Contender] = {
            THEIRS: stack.enter_context(_theirs(recipe, args.state)),
            REFERENCE: stack.enter_context(_ours(recipe, args.state)),
            FAST: stack.enter_context(_ours(replace(recipe, shadows=False), args.state)),
            COARSE: stack.enter_context(_ours(replace(recipe, shadows=False, mesh_cell_m=0.004), args.state)),
            LEFT_OUT: stack.enter_context(_ours(recipe, args.state, frames=False)),
        }
        bar = stack.enter_context(Bar("turns", Terminal(), lines=False))
        for done in range(args.rounds):
            actions = rng.uniform(-1.0, 1.0, (args.steps, 7))
            for name, contender in contenders.items():
                found.turns.setdefault(name, []).append(contender.take(actions))
            bar.update(done + 1, args.rounds)
    return found


def rows(found: Measured) -> list[dict[str, Any]]:
    """Return the cost of our steps next to the benchmark's own, and the frames' equality."""
    made: list[dict[str, Any]] = []
    for name in (REFERENCE, FAST, COARSE, LEFT_OUT):
        for what in ("cpu_s", "wall_s"):
            ours, theirs = found.median(name, what), found.median(THEIRS, what)
            made.append(row(f"{what}/{name}", ours, "s", theirs, ours / theirs))
    turns = len(found.turns[THEIRS])
    return [*made, row("turns_with_equal_frames", found.equal_frames, "1", turns, found.equal_frames / turns)]


def _table(found: Measured) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("a step", "CPU ms", "of the benchmark's", "wall ms", "of the benchmark's"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name in found.turns:
        cells = [name]
        for what in ("cpu_s", "wall_s"):
            value, theirs = found.median(name, what), found.median(THEIRS, what)
            cells += [f"{1e3 * value:.0f}", "" if name == THEIRS else f"{value / theirs:.2f}x"]
        table.add_row(*cells)
    return table


@dataclass(frozen=True)
class _Peer:
    """The benchmark's own environment, in its process."""

    process: subprocess.Popen[str]

    def take(self, actions: np.ndarray) -> Turn:
        before_s = _cpu_s(self.process.pid)
        answer = json.loads(_asked(self.process, json.dumps(actions.tolist())))
        cpu_s = _cpu_s(self.process.pid) - before_s
        return Turn(cpu_s / len(actions), answer["wall_s"] / len(actions), answer["frames"])


@contextlib.contextmanager
def _theirs(recipe: LiberoRecipe, state: int) -> Iterator[_Peer]:
    environment = _environment(recipe)
    size = recipe.cameras[0].height
    command = [str(environment.python), "-I", str(PEER), recipe.suite, recipe.require_one(), str(state), str(size)]
    variables = {**os.environ, "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables
    ) as process:
        try:
            _line(process)
            yield _Peer(process)
        finally:
            process.kill()


def _environment(recipe: LiberoRecipe) -> Environment:
    environment = find_environment(recipe.environment or "libero")
    environment.require_made("this benchmark")
    return environment


def _asked(process: subprocess.Popen[str], line: str) -> str:
    _pipe(process.stdin).write(line + "\n")
    _pipe(process.stdin).flush()
    return _line(process)


def _line(process: subprocess.Popen[str]) -> str:
    line = _pipe(process.stdout).readline()
    if not line:
        raise WorldError(f"the benchmark's own environment ended with status {process.wait()}.")
    return line


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@dataclass(frozen=True)
class _Ours:
    """A world of ours in its process.

    Attributes:
        world: the world.
        pid: its process.
        frames: whether steps have frames.
    """

    world: RemoteWorld
    pid: int
    frames: bool

    def take(self, actions: np.ndarray) -> Turn:
        in_units = [_in_units(action) for action in actions]
        before_s, own_s, begun_s = _cpu_s(self.pid), time.process_time(), time.perf_counter()
        step = self.world.step if self.frames else self.world.step_without_frames
        seen = [step(action) for action in in_units][-1].observation
        wall_s = time.perf_counter() - begun_s
        cpu_s = _cpu_s(self.pid) - before_s + time.process_time() - own_s
        frames = b"".join(image.tobytes() for image in seen.images.values())
        return Turn(cpu_s / len(actions), wall_s / len(actions), hashlib.sha256(frames).hexdigest())


@contextlib.contextmanager
def _ours(recipe: LiberoRecipe, state: int, frames: bool = True) -> Iterator[_Ours]:
    before = _children()
    with spawn_world(recipe) as world:
        (pid,) = _children() - before
        world.reset(state)
        yield _Ours(world, pid, frames)


def _in_units(fractions: np.ndarray) -> np.ndarray:
    """Return (7,) fractions of the controller's range in metres, radians and 1 = open."""
    return np.concatenate([fractions[:3] * 0.05, fractions[3:6] * 0.5, [float(fractions[6] < 0)]])


def _children() -> set[int]:
    """Return the processes that this one has started and that live."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def _cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken, with all its threads [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
