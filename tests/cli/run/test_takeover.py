"""`vla run --takeover DEVICE --record FOLDER`, in a world here and behind a bridge, with hands that follow a script."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.main import main
from vla_robot.cli.record import teleop_devices as hands
from vla_robot.cli.run import run
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.messages import Observation
from vla_robot.core.teleop import Button, TeleopCommand
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.policy.scripted.simple import HoldPolicy
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.record.corrections import CORRECTED
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.testing import FunctionPolicy, ToyWorld, toy_embodiment
from vla_robot.transport.sockets import ServerSocket

TAKE, GIVE, HORIZON = 4, 9, 15
BRIDGE_HORIZON = 125
"""Steps of an episode whose robot does not wait: 5 s at 25 Hz, in which a busy computer takes over, too."""
HAND = 0.04
ARM = toy_embodiment(reach_m=9, height=16, width=16, rate_hz=25.0)


def line(horizon: int = HORIZON) -> ToyWorld:
    """A world that succeeds at its last step."""
    return ToyWorld(embodiment=ARM, succeed_at=horizon)


class Script:
    """Takes over at the first step from TAKE on, and gives back GIVE - TAKE steps later, in every episode."""

    def __init__(self) -> None:
        self._step = 0
        self._taken: int | None = None
        self._said: set[Button] = set()
        self.closed = False

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        if observation.step < self._step:
            self._taken = None
        self._step = observation.step

    def command(self) -> TeleopCommand:
        if self._taken is None and self._step >= TAKE:
            self._taken = self._step
        drives = self._taken is not None and self._step < self._taken + GIVE - TAKE
        button: Button | None = None if self._taken is None else "takeover" if drives else "giveback"
        new = button is not None and button not in self._said
        self._said = {button} if button is not None else set()
        move = HAND if drives else 0.0
        return TeleopCommand(np.array([move, 1.0]), frozenset({button} if new and button is not None else ()))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The hands that `open_named_teleoperator` opens."""
    script = Script()
    monkeypatch.setattr(hands, "open_named_teleoperator", lambda *arguments, **options: script)
    return script


@pytest.fixture
def bridge() -> Iterator[str]:
    """The address of a bridge with the same world behind it."""
    with ExitStack() as stack:
        clock, stop = MonotonicClock(), threading.Event()
        limits = SafetyFilter(ARM, limits_of(ARM, LimitsRecipe()))
        socket = stack.enter_context(ServerSocket())
        server = BridgeServer(Bridge(WorldArm(line(BRIDGE_HORIZON)), limits, Watchdog(clock), clock), socket, clock)
        thread = threading.Thread(target=server.serve, args=(stop.is_set,), daemon=True)
        thread.start()
        stack.callback(thread.join, timeout=60)
        stack.callback(stop.set)
        yield socket.address


