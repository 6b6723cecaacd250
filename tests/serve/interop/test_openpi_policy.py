"""The client of openpi's protocol, against a server that speaks it as documented."""

from __future__ import annotations

import http
import http.server
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from vla_robot.cli.build import build_policy
from vla_robot.core.errors import ContractError, PolicyError, RecipeError, TransportError
from vla_robot.core.messages import Observation
from vla_robot.loop.control_loop import run_episode
from vla_robot.recipe import dump, parse
from vla_robot.recipe.peer import PeerRecipe
from vla_robot.recipe.policy import OpenpiRecipe, PolicyRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.safety.limits import RangeGuard
from vla_robot.serve.interop.mapping import PeerMapping, Timeouts
from vla_robot.serve.interop.openpi_policy import OpenpiPolicy
from vla_robot.serve.interop.openpi_wire import pack

from .peer_server import AHEAD, ARM, PEER, PeerServer

SEEN = Observation({"front": np.full((6, 8, 3), 200, np.uint8)}, np.array([0.25]), "lift", stamp_ns=7, step=3)


@pytest.fixture
def serving() -> Iterator[Callable[..., PeerServer]]:
    with ExitStack() as stack:
        yield lambda infer, **options: stack.enter_context(closing(PeerServer(infer, **options)))


@pytest.fixture
def connect() -> Iterator[Callable[..., OpenpiPolicy]]:
    with ExitStack() as stack:
        yield lambda address, **options: stack.enter_context(OpenpiPolicy(address, PeerMapping(PEER, ARM), **options))


def test_an_observation_arrives_in_the_servers_words(serving: Any, connect: Any) -> None:
    requests: list[Mapping[str, Any]] = []
    server = serving(lambda request: requests.append(request) or AHEAD)
    policy = connect(server.address)
    assert policy.metadata == {"reset_pose": [0.0]}
    (chunk,) = policy.act([SEEN])
    np.testing.assert_allclose(chunk.actions, [[0.02, 1.0]] * 3)
    assert (chunk.stamp_ns, chunk.step) == (7, 3)
    assert set(requests[0]) == {"observation/image", "observation/state", "prompt"}
    assert requests[0]["observation/image"].shape == (224, 224, 3)
    assert requests[0]["observation/state"].tolist() == [250.0]
    assert requests[0]["prompt"] == "lift"


def test_the_servers_own_time_is_told_apart_from_the_way(serving: Any, connect: Any) -> None:
    (timed,) = connect(serving(lambda _: {**AHEAD, "server_timing": {"infer_ms": 0.0}}).address).act([SEEN])
    assert timed.stages_ms["inference"] == 0.0 and timed.stages_ms["transport"] > 0
    (untimed,) = connect(serving(lambda _: {**AHEAD, "server_timing": {"infer_ms": "long"}}).address).act([SEEN])
    assert list(untimed.stages_ms) == ["server"]


def test_a_world_is_driven_to_its_end(serving: Any, connect: Any, make_toy: Any) -> None:
    server = serving(lambda _: AHEAD)
    world = make_toy()
    ended = run_episode(world, connect(server.address), 0, guard=RangeGuard(world.embodiment.action))
    assert (ended.outcome, ended.steps) == ("success", 5)
    assert world.x == pytest.approx(5 * 0.02)


def test_every_episode_has_a_connection_of_its_own(serving: Any, connect: Any) -> None:
    server = serving(lambda _: AHEAD)
    policy = connect(server.address)
    policy.reset(0)
    policy.act([SEEN])
    policy.reset(1)
    assert server.connections == 3


def test_an_error_of_the_server_ends_the_episode_with_its_last_line(serving: Any, connect: Any) -> None:
    trouble = 'Traceback (most recent call last):\n  File "policy.py"\nValueError: state has 7 numbers, not 8\n'
    answers = iter([trouble, AHEAD])
    policy = connect(serving(lambda _: next(answers)).address)
    with pytest.raises(PolicyError, match=r"failed: ValueError: state has 7 numbers, not 8$"):
        policy.act([SEEN])
    with pytest.raises(PolicyError, match="was lost; the next episode makes a new one"):
        policy.act([SEEN])
    policy.reset(0)
    assert len(policy.act([SEEN])) == 1


def test_a_server_that_dies_ends_the_episode_and_the_next_one_finds_its_successor(
    serving: Any, connect: Any, make_toy: Any
) -> None:
    asked = threading.Event()
    first = serving(lambda _: asked.set())  # gives nothing
    policy = connect(first.address)
    killer = threading.Thread(target=lambda: asked.wait() and first.close())
    killer.start()
    world = make_toy()
    ended = run_episode(world, policy, 0, guard=RangeGuard(world.embodiment.action))
    killer.join()
    assert (ended.outcome, ended.steps) == ("error", 0)
    assert ended.error is not None and "failed" in ended.error
    with pytest.raises(TransportError, match="no openpi server answers at ws://127"):
        policy.reset(1)
    serving(lambda _: AHEAD, port=first.port)
    policy.reset(1)
    assert len(policy.act([SEEN])) == 1


def test_a_late_answer_is_never_taken_for_the_next_one(serving: Any, connect: Any) -> None:
    late = threading.Event()
    answers = iter([{"actions": np.full((1, 2), 0.8)}, AHEAD])

    def infer(_: object) -> Mapping[str, Any]:
        answer = next(answers)
        if answer is not AHEAD:
            late.wait(60)
        return answer

    policy = connect(serving(infer).address, timeouts=Timeouts(answer_s=0.1))
    with pytest.raises(PolicyError, match=r"did not answer within 0\.1 s. This answer is lost"):
        policy.act([SEEN])
    late.set()
    policy._timeouts = Timeouts()
    policy.reset(1)
    (chunk,) = policy.act([SEEN])
    np.testing.assert_allclose(chunk.actions[0], [0.02, 1.0])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"action": np.zeros((1, 2))}, "has no 'actions'"),
        ({"actions": np.full((1, 2), np.inf)}, "not finite"),
        ("", "without a reason"),
    ],
)
def test_an_answer_that_is_none_is_an_error(serving: Any, connect: Any, answer: Any, says: str) -> None:
    policy = connect(serving(lambda _: answer).address)
    with pytest.raises(PolicyError, match=says):
        policy.act([SEEN])


