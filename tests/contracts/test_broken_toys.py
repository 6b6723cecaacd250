"""Each sentence of each contract is one that a check really asks for: a toy that breaks it alone is found out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import ActionChunk, Clamp, Observation
from vla_robot.core.teleop import TeleopCommand
from vla_robot.testing import (
    BrokenContractError,
    Contract,
    FunctionPolicy,
    ScriptedTeleoperator,
    ToyArm,
    ToyRobot,
    ToySource,
    ToyWorld,
    check_arm,
    check_episode_source,
    check_policy,
    check_robot,
    check_teleoperator,
    check_world,
    chunk_for,
    move,
    toy_embodiment,
)
from vla_robot.testing.check_arm import CONTRACT as ARM
from vla_robot.testing.check_episode_source import CONTRACT as SOURCE
from vla_robot.testing.check_policy import CONTRACT as POLICY
from vla_robot.testing.check_robot import CONTRACT as ROBOT
from vla_robot.testing.check_teleoperator import CONTRACT as TELEOPERATOR
from vla_robot.testing.check_world import CONTRACT as WORLD

TOY = toy_embodiment()
LISTED: Any = replace(TOY, cameras=list(TOY.cameras))  # pyright: ignore[reportArgumentType]
"""Not the same after the way to another process."""
CHECKS: dict[str, Callable[[Any], None]] = {
    "World": lambda toy: check_world(lambda: toy),
    "Policy": lambda toy: check_policy(lambda: toy, TOY),
    "Arm": lambda toy: check_arm(lambda: toy),
    "Robot": lambda toy: check_robot(lambda: toy, patience=3),
    "Teleoperator": lambda toy: check_teleoperator(lambda: toy, TOY),
    "EpisodeSource": lambda toy: check_episode_source(lambda: toy),
}
SOUND: dict[str, Callable[[], Any]] = {
    "World": ToyWorld,
    "Policy": lambda: FunctionPolicy(lambda o: [0.01 * o.step, 1.0]),
    "Arm": ToyArm,
    "Robot": ToyRobot,
    "Teleoperator": lambda: ScriptedTeleoperator([move(0.05), TeleopCommand(None)]),
    "EpisodeSource": ToySource,
}


def after(kind: type, method: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """A toy whose method gives what `change(self, result)` makes of its result."""

    def changed(self: Any, *args: Any, **options: Any) -> Any:
        return change(self, getattr(kind, method)(self, *args, **options))

    return type(f"Broken{kind.__name__}", (kind,), {method: changed})


def instead(kind: type, **members: Any) -> Callable[..., Any]:
    """A toy with other methods or properties."""
    return type(f"Broken{kind.__name__}", (kind,), members)


def stepped(observation: Observation, by: int = 1) -> Observation:
    return replace(observation, step=observation.step + by)


def narrow(observation: Observation) -> Observation:
    return replace(observation, state=observation.state.astype(np.float32))  # pyright: ignore[reportArgumentType]


def fail(*args: object) -> None:
    raise RuntimeError("it is gone")


class Reusing(ToyWorld):
    """Writes every frame into the same array, as a renderer without copies does."""

    frame = np.zeros((6, 8, 3), np.uint8)

    def _observe(self) -> Observation:
        seen = super()._observe()
        self.frame[:] = seen.images["front"]
        return replace(seen, images={"front": self.frame})


class ReusingPolicy(FunctionPolicy):
    """Writes every answer into the same array."""

    rows = np.zeros((1, 2))

    def act(self, observations: Any) -> list[ActionChunk]:
        chunks = super().act(observations)
        for chunk in chunks:
            self.rows[:] = chunk.actions
        return [replace(chunk, actions=self.rows) for chunk in chunks]


class Moving(ToyWorld):
    """Refuses a bad action after it moved."""

    def step(self, action: Any) -> Any:
        try:
            return super().step(action)
        except ContractError:
            self.x += 0.01
            raise


class Drawing(FunctionPolicy):
    """Goes on with its numbers when it is reset."""

    numbers = itertools.count()

    def act(self, observations: Any) -> list[ActionChunk]:
        return [chunk_for(o, [1e-3 * next(self.numbers), 1.0]) for o in observations]


class OnceClosed(ScriptedTeleoperator):
    def close(self) -> None:
        if self.closed:
            raise RuntimeError("the port is not open")
        self.closed = True


def _batch_mean(policy: Any, chunks: list[ActionChunk]) -> list[ActionChunk]:
    mean = np.mean([chunk.actions for chunk in chunks], axis=0)
    return [replace(chunk, actions=mean) for chunk in chunks]


def _look_steps(world: Any, seen: Observation) -> Observation:
    world.x += 0.01
    return seen


def _moves_on(world: Any, result: Any) -> Any:
    world.x += 0.01
    return result


def _paint(observation: Observation) -> float:
    observation.images["front"][:] += 1
    return 0.0


def _cut(arm: Any, result: Any) -> Any:
    return replace(result, executed=result.executed / 2)


def _episode(**changes: Any) -> Callable[[Any, Any], Any]:
    return lambda source, episode: replace(episode, **changes)


def _drawn(name: str, column: Any) -> Any:
    return np.random.default_rng().random(column.shape) if name == "action" else column


def unrepeatable() -> ToyWorld:
    numbers = itertools.count()
    return ToyWorld(start=lambda seed: 0.001 * next(numbers))


def _run(robot: Any, ticks: Any) -> Any:
    return [replace(tick, mode="run") for tick in ticks]


BROKEN: dict[str, dict[str, Callable[[], Any]]] = {
    "World": {
        "is_world": lambda: SimpleNamespace(close=lambda: None),
        "travels": lambda: ToyWorld(embodiment=LISTED),
        "instructs": lambda: ToyWorld(instruction=" "),
        "fits": after(ToyWorld, "_observe", lambda world, seen: narrow(seen)),
        "in_range": lambda: ToyWorld(start=lambda seed: 5.0),
        "repeats_instruction": after(ToyWorld, "_observe", lambda world, seen: replace(seen, instruction="other")),
        "counts": after(ToyWorld, "_observe", lambda world, seen: stepped(seen)),
        "stamps": after(ToyWorld, "_observe", lambda world, seen: replace(seen, stamp_ns=1)),
        "executes": after(ToyWorld, "step", _cut),
        "copies": instead(ToyWorld, step=lambda self, action: replace(ToyWorld.step(self, action), executed=action)),
        "keeps": Reusing,
        "ends": after(ToyWorld, "step", lambda world, result: replace(result, success=np.False_)),
        "refuses": Moving,
        "refuses_seed": instead(ToyWorld, reset=lambda self, seed: ToyWorld.reset(self, abs(seed))),
        "repeats": unrepeatable,
        "looks": after(ToyWorld, "look", _look_steps),
        "leaves_out": after(ToyWorld, "step_without_frames", _moves_on),
        "times": instead(ToyWorld, last_stages_ms={"render": -1.0}),
        "closes": instead(ToyWorld, close=lambda self: None),
    },
    "Policy": {
        "is_policy": lambda: SimpleNamespace(act=lambda observations: []),
        "answers_each": after(FunctionPolicy, "act", lambda policy, chunks: chunks * 2),
        "names_cause": after(
            FunctionPolicy, "act", lambda policy, chunks: [replace(c, step=c.step + 1) for c in chunks]
        ),
        "is_actions": lambda: FunctionPolicy(lambda o: np.nan),
        "tells_entropy": after(
            FunctionPolicy, "act", lambda policy, chunks: [replace(c, entropy=-0.1) for c in chunks]
        ),
        "leaves_seen": lambda: FunctionPolicy(_paint),
        "keeps": lambda: ReusingPolicy(lambda o: 0.01 * o.step),
        "forgets": Drawing,
        "rows_apart": lambda: after(FunctionPolicy, "act", _batch_mean)(lambda o: 0.01 * o.step),
        "prepares": lambda: instead(FunctionPolicy, prepares_ahead=True, prepare=lambda policy, seen: stepped(seen))(
            lambda o: 0.01 * o.step
        ),
    },
    "Arm": {
        "travels": lambda: ToyArm(embodiment=LISTED),
        "instructs": lambda: ToyArm(instruction=""),
        "fits": after(ToyArm, "_observe", lambda arm, seen: narrow(seen)),
        "counts": after(ToyArm, "reset", lambda arm, seen: stepped(seen)),
        "executes": after(ToyArm, "command", _cut),
        "holds": after(ToyArm, "hold", lambda arm, result: replace(result, executed=np.array([0.0, 1.0]))),
        "looks": after(ToyArm, "look", lambda arm, seen: stepped(seen, len(arm.looks))),
        "cameras": instead(ToyArm, camera_stamps_ns={"wrist": 1}),
        "times": instead(ToyArm, last_stages_ms={"bounds": -1.0}),
        "streams": instead(ToyArm, next_set_point_ns=0, send_set_point=lambda self: None),
        "stops": instead(ToyArm, stop=fail),
        "closes": instead(ToyArm, close=fail),
    },
    "Robot": {
        "travels": lambda: ToyRobot(embodiment=LISTED),
        "instructs": lambda: ToyRobot(instruction=""),
        "fits": after(ToyRobot, "_look", lambda robot, seen: narrow(seen)),
        "begins": after(ToyRobot, "begin", lambda robot, seen: stepped(seen)),
        "grows": after(ToyRobot, "ticks", lambda robot, ticks: ticks * 2),
        "holds": after(ToyRobot, "ticks", _run),
        "plays": lambda: ToyRobot(delay=100),
        "ends": instead(ToyRobot, end=lambda self: self.send(chunk_for(self._look(), [0.0, 1.0]))),
        "latches": instead(ToyRobot, stop=lambda self, reason: None, end=lambda self: setattr(self, "_queue", [])),
        "reports": instead(ToyRobot, status=lambda self: {"mode": "on", "reason": ""}),
    },
    "Teleoperator": {
        "commands": lambda: instead(ScriptedTeleoperator, command=lambda self: None)(),
        "is_action": lambda: ScriptedTeleoperator([move(1.0)]),
        "is_buttons": lambda: ScriptedTeleoperator([TeleopCommand(None, frozenset({"jump"}))]),  # pyright: ignore
        "is_text": lambda: ScriptedTeleoperator([TeleopCommand(None, instruction=b"go")]),  # pyright: ignore
        "leaves_shown": instead(ScriptedTeleoperator, show=lambda self, seen, counters: _paint(seen)),
        "told": instead(ScriptedTeleoperator, tell_driver=lambda self, driver, executed: executed[-1]),
        "closes": OnceClosed,
    },
    "EpisodeSource": {
        "says_where": lambda: ToySource(name=""),
        "names_fields": instead(ToySource, left_out={"action": "too long"}),
        "counts": instead(ToySource, lengths=np.array([3, 5], np.int32)),
        "splits": instead(ToySource, splits={"train": 1}),
        "rates": instead(ToySource, rate_hz=0.0),
        "is_whole": after(ToySource, "episode", _episode(length=2)),
        "selects": instead(ToySource, episode=lambda self, index, fields=None: ToySource.episode(self, index)),
        "repeats": after(
            ToySource,
            "episode",
            lambda self, e: replace(e, steps={name: _drawn(name, column) for name, column in e.steps.items()}),
        ),
        "refuses_index": instead(
            ToySource, episode=lambda self, index, fields=None: ToySource.episode(self, index % 2, fields)
        ),
        "refuses_field": instead(
            ToySource,
            episode=lambda self, index, fields=None: ToySource.episode(
                self, index, fields and [name for name in fields if name in self.fields]
            ),
        ),
        "encodes": instead(ToySource, encoded=lambda self, index, field, step: b"GIF89a"),
        "marks": instead(ToySource, goes_on=lambda self, index: 0),
        "travels": instead(ToySource, __getstate__=fail),
    },
}
CONTRACTS: dict[str, Contract] = {c.port: c for c in (WORLD, POLICY, ARM, ROBOT, TELEOPERATOR, SOURCE)}


@pytest.mark.parametrize("port", CONTRACTS)
def test_the_sound_toy_keeps_every_sentence(port: str) -> None:
    CHECKS[port](SOUND[port]())


@pytest.mark.parametrize("port", CONTRACTS)
def test_every_sentence_has_its_broken_toy(port: str) -> None:
    assert set(BROKEN[port]) == set(CONTRACTS[port].sentences)


@pytest.mark.parametrize(("port", "sentence"), [(port, name) for port, toys in BROKEN.items() for name in toys])
def test_a_broken_sentence_is_named_with_what_to_do(port: str, sentence: str) -> None:
    with pytest.raises(BrokenContractError) as caught:
        CHECKS[port](BROKEN[port][sentence]())
    assert (caught.value.port, caught.value.sentence) == (port, sentence), str(caught.value)
    promise = CONTRACTS[port].sentences[sentence]
    assert promise.says in str(caught.value) and promise.remedy in str(caught.value)


def test_a_world_that_cannot_repeat_itself_is_checked_for_the_rest() -> None:
    check_world(unrepeatable, simulated=False)


def test_a_limit_that_is_told_is_no_broken_promise() -> None:
    clamps = tuple(Clamp(name, "wall", 1, 0.5) for name in TOY.action.names)
    check_world(after(ToyWorld, "step", lambda world, result: replace(_cut(world, result), clamps=clamps)))
