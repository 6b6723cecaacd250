"""The client of GR00T's protocol, against a REP server that speaks it as its generation does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from vla_robot.cli.build import build_policy
from vla_robot.core.errors import ContractError, PolicyError, TransportError
from vla_robot.core.messages import Observation
from vla_robot.loop.control_loop import run_episode
from vla_robot.recipe.policy import GrootRecipe
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.safety.limits import RangeGuard
from vla_robot.serve.interop.groot_policy import Generation, GrootPolicy
from vla_robot.serve.interop.mapping import PeerMapping, Timeouts

from .groot_server import ARM, KEYS, NESTED, PEERS, GrootServer

GENERATIONS = get_args(Generation)
SEEN = Observation({"front": np.full((6, 8, 3), 200, np.uint8)}, np.array([0.25]), "lift", stamp_ns=7, step=3)


@pytest.fixture
def serving() -> Iterator[Callable[..., GrootServer]]:
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(closing(GrootServer(*args, **options)))


@pytest.fixture
def connect() -> Iterator[Callable[..., GrootPolicy]]:
    with ExitStack() as stack:

        def start(address: str, generation: Generation, **options: Any) -> GrootPolicy:
            peer = PEERS[generation]
            policy = GrootPolicy(address, PeerMapping(peer, ARM), generation, prompt=peer.prompt, **options)
            return stack.enter_context(policy)

        yield start


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_answer_of_every_generation_becomes_the_arms_actions(serving: Any, connect: Any, generation: Any) -> None:
    (chunk,) = connect(serving(generation).address, generation).act([SEEN])
    np.testing.assert_allclose(chunk.actions, [[0.02, 1.0]] * 3)
    assert (chunk.stamp_ns, chunk.step) == (7, 3)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_world_is_driven_to_its_end(serving: Any, connect: Any, make_toy: Any, generation: Any) -> None:
    world = make_toy()
    policy = connect(serving(generation).address, generation)
    ended = run_episode(world, policy, 0, guard=RangeGuard(world.embodiment.action))
    assert (ended.outcome, ended.steps) == ("success", 5)


def test_n15_is_sent_flat_keys_with_an_axis_of_time(serving: Any, connect: Any) -> None:
    server = serving("n1.5")
    connect(server.address, "n1.5").act([SEEN])
    data = server.asked("get_action")[0]["data"]
    assert data["video.front"].shape == (1, 6, 8, 3)
    assert data["state.arm"].tolist() == [[0.25]]
    assert data["annotation.human.task_description"] == ["lift"]


@pytest.mark.parametrize("generation", ["n1.6", "n1.7"])
def test_later_ones_are_sent_maps_with_axes_of_batch_and_time(serving: Any, connect: Any, generation: Any) -> None:
    server = serving(generation)
    connect(server.address, generation).act([SEEN])
    data = server.asked("get_action")[0]["data"]
    assert data["options"] is None
    sent = data["observation"]
    assert sent["video"]["front"].shape == (1, 1, 6, 8, 3) and sent["video"]["front"].dtype == np.uint8
    assert sent["state"]["arm"].tolist() == [[[0.25]]] and sent["state"]["arm"].dtype == np.float32
    assert sent["language"] == {"annotation.human.task_description": [["lift"]]}


def test_an_episode_begins_with_a_reset_where_the_server_knows_one(serving: Any, connect: Any) -> None:
    old, new = serving("n1.5"), serving("n1.6")
    connect(old.address, "n1.5").reset(0)
    connect(new.address, "n1.6").reset(0)
    assert old.asked("reset") == []
    assert new.asked("reset") == [{"endpoint": "reset", "data": {"options": None}}]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_server_that_was_trained_on_something_else_is_refused_with_every_difference(
    serving: Any, connect: Any, generation: Any
) -> None:
    keys = {**KEYS, "video": ["fornt", "wrist"], "action": ["arm", "hand"]}
    with pytest.raises(ContractError) as refused:
        connect(serving(generation, keys=keys).address, generation)
    grip = "action.grip" if generation == "n1.5" else "grip"
    for part in (
        "unknown key 'video.front'; did you mean 'video.fornt'?",
        "nothing is sent as 'video.wrist'",
        f"unknown action '{grip}'",
    ):
        assert part in str(refused.value)


def test_a_server_that_wants_the_past_is_refused(serving: Any, connect: Any) -> None:
    with pytest.raises(ContractError, match="wants 2 moments of video, and only the newest is sent"):
        connect(serving("n1.7", history=2).address, "n1.7")


def test_a_token_opens_the_server_and_without_it_nothing_is_begun(serving: Any, connect: Any) -> None:
    server = serving("n1.6", token="secret-1")
    connect(server.address, "n1.6", token="secret-1").act([SEEN])
    with pytest.raises(TransportError, match="says of 'ping': Unauthorized: Invalid API token"):
        connect(server.address, "n1.6")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"error": "CUDA out of memory"}, "says of 'get_action': CUDA out of memory"),
        (b"ERROR", "it answered ERROR"),
        (b"PK\x03\x04\x00\x00archive/data.pkl", r"torch\.save.*pickle.*Update the server"),
        (b"\xc1", "not valid msgpack"),
        ([], "without a map of actions"),
        ([{"arm": np.zeros((2, 3, 1), np.float32), "grip": np.zeros((1, 3, 1))}, {}], r"shape \[2, 3, 1\]"),
        ([{"arm": np.zeros((1, 3, 1)), "grip": np.full((1, 3, 1), np.nan)}, {}], "not finite"),
    ],
)
def test_an_answer_that_is_none_is_an_error(serving: Any, connect: Any, answer: Any, says: str) -> None:
    policy = connect(serving("n1.7", get_action=lambda _: answer).address, "n1.7")
    with pytest.raises(PolicyError, match=says):
        policy.act([SEEN])


def test_a_late_answer_is_never_taken_for_the_next_one(serving: Any, connect: Any) -> None:
    late = threading.Event()
    answers = iter([0.8, 0.4])

    def get_action(_: object) -> Any:
        value = next(answers)
        if value == 0.8:
            late.wait(60)
        return [{"arm": np.full((1, 1, 1), value), "grip": np.ones((1, 1, 1))}, {}]

    policy = connect(serving("n1.6", get_action=get_action).address, "n1.6", timeouts=Timeouts(answer_s=0.1))
    with pytest.raises(PolicyError, match=r"did not answer within 0\.1 s"):
        policy.act([SEEN])
    late.set()
    policy._timeouts = Timeouts()
    policy.reset(1)
    (chunk,) = policy.act([SEEN])
    np.testing.assert_allclose(chunk.actions, [[0.02, 1.0]])


def test_a_server_that_dies_ends_the_episode_and_the_next_one_finds_its_successor(
    serving: Any, connect: Any, make_toy: Any
) -> None:
    first = serving("n1.7", get_action=lambda _: None)
    policy = connect(first.address, "n1.7", timeouts=Timeouts(connect_s=2.0, answer_s=0.1))
    world = make_toy()
    ended = run_episode(world, policy, 0, guard=RangeGuard(world.embodiment.action))
    assert (ended.outcome, ended.steps) == ("error", 0)
    first.close()
    serving("n1.7", port=first.port)
    policy._timeouts = Timeouts()
    policy.reset(1)
    assert len(policy.act([SEEN])) == 1


def test_nobody_there_is_told_with_what_to_start(connect: Any) -> None:
    with pytest.raises(TransportError, match=r"tcp://127\.0\.0\.1:9 failed: it did not answer.*run_gr00t_server\.py"):
        connect("tcp://127.0.0.1:9", "n1.7", timeouts=Timeouts(connect_s=0.1))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://10.0.0.5:5555", r"no keys.*ssh -N -L 5555:127\.0\.0\.1:5555 10\.0\.0\.5"),
        ("tcp://gpu.lab:5555", "no keys"),
        ("ws://127.0.0.1:8000", "is not an address"),
        ("tcp://127.0.0.1", "is not an address"),
    ],
)
def test_only_this_computer_is_asked(connect: Any, address: str, says: str) -> None:
    with pytest.raises(TransportError, match=says):
        connect(address, "n1.7")


def test_a_recipe_becomes_a_client(serving: Any) -> None:
    recipe = GrootRecipe(address=serving("n1.7").address, peer=NESTED)
    policy = build_policy(PolicySource(recipe, Path("mine.toml")), None, ARM)
    assert isinstance(policy, GrootPolicy)
    assert len(policy.act([SEEN])) == 1
    policy.close()
