"""Many clients, one policy, over real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, PolicyError, SupersededError, TransportError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.server import POLICY_PROTOCOL, PolicyServer, Served, answering
from vla_robot.testing import toy_embodiment, toy_observation
from vla_robot.transport.codec import pack_observation
from vla_robot.transport.sockets import ANY_PORT, ClientSocket, ServerSocket
from vla_robot.transport.wake import Wake
from vla_robot.transport.wire import Message, decode, encode

EMBODIMENT = toy_embodiment()


def observation(value: float, step: int = 0) -> Observation:
    return toy_observation(EMBODIMENT, step, x=value, shade=int(value), stamp_ns=1000 + step)


@dataclass
class Sums:
    """Adds the frame's grey to the state; waits at the gate when it is shut; keeps what it saw."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    seen: list[Observation] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self.entered.release()
        assert self.gate.wait(60)
        self.seen += observations
        self.keys += keys
        if any(not np.isfinite(o.state).all() for o in observations):
            raise ContractError("the arm's state holds numbers that are not finite; check the driver.")
        return [
            ActionChunk(np.array([[o.state[0] + o.images["front"][0, 0, 0], 1.0]]), o.stamp_ns, o.step)
            for o in observations
        ]


PATIENCE_S = 60.0
"""For an answer that a busy computer may delay."""