def corrected_steps(data: Path) -> list[int]:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(data / "data").to_pylist()
    return [row["frame_index"] for row in rows if row["intervention"]]


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def go(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`go(*options)`: one command -> what it wrote as JSON."""
    monkeypatch.setattr(run, "open_world", lambda *_: contextlib.closing(line()))
    monkeypatch.setattr(run, "build_policy", lambda *_: HoldPolicy(ARM.action))

    def command(*options: str) -> dict[str, Any]:
        out = ["--record", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--json", str(tmp_path / "r.json")]
        assert main(["run", "--policy", "hold", "--episodes", "2", "--takeover", "keyboard", *out, *options]) == 0
        return json.loads((tmp_path / "r.json").read_text())

    return command


def test_a_correction_in_a_world_here_is_recorded_and_told(
    go: Run, script: Script, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = go("--env", str(repository / "envs" / "tabletop.toml"))
    assert (told["successes"], told["successes_with_help"]) == (0, 2)
    assert [e["interventions"] for e in told["episodes"]] == [GIVE - TAKE] * 2
    assert corrected_steps(tmp_path / "data") == list(range(TAKE, GIVE)) * 2
    demos = open_demos(tmp_path / "data")
    assert [e.driver for e in demos.episodes] == ["hold" + CORRECTED] * 2 and all(e.success for e in demos.episodes)
    assert script.closed
    printed = " ".join(capsys.readouterr().out.split())
    assert "takes over; G gives back" in printed and "2 episodes were added" in printed
    assert "0 of 2 succeeded by the policy alone" in printed


def test_a_correction_behind_a_bridge_is_recorded_too(go: Run, bridge: str, tmp_path: Path) -> None:
    told = go("--robot", bridge)
    assert all(e["interventions"] > 0 for e in told["episodes"]) and told["successes"] == 0
    # A busy computer may take over a tick later; what was played then is marked, and nothing else is.
    demos = open_demos(tmp_path / "data")
    pq = pytest.importorskip("pyarrow.parquet")
    marks = np.array(pq.read_table(tmp_path / "data" / "data").column("intervention").to_pylist())
    moves = demos.actions[:, 0]
    np.testing.assert_allclose(moves[marks], HAND, rtol=1e-6)
    # Where the next action came too late, no action was due, and the arm braked: a row of its own, with a smaller move.
    braking = np.flatnonzero(~marks & (moves != 0.0))
    assert (np.abs(moves[braking]) < np.abs(moves[braking - 1])).all()
    assert len(braking) < marks.sum()


def test_in_lockstep_behind_a_bridge_the_marks_are_exact(go: Run, bridge: str, tmp_path: Path) -> None:
    told = go("--robot", bridge, "--lockstep")
    assert [e["interventions"] for e in told["episodes"]] == [GIVE - TAKE] * 2
    assert corrected_steps(tmp_path / "data") == list(range(TAKE, GIVE)) * 2


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("chunk_gap:0.1", "The policy told no chunk gap, so that it never asked the person. Its chunks were used up"),
        ("entropy:2", "The policy told no entropy, so that it never asked the person. Policies that answer in tokens"),
    ],
)
def test_a_policy_without_the_signal_is_said_to_have_never_asked(
    go: Run, repository: Path, capsys: pytest.CaptureFixture[str], asked: str, reason: str
) -> None:
    go("--env", str(repository / "envs" / "tabletop.toml"), "--ask-when-unsure", asked)
    assert reason in " ".join(capsys.readouterr().out.split())


def test_a_chunked_policy_asks_by_its_gap(
    go: Run, monkeypatch: pytest.MonkeyPatch, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gripper of every other plan is 0.2 away, of two dimensions: a gap of 0.1, before the person takes over."""
    policy = FunctionPolicy(lambda seen: np.tile([0.0, 1.0 if seen.step % 2 else 0.8], (4, 1)))
    monkeypatch.setattr(run, "build_policy", lambda *_: ExecutionHorizon(policy, 1))
    told = go("--env", str(repository / "envs" / "tabletop.toml"), "--ask-when-unsure", "chunk_gap:0.09")
    for episode in told["episodes"]:
        assert episode["chunk_gap"][:TAKE] == [None, *[0.1] * (TAKE - 1)]
        assert episode["chunk_gap"][TAKE : GIVE + 1] == [None] * (GIVE - TAKE + 1)
        assert episode["chunk_gap"][GIVE + 1 :] == [0.1] * 5  # then it asks, as the last step is done
    assert "never asked" not in capsys.readouterr().out


def test_steps_that_are_missing_are_told_with_what_became_of_them(tmp_path: Path) -> None:
    from vla_robot.cli.run.run import RunArgs
    from vla_robot.cli.run.takeover import _stored
    from vla_robot.record.corrections import LogStore

    class Nowhere:
        def write(self, demonstration: object) -> None: ...

    args = RunArgs(record=tmp_path / "data")
    told = _stored(args, LogStore(Nowhere(), ARM, "hold", kept=2, stored=4, missing=9, rested=3))
    assert (
        "9 steps are missing" in told
        and "4 episodes in the dataset" in told
        and "3 steps without motion left out" in told
    )
    assert "steps are missing" not in _stored(args, LogStore(Nowhere(), ARM, "hold", kept=2, stored=2))