@pytest.mark.parametrize("metadata", [b"\xc1", pack({})[:0], "Traceback\nRuntimeError: no GPU"])
def test_a_server_that_does_not_introduce_itself_is_told_at_the_start(serving: Any, metadata: Any) -> None:
    server = serving(lambda _: AHEAD, metadata=metadata)
    with pytest.raises(TransportError, match="no openpi server answers"):
        OpenpiPolicy(server.address, PeerMapping(PEER, ARM))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ws://10.0.0.5:8000", r"no keys.*ssh -N -L 8000:127\.0\.0\.1:8000 10\.0\.0\.5.*ws://127\.0\.0\.1:8000"),
        ("ws://gpu.lab:8000/", "no keys.*ssh"),
        ("ws://0.0.0.0:8000", "no keys"),
        ("ws://127.0.0.1:8000@gpu.lab:80", "not an address"),
        ("wss://127.0.0.1:8000", "not an address"),
        ("http://127.0.0.1:8000", "one looks like ws://"),
        ("ws://127.0.0.1", "not an address"),
        ("ws://127.0.0.1:99999", "not an address"),
        ("ws://127.0.0.1:8000/act", "not an address"),
    ],
)
def test_only_this_computer_is_asked(address: str, says: str) -> None:
    with pytest.raises(TransportError, match=says):
        OpenpiPolicy(address, PeerMapping(PEER, ARM))


def test_nobody_there_is_told_with_what_to_start() -> None:
    with pytest.raises(TransportError, match=r"no openpi server answers at ws://127\.0\.0\.1:9: .*serve_policy\.py"):
        OpenpiPolicy("ws://127.0.0.1:9", PeerMapping(PEER, ARM))


def test_a_redirection_is_not_followed() -> None:
    def elsewhere(connection: ServerConnection, _: Request) -> Response:
        response = connection.respond(http.HTTPStatus.FOUND, "")
        response.headers["Location"] = "ws://10.0.0.5:8000"
        return response

    with serve(lambda _: None, "127.0.0.1", 0, process_request=elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with pytest.raises(TransportError, match="cannot follow redirect"):
            OpenpiPolicy(f"ws://127.0.0.1:{port}", PeerMapping(PEER, ARM))


def test_a_web_server_is_not_mistaken_for_a_policy() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(TransportError, match="no openpi server answers"):
            OpenpiPolicy(f"ws://127.0.0.1:{web.server_port}", PeerMapping(PEER, ARM))
        web.shutdown()


def test_a_proxy_of_the_environment_is_not_asked(serving: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(connect(serving(lambda _: AHEAD).address).act([SEEN])) == 1


def source(address: str = "ws://127.0.0.1:9", peer: PeerRecipe = PEER) -> PolicySource:
    return PolicySource(OpenpiRecipe(address=address, peer=peer), Path("mine.toml"))


def test_a_recipe_becomes_a_client_with_its_token(serving: Any, tmp_path: Path) -> None:
    server = serving(lambda _: AHEAD)
    token = tmp_path / "token"
    token.write_text("secret-1\n")
    recipe = source(address=server.address, peer=PeerRecipe(10.0, PEER.images, PEER.action, PEER.state, token=token))
    policy = build_policy(recipe, None, ARM)
    assert isinstance(policy, OpenpiPolicy)
    policy.close()
    assert server.headers == ["Api-Key secret-1"]


def test_a_recipe_that_does_not_fit_the_world_is_refused_before_anybody_is_asked() -> None:
    recipe = source(peer=PeerRecipe(15.0, PEER.images, PEER.action))
    with pytest.raises(ContractError, match="are for 15 Hz, the world runs at 10 Hz"):
        build_policy(recipe, None, ARM)


def test_an_address_alone_does_not_say_what_the_numbers_mean() -> None:
    with pytest.raises(RecipeError, match=r"does not say what its numbers mean.*openpi_libero\.toml"):
        find_policy("ws://127.0.0.1:8000")


@pytest.mark.parametrize("text", ["", "two words", "two\nlines"])
def test_a_token_is_one_line(tmp_path: Path, text: str) -> None:
    token = tmp_path / "token"
    token.write_text(text)
    recipe = source(peer=PeerRecipe(10.0, PEER.images, PEER.action, token=token))
    with pytest.raises(RecipeError, match="must hold one line"):
        build_policy(recipe, None, ARM)


@pytest.mark.parametrize(
    ("lacks", "more", "says"),
    [
        ("peer", {}, "peer: this key is missing; it must be a table"),
        ("address", {}, "address: this key is missing"),
        ("", {"kind": "groot"}, r"peer\.generation: this key is missing; it must be one of n1\.5, n1\.6, n1\.7"),
        ("address", {"kind": "hold"}, "peer: this key is for kind 'openpi' or 'groot', not for 'hold'"),
    ],
)
def test_a_recipe_with_half_of_what_it_needs_is_refused(lacks: str, more: dict[str, Any], says: str) -> None:
    table = tomllib.loads(dump(source().recipe)) | more
    with pytest.raises(RecipeError, match=says):
        parse(PolicyRecipe, {key: value for key, value in table.items() if key != lacks}, "mine")