Start = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Serves an act until the test ends, and gives the address."""
    with ExitStack() as stack:

        def start(act: Sums, *, at: str = ANY_PORT, embodiment: Embodiment | None = EMBODIMENT, batch: int = 8) -> str:
            batcher = Batcher(act, Line(batch, 2_000_000))
            wake = stack.enter_context(contextlib.closing(Wake()))
            socket = _bound(at, wake)
            stopped = threading.Event()
            server = PolicyServer(Served("sums", embodiment, batch), batcher, socket, wake)
            model = answering(batcher)
            network = threading.Thread(target=server.serve, args=(stopped.is_set,))
            network.start()

            def stop() -> None:
                act.gate.set()
                stopped.set()
                network.join()
                batcher.close()
                model.join()
                socket.close()

            stack.callback(stop)
            start.stop = stop  # pyright: ignore[reportFunctionMemberAccess]
            return socket.address

        yield start


def test_it_looks_like_any_policy(serve: Start) -> None:
    act = Sums()
    with RemotePolicy(serve(act)) as policy:
        assert (policy.name, policy.embodiment, policy.max_batch) == ("sums", EMBODIMENT, 8)
        policy.reset(0)
        chunk = policy.act([replace(observation(2.0, step=3), privileged={"cube_pos": np.zeros(3)})])[0]
    np.testing.assert_array_equal(chunk.actions, [[4.0, 1.0]])
    assert (chunk.stamp_ns, chunk.step) == (1003, 3)
    assert {"wait_for_batch", "transport"} <= set(chunk.stages_ms)
    assert not act.seen[0].privileged, "the simulator's truth stays at home"


def test_several_observations_of_one_client_are_all_answered_and_in_order(serve: Start) -> None:
    with RemotePolicy(serve(Sums())) as policy:
        chunks = policy.act([observation(float(v), step=v) for v in range(20)])
    assert [c.actions[0, 0] for c in chunks] == [2.0 * v for v in range(20)]
    assert [c.step for c in chunks] == list(range(20))


def test_eight_clients_at_once_each_get_their_own_answers(serve: Start) -> None:
    address, wrong = serve(Sums()), []

    def drive(client: int) -> None:
        with RemotePolicy(address) as policy:
            for step in range(30):
                value = client * 30 + step
                answer = policy.act([observation(float(value), step)])[0].actions[0, 0]
                if answer != value + value % 256:
                    wrong.append((client, step, answer))

    threads = [threading.Thread(target=drive, args=(c,)) for c in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    with RemotePolicy(address) as policy:
        status = policy.status()
    assert status["counts"] == {"answered": 240}


def test_a_nan_fails_for_its_client_only(serve: Start) -> None:
    act = Sums()
    address = serve(act)
    act.gate.clear()
    outcomes: dict[str, object] = {}

    def drive(name: str, value: float) -> None:
        with RemotePolicy(address) as policy:
            try:
                outcomes[name] = policy.act([observation(1.0) if name == "well" else _with_state(value)])[0].actions
            except ContractError as error:
                outcomes[name] = error

    threads = [threading.Thread(target=drive, args=each) for each in (("well", 1.0), ("ill", float("nan")))]
    for thread in threads:
        thread.start()
    act.entered.acquire(timeout=60)
    act.gate.set()
    for thread in threads:
        thread.join(60)
    assert "not finite" in str(outcomes["ill"])
    np.testing.assert_array_equal(outcomes["well"], [[2.0, 1.0]])


def _with_state(value: float) -> Observation:
    return replace(observation(1.0), state=np.array([value]))


def test_the_newest_request_of_a_client_wins(serve: Start) -> None:
    act = Sums()
    address = serve(act, batch=1)
    act.gate.clear()
    with RemotePolicy(address) as other, ClientSocket(address) as raw:
        session = _session(raw)
        _send_act(raw, 1, session, observation(1.0))
        assert act.entered.acquire(timeout=60), "the model is busy with the first"
        _send_act(raw, 2, session, observation(2.0))
        _send_act(raw, 3, session, observation(3.0))
        while not other.status()["counts"]:  # until the second was told; the two come by connections of their own
            pass
        act.gate.set()
        answers = {m.seq: m for m in (_next(raw) for _ in range(3))}
    assert answers[2].kind == "error" and answers[2].body["error"] == "SupersededError"
    assert answers[3].body["chunk"]["actions"][0, 0] == 6.0
    assert issubclass(SupersededError, PolicyError)


def test_what_came_too_late_is_not_computed(serve: Start) -> None:
    act = Sums()
    address = serve(act, batch=1)
    act.gate.clear()
    with RemotePolicy(address) as busy, RemotePolicy(address, answer_timeout_s=0.1) as hasty:
        thread = threading.Thread(target=lambda: busy.act([observation(1.0)]))
        thread.start()
        assert act.entered.acquire(timeout=60)
        with pytest.raises(PolicyError, match=r"within 0.1 s. This answer is lost"):
            hasty.act([observation(5.0)])
        hasty.status()  # is answered after the request was read, and then the server's deadline of 0.1 s began
        threading.Event().wait(0.2)
        act.gate.set()
        thread.join(60)
        busy.act([observation(1.0)])
        hasty._answer_timeout_s = PATIENCE_S
        assert hasty.act([observation(7.0)])[0].actions[0, 0] == 14.0, "the late answer to the older is passed over"
    assert 5.0 not in [o.state[0] for o in act.seen]


def test_a_client_that_reads_nothing_delays_nobody(serve: Start) -> None:
    address = serve(Sums())
    with RemotePolicy(address) as policy, ClientSocket(address) as deaf:
        session = _session(deaf)
        for seq in range(1, 200):
            with contextlib.suppress(TransportError):
                _send_act(deaf, seq, session, observation(1.0))
        for step in range(20):
            assert policy.act([observation(2.0, step)])[0].step == step


def test_a_client_that_dies_in_the_midst_of_a_request_delays_nobody(serve: Start) -> None:
    act = Sums()
    address = serve(act)
    with RemotePolicy(address) as policy:
        act.gate.clear()
        with ClientSocket(address) as dying:
            _send_act(dying, 1, _session(dying), observation(1.0))
            assert act.entered.acquire(timeout=60)
        act.gate.set()
        assert policy.act([observation(2.0)])[0].actions[0, 0] == 4.0


def test_the_status_does_not_wait_for_the_model(serve: Start) -> None:
    act = Sums()
    address = serve(act)
    act.gate.clear()
    with RemotePolicy(address) as policy, RemotePolicy(address) as watcher:
        thread = threading.Thread(target=lambda: policy.act([observation(1.0)]))
        thread.start()
        assert act.entered.acquire(timeout=60)
        assert watcher.status()["counts"] == {}
        act.gate.set()
        thread.join(60)


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("dance", {}, "unknown request 'dance'"),
        ("hello", {"protocol": 99}, "speaks protocol 99"),
        ("hello", {}, "'protocol' is missing"),
        ("act", {"session": "old"}, "started anew"),
        ("act", {"session": None}, "'session' must be str"),
        ("act", {"session": "SESSION", "row": 64, "budget_ms": 1.0, "key": ""}, "row 64 is outside"),
        ("act", {"session": "SESSION", "row": 0, "budget_ms": -1.0, "key": ""}, "is out of range"),
        ("act", {"session": "SESSION", "row": 0, "budget_ms": float("nan"), "key": ""}, "is out of range"),
        ("act", {"session": "SESSION", "row": 0, "budget_ms": 9.0, "key": "", "observation": {}}, "is missing"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_the_reason(
    serve: Start, kind: str, body: dict[str, object], reason: str
) -> None:
    address = serve(Sums())
    with RemotePolicy(address) as policy, ClientSocket(address) as raw:
        session = _session(raw)
        raw.send(encode(Message(kind, 1, {k: session if v == "SESSION" else v for k, v in body.items()})))
        answer = _next(raw)
        assert answer.kind == "error" and reason in answer.body["message"]
        raw.send([b"noise"])
        assert _next(raw).body["error"] == "TransportError"
        assert policy.act([observation(1.0)])[0].actions[0, 0] == 2.0, "the others notice nothing"


def test_a_nan_in_the_times_of_an_answer_is_an_error_of_that_answer(serve: Start) -> None:
    """It ended a whole run without its report: the times are summed and drawn."""

    class NoTimes(Sums):
        def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
            return [replace(chunk, stages_ms={"reason": np.nan}) for chunk in super().__call__(observations, keys)]

    with RemotePolicy(serve(NoTimes())) as policy, pytest.raises(PolicyError, match=r"no valid chunk: .*'reason'"):
        policy.act([observation(1.0)])


def test_a_long_instruction_is_refused_before_it_waits(serve: Start) -> None:
    act = Sums()
    with RemotePolicy(serve(act)) as policy:
        with pytest.raises(ContractError, match="characters, allowed are 2000"):
            policy.act([replace(observation(1.0), instruction="x" * 20_000)])
        assert act.seen == []
        assert policy.act([observation(1.0)])[0].actions[0, 0] == 2.0


def test_an_answer_that_cannot_travel_is_an_error_that_can(serve: Start) -> None:
    class Talkative(Sums):
        def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
            times = {} if observations[0].state[0] else {str(k): 1.0 for k in range(5000)}
            return [replace(chunk, stages_ms=times) for chunk in super().__call__(observations, keys)]

    with RemotePolicy(serve(Talkative())) as policy:
        with pytest.raises(PolicyError, match="the policy's answer cannot be sent"):
            policy.act([observation(0.0)])
        assert policy.act([observation(1.0)])[0].actions.shape == (1, 2), "the server is still there"


def test_a_server_that_was_started_anew_is_found_again_at_the_next_reset(serve: Start) -> None:
    act = Sums()
    address = serve(act)
    with RemotePolicy(address, answer_timeout_s=0.5) as policy:
        serve.stop()  # pyright: ignore[reportFunctionMemberAccess]
        with pytest.raises(PolicyError, match="did not answer"):
            policy.act([observation(1.0)])
        serve(Sums(), at=address)
        policy.reset(0)
        policy._answer_timeout_s = PATIENCE_S
        assert policy.act([observation(1.0)])[0].actions[0, 0] == 2.0


def test_another_policy_at_the_same_address_is_refused(serve: Start) -> None:
    address = serve(Sums())
    with RemotePolicy(address) as policy:
        serve.stop()  # pyright: ignore[reportFunctionMemberAccess]
        serve(Sums(), at=address, embodiment=None)
        with pytest.raises(ContractError, match="another policy now, 'sums'"):
            policy.reset(0)


def test_nobody_there_is_told_with_the_command_that_helps() -> None:
    with pytest.raises(TransportError, match=r"no policy server answers at .*vla serve"):
        RemotePolicy("tcp://127.0.0.1:9", connect_timeout_s=0.1)


def test_the_statistics_key_travels(serve: Start) -> None:
    act = Sums()
    with RemotePolicy(serve(act), statistics_key="bridge_orig") as policy:
        policy.act([observation(1.0)])
    assert act.keys == ["bridge_orig"]


def _bound(address: str, wake: Wake) -> ServerSocket:
    """ZeroMQ frees a port a moment after its socket was closed."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        with contextlib.suppress(TransportError):
            return ServerSocket(address, wake=wake)
        threading.Event().wait(0.05)
    raise AssertionError(f"{address} stays taken")


def _session(socket: ClientSocket) -> str:
    socket.send(encode(Message("hello", 0, {"protocol": POLICY_PROTOCOL})))
    return _next(socket).body["session"]


def _send_act(socket: ClientSocket, seq: int, session: str, what: Observation) -> None:
    body = {"session": session, "row": 0, "key": "", "budget_ms": 5e3, "observation": pack_observation(what)}
    socket.send(encode(Message("act", seq, body)))


def _next(socket: ClientSocket) -> Message:
    frames = socket.receive(PATIENCE_S)
    assert frames is not None, "no answer"
    return decode(frames)
