"""While the arm is on its way to where an episode begins: who asks is answered, a stop stops it, and a seat is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vla_robot.core.clock import NS_PER_S
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL
from vla_robot.transport.wire import Message

MakeStage = Callable[..., Any]

RESET_S = 10.0
ASKED_EVERY_S = 0.02


def resetting(make_stage: MakeStage, asks: bool = True) -> Any:
    """A stage whose arm is ten seconds from home, with its controller's reset on its way to the bridge."""
    stage = make_stage()
    stage.arm.reset_ms = RESET_S * 1000
    stage.arm.interrupted = stage.server.interrupted if asks else None
    stage.hello()
    stage.controller.say("reset", episode=1, seed=0, lockstep=False)
    return stage


def hello_of_another(stage: Any, at_s: float) -> None:
    message = Message("hello", 1, {"protocol": BRIDGE_PROTOCOL, "wanted": {}})
    stage.at(at_s, lambda: stage.network.post(b"stranger", message))


@pytest.mark.parametrize("asks", [True, False], ids=["an arm that asks", "a simulation"])
@pytest.mark.parametrize("at_s", [0.5, 3.0, 9.0])
def test_a_controller_that_waits_for_its_reset_keeps_its_seat(make_stage: MakeStage, asks: bool, at_s: float) -> None:
    stage = resetting(make_stage, asks)
    hello_of_another(stage, at_s)
    session = stage.controller.session
    stage.play(RESET_S + 2.0)
    assert stage.controller.session == session
    assert any("has a controller already" in e or "is being reset" in e for e in stage.controller.errors)
    assert stage.status["mode"] == "run" and stage.status["episode"] == 1


def test_a_controller_that_died_during_its_reset_loses_its_seat_after_it(make_stage: MakeStage) -> None:
    stage = resetting(make_stage)
    stage.at(1.0, lambda: setattr(stage.controller, "alive", False))
    stage.play(RESET_S + 1.0)
    hello_of_another(stage, 2.0)
    stage.play(2.5)
    assert not stage.status["running"], "the seat of a dead controller was kept"


def test_a_stop_during_a_reset_stops_the_arm_on_its_way(make_stage: MakeStage) -> None:
    stage = resetting(make_stage)
    told: list[int] = []
    hear = stage.network.on_message

    def note(peer: bytes, message: Message) -> None:
        if peer == b"stranger":
            told.append(stage.clock.now_ns())
        hear(peer, message)

    stage.network.on_message = note
    begun_ns = stage.clock.now_ns()
    stage.at(2.0, lambda: stage.network.post(b"stranger", Message("stop", 1, {"reason": "a person stood up"})))
    stage.play(RESET_S)
    sent_ns = begun_ns + 2 * NS_PER_S
    assert stage.status["mode"] == "stopped" and "a person stood up" in stage.status["reason"]
    assert (stage.arm.stops[0] - sent_ns) / NS_PER_S <= 2 * ASKED_EVERY_S
    assert (told[0] - sent_ns) / NS_PER_S <= 2 * ASKED_EVERY_S
    assert "was interrupted" in stage.controller.errors[0] and not stage.status["running"]


def test_an_arm_that_does_not_ask_is_stopped_before_its_first_tick(make_stage: MakeStage) -> None:
    stage = resetting(make_stage, asks=False)
    stage.at(2.0, lambda: stage.network.post(b"stranger", Message("stop", 1, {"reason": "a person stood up"})))
    stage.play(RESET_S + 1.0)
    assert stage.status["mode"] == "stopped" and stage.arm.stops and stage.arm.commands == []


def test_a_key_at_the_bridge_interrupts_a_reset(make_stage: MakeStage) -> None:
    stage = resetting(make_stage)
    pressed_ns = stage.clock.now_ns() + NS_PER_S

    def should_stop() -> bool:  # as `vla bridge` looks after its key whenever it is asked
        if stage.clock.now_ns() >= pressed_ns and not stage.bridge.watchdog.stopped_by:
            stage.server.emergency_stop("the Enter key at the bridge")
        return stage.clock.now_ns() > pressed_ns + NS_PER_S

    stage.server.serve(should_stop)
    assert stage.arm.stops and "the Enter key" in stage.bridge.watchdog.stopped_by


def test_who_asks_during_a_reset_is_answered(make_stage: MakeStage) -> None:
    stage = resetting(make_stage)
    before = len(stage.controller.answers)
    for at_s in (1.0, 2.0, 3.0):
        stage.at(at_s, lambda: stage.network.post(b"stranger", Message("status", 1, {})))
    asked: list[Message] = []
    stage.at(5.0, lambda: asked.extend(stage.controller.answers[before:]))
    stage.play(RESET_S + 1.0)
    assert [answer.body["reason"] for answer in asked] == ["the arm is being reset"] * 3


def test_a_reset_that_is_sent_again_meanwhile_begins_nothing_twice(make_stage: MakeStage) -> None:
    stage = resetting(make_stage)
    for at_s in range(1, 10):
        stage.at(at_s, lambda: stage.controller.say("reset", episode=1, seed=0, lockstep=False))
    stage.play(RESET_S + 2.0)
    assert len(stage.arm.resets) == 1 and stage.status["mode"] == "run"
    assert [answer.kind for answer in stage.controller.answers].count("wait") >= 8, "the controller was left in doubt"


@pytest.mark.parametrize("kind", ["end", "close"])
def test_a_controller_that_gives_up_interrupts_its_reset(make_stage: MakeStage, kind: str) -> None:
    stage = resetting(make_stage)
    stage.at(1.0, lambda: stage.controller.say(kind))
    stage.play(2.0)
    assert stage.arm.stops and not stage.status["running"]
    assert "was interrupted" in stage.controller.errors[0]
    stage.play(1.0)
    assert not stage.status["running"]


def test_a_bug_while_the_arm_asks_interrupts_the_reset(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = resetting(make_stage)

    def fail(timeout_s: float) -> bool:
        raise KeyError("a bug")

    calls = iter([True] * 5)
    answer = stage.server._answer_for
    monkeypatch.setattr(
        stage.server, "_answer_for", lambda timeout_s: answer(timeout_s) if timeout_s or next(calls, None) else fail(0)
    )
    stage.play(3.0)
    assert stage.arm.stops and "a bug" in stage.status["reason"]
