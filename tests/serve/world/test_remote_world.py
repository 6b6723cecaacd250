"""A world behind a socket behaves as the world itself, and nothing that arrives there moves it by mistake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.errors import ContractError, TransportError, WorldError
from vla_robot.core.ports import World
from vla_robot.serve.world import client as remote_world
from vla_robot.serve.world.client import RemoteWorld
from vla_robot.serve.world.server import PROTOCOL
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import MAGIC, Buffer, Message, decode, encode

Serve = Callable[[Any], str]
ACTION = np.array([0.02, 1.0])


@pytest.fixture
def toy(make_toy: Callable[..., Any]) -> Any:
    return make_toy()


@pytest.fixture
def world(serve: Serve, toy: Any) -> Iterator[RemoteWorld]:
    with RemoteWorld(serve(toy)) as world:
        yield world


class RawClient:
    """Says whatever it likes."""

    def __init__(self, address: str) -> None:
        self.socket = ClientSocket(address)

    def say(self, kind: str, seq: int, **body: Any) -> Message:
        return self.say_frames(encode(Message(kind, seq, body)))

    def say_frames(self, frames: list[Buffer]) -> Message:
        self.socket.send(frames)
        answer = self.socket.receive(timeout_s=60)
        assert answer is not None, "the server did not answer"
        return decode(answer)


@pytest.fixture
def raw(serve: Serve, toy: Any) -> Iterator[RawClient]:
    client = RawClient(serve(toy))
    with client.socket:
        yield client


@pytest.fixture
def friend(raw: RawClient) -> RawClient:
    """A raw client whose hello was accepted; the next number is 2."""
    assert raw.say("hello", 1, protocol=PROTOCOL).kind == "ok"
    return raw


def test_it_is_a_world(world: RemoteWorld) -> None:
    assert isinstance(world, World)


def test_it_describes_itself_as_the_world_does(world: RemoteWorld, toy: Any) -> None:
    assert world.embodiment == toy.embodiment
    assert world.instruction == toy.instruction


def test_an_episode_is_the_same_as_without_the_socket(serve: Serve, make_toy: Callable[..., Any]) -> None:
    near = make_toy(clock=FakeClock())
    with RemoteWorld(serve(make_toy(clock=FakeClock()))) as far:
        np.testing.assert_equal(vars(far.reset(3)), vars(near.reset(3)))
        for _ in range(3):
            ours, theirs = vars(near.step(ACTION)), vars(far.step(ACTION))
            ours["observation"], theirs["observation"] = vars(ours["observation"]), vars(theirs["observation"])
            np.testing.assert_equal(theirs, ours)


def test_stages_are_told_apart(serve: Serve, make_toy: Callable[..., Any]) -> None:
    clock = FakeClock()
    with RemoteWorld(serve(make_toy(clock=clock)), clock=clock) as world:
        world.reset(0)
        assert world.last_stages_ms == {"render": 16.0, "transport_back": 0.0}
        world.step(ACTION)
        assert world.last_stages_ms == {
            "transport_out": 0.0,
            "world_step": 30.0,
            "render": 16.0,
            "transport_back": 0.0,
        }


def test_a_command_that_the_world_does_not_stamp_is_stamped_by_the_server(
    serve: Serve, make_toy: Callable[..., Any]
) -> None:
    with RemoteWorld(serve(make_toy(clock=FakeClock(start_ns=7), stamps_commands=False))) as world:
        assert world.step(ACTION).command_ns == 7


def test_an_error_of_the_world_is_raised_here_and_the_world_stays(world: RemoteWorld) -> None:
    with pytest.raises(WorldError, match=r"seed 13 leads nowhere\."):
        world.reset(13)
    assert world.reset(1).state == [1.0]


def test_a_bug_in_the_world_is_named_with_its_place_and_the_server_stays(
    serve: Serve, make_toy: Callable[..., Any]
) -> None:
    with RemoteWorld(serve(make_toy(on_step=lambda: 1 / 0))) as world:
        with pytest.raises(WorldError, match=r"ZeroDivisionError: division by zero \(test_remote_world.py, line"):
            world.step(ACTION)
        assert world.reset(1).state == [1.0]


@pytest.mark.parametrize("action", [np.array([np.nan, 1.0]), np.zeros(3), np.zeros((1, 2))])
def test_an_action_that_is_none_moves_nothing(world: RemoteWorld, toy: Any, action: np.ndarray) -> None:
    world.reset(0)
    with pytest.raises(ContractError):
        world.step(action)
    assert toy.steps == 0


def test_frames_of_another_size_than_announced_are_refused(serve: Serve, make_toy: Callable[..., Any]) -> None:
    with (
        RemoteWorld(serve(make_toy(image_height=5))) as world,
        pytest.raises(ContractError, match=r"\(5, 8, 3\).*\(6, 8, 3\)"),
    ):
        world.reset(0)


def test_a_second_client_is_refused_while_the_first_is_there(serve: Serve, toy: Any) -> None:
    address = serve(toy)
    with RemoteWorld(address) as first:
        with pytest.raises(TransportError, match="has a client already, and accepts one at a time"):
            RemoteWorld(address)
        assert first.reset(2).state == [2.0]  # neither the refusal nor the server's probe confuses it


def test_the_next_client_is_welcome_when_the_first_has_closed(serve: Serve, toy: Any) -> None:
    address = serve(toy)
    for seed in (1, 2):
        with RemoteWorld(address) as world:
            assert world.reset(seed).state == [seed]


def test_a_client_that_vanished_does_not_lock_the_world(serve: Serve, toy: Any) -> None:
    address = serve(toy)
    gone = RawClient(address)
    assert gone.say("hello", 1, protocol=PROTOCOL).kind == "ok"
    gone.socket.close()
    # The connection's end may reach the server a moment after the next hello does.
    for _ in range(100):
        try:
            RemoteWorld(address).close()
            return
        except TransportError as error:
            assert "has a client already" in str(error)
    pytest.fail("the world stayed locked")


def test_nobody_there_is_an_error_in_bounded_time() -> None:
    with pytest.raises(TransportError, match=r"within 0\.1 s\. Check that its server runs there"):
        RemoteWorld("tcp://127.0.0.1:9", connect_timeout_s=0.1)


def test_a_step_without_an_answer_must_be_followed_by_a_reset(serve: Serve, make_toy: Callable[..., Any]) -> None:
    go_on = threading.Event()
    toy = make_toy(on_step=lambda: go_on.wait(60) and None)
    with RemoteWorld(serve(toy), step_timeout_s=0.1) as world:
        world.reset(0)
        with pytest.raises(TransportError, match="did not answer 'step'"):
            world.step(ACTION)
        with pytest.raises(TransportError, match=r"unknown whether the world moved\. Reset it before"):
            world.step(ACTION)
        go_on.set()
        world._step_timeout_s = 60  # a busy computer may take its time for the next one
        # The late answer to the step arrives first, and is not taken for the reset's.
        assert world.reset(5).state == [5.0]
        assert world.step(ACTION).observation.step == 1


def test_whoever_knows_that_the_server_died_ends_the_waiting(serve: Serve, make_toy: Callable[..., Any]) -> None:
    go_on = threading.Event()
    died: list[WorldError] = []

    def check_peer() -> None:
        if died:
            raise died[0]

    with RemoteWorld(serve(make_toy(on_step=lambda: go_on.wait(60) and None)), check_peer=check_peer) as world:
        died.append(WorldError("the world's process died."))
        with pytest.raises(WorldError, match="process died"):
            world.step(ACTION)
        died.clear()
        go_on.set()


def test_a_closed_world_says_so(world: RemoteWorld) -> None:
    world.close()
    world.close()
    with pytest.raises(TransportError, match="was closed; connect again"):
        world.reset(0)


def test_another_protocol_is_refused_with_both_versions(
    serve: Serve, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_world, "PROTOCOL", 99)
    with pytest.raises(TransportError, match=rf"client speaks protocol 99, the world's server {PROTOCOL}"):
        RemoteWorld(serve(toy))


def test_without_a_hello_nothing_moves(raw: RawClient, toy: Any) -> None:
    answer = raw.say("step", 1, action=ACTION, frames=True)
    assert (answer.kind, answer.body["error"]) == ("error", "TransportError")
    assert "send hello first" in answer.body["message"]
    assert toy.steps == 0


@pytest.mark.parametrize("seq", [0, 1, 4, 5])
def test_a_replayed_or_reordered_step_moves_nothing(friend: RawClient, toy: Any, seq: int) -> None:
    assert friend.say("step", 5, action=ACTION, frames=True).kind == "ok"
    answer = friend.say("step", seq, action=ACTION, frames=True)
    assert answer.kind == "error"
    assert f"request {seq} came after request 5" in answer.body["message"]
    assert toy.steps == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "TransportError"),
        ({"action": [0.0, 1.0]}, "TransportError"),
        ({"action": np.zeros(2, np.float32)}, "TransportError"),
        ({"action": np.zeros((1, 2))}, "TransportError"),
        ({"action": np.zeros(3)}, "ContractError"),
        ({"action": np.array([np.nan, 0.0])}, "ContractError"),
        ({"action": np.array([0.0, np.inf])}, "ContractError"),
        ({"action": ACTION}, "TransportError"),
        ({"action": ACTION, "frames": 1}, "TransportError"),
    ],
)
def test_a_forged_action_is_refused_by_the_server_and_moves_nothing(
    friend: RawClient, toy: Any, body: dict[str, Any], error: str
) -> None:
    answer = friend.say("step", 2, **body)
    assert (answer.kind, answer.body["error"]) == ("error", error)
    assert toy.steps == 0
    assert friend.say("step", 3, action=ACTION, frames=True).kind == "ok"


def test_an_unknown_request_is_answered_with_the_nearest(friend: RawClient) -> None:
    answer = friend.say("stepp", 2)
    assert "unknown request 'stepp'; did you mean 'step'?" in answer.body["message"]


@pytest.mark.parametrize(
    "frames", [[b""], [b"GET / HTTP/1.1"], [MAGIC + b"\x07"], [MAGIC + b"\x01\xc1"], [b"", b"", b""]]
)
def test_junk_gets_an_answer_and_the_server_stays(friend: RawClient, toy: Any, frames: list[Buffer]) -> None:
    answer = friend.say_frames(frames)
    assert (answer.kind, answer.seq, answer.body["error"]) == ("error", 0, "TransportError")
    assert friend.say("reset", 2, seed=4).kind == "ok"
    assert toy.x == 4.0
