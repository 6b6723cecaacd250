"""`POST /act` as OpenVLA's clients speak it: bytes in, bytes out."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError, TransportError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.interop.rest import MAX_BODY_BYTES, RestServer, pack_array, read_observation, unpack_array
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.server import answering

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


class Echo:
    """Answers with the first bytes of its frames; keeps what it saw."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self.seen: list[tuple[Observation, str | None]] = []

    def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self.seen += zip(observations, keys, strict=True)
        if "nowhere" in keys:
            raise ContractError("unknown statistics key 'nowhere'; é")
        return [
            ActionChunk(np.arange(7 * self.rows, dtype=np.float64).reshape(-1, 7), o.stamp_ns, o.step)
            for o in observations
        ]


Post = Callable[..., tuple[int, Any, http.client.HTTPMessage]]


@pytest.fixture
def serving() -> Iterator[Callable[..., Post]]:
    with contextlib.ExitStack() as stack:

        def start(act: Echo, cameras: Sequence[str] = ()) -> Post:
            batcher = Batcher(act, Line(8, 0))
            thread = answering(batcher)
            stack.callback(lambda: (batcher.close(), thread.join()))
            server = stack.enter_context(contextlib.closing(RestServer(batcher, "echo", cameras, 0)))
            port = int(server.url.rpartition(":")[2].partition("/")[0])

            def post(body: Any, path: str = "/act", method: str = "POST", **headers: str) -> Any:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.request(method, path, data, {"Content-Type": "application/json", **headers})
                    answer = connection.getresponse()
                    return answer.status, json.loads(answer.read()), answer.headers
                finally:
                    connection.close()

            return post

        yield start


def test_the_plain_request_of_openvla(serving: Callable[..., Post]) -> None:
    act = Echo()
    status, body, _ = serving(act)({"image": pack_array(IMAGE), "instruction": "lift", "unnorm_key": "bridge_orig"})
    assert status == 200
    assert body == {"__numpy__": base64.b64encode(np.arange(7.0).tobytes()).decode(), "dtype": "<f8", "shape": [7]}
    observation, key = act.seen[0]
    np.testing.assert_array_equal(observation.images["image"], IMAGE)
    assert (observation.instruction, key) == ("lift", "bridge_orig")


def test_the_double_encoded_request_gets_a_string_of_json(serving: Callable[..., Post]) -> None:
    inner = json.dumps({"image": pack_array(IMAGE), "instruction": "lift"})
    _, body, _ = serving(Echo())({"encoded": inner})
    assert isinstance(body, str)
    np.testing.assert_array_equal(unpack_array(json.loads(body), "answer"), np.arange(7.0))


def test_openvla_oft_sends_two_cameras_and_a_state_and_gets_a_list(serving: Callable[..., Post]) -> None:
    act = Echo(rows=3)
    request = {
        "full_image": pack_array(IMAGE),
        "wrist_image": pack_array(IMAGE + 1),
        "state": pack_array(np.arange(8.0)),
        "instruction": "open the drawer",
    }
    _, body, _ = serving(act, cameras=("front", "wrist"))(request)
    assert [unpack_array(row, "row")[0] for row in body] == [0, 7, 14]
    observation, _ = act.seen[0]
    np.testing.assert_array_equal(observation.images["wrist"], IMAGE + 1)
    np.testing.assert_array_equal(observation.state, np.arange(8.0))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"instruction": "go"}, "there is no image"),
        ({"image": pack_array(IMAGE)}, "'instruction' is missing"),
        ({"image": pack_array(IMAGE), "instruction": 3}, "is not text"),
        ({"image": pack_array(IMAGE.astype(np.float32)), "instruction": "go"}, "must be (H, W, 3) uint8"),
        ({"image": pack_array(IMAGE[..., :1]), "instruction": "go"}, "shape [2, 3, 1]"),
        ({"image": pack_array(IMAGE), "instruction": "go", "unnorm_key": "nowhere"}, "unknown statistics key"),
        ({"image": pack_array(IMAGE), "instruction": "go", "unnorm_key": 1}, "'unnorm_key' must be text"),
        ({"image": pack_array(IMAGE), "instruction": "go", "imag": 1}, "did you mean 'image'"),
        ({"encoded": "{}", "image": 1}, "only key"),
        ({"encoded": "["}, "not JSON"),
        ([1], "must be a JSON object"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}, "instruction": "go"}, "dtype '|O' is none of"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [9]}, "instruction": "go"}, "3 bytes do not make"),
        ({"image": {"__numpy__": "!", "dtype": "|u1", "shape": [1]}, "instruction": "go"}, "is not base64"),
        ({"image": {"__numpy__": "", "dtype": "|u1", "shape": [2**40]}, "instruction": "go"}, "shape must be"),
        ({"image": {"__numpy__": "", "dtype": "|u1", "shape": "x"}, "instruction": "go"}, "shape must be"),
        ({"image": {"__numpy__": "", "dtype": "i4,i4", "shape": [0]}, "instruction": "go"}, "is none of"),
        ({"image": "a picture", "instruction": "go"}, "as json_numpy writes it"),
        ({"image": [["x"]], "instruction": "go"}, "not a list of numbers"),
        ({"image": pack_array(IMAGE), "instruction": "go", "state": [10**400]}, "not a list of numbers"),
        ({"image": pack_array(IMAGE), "instruction": "x" * 8_000_000}, "characters, allowed are 2000"),
        (b'{"image": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"image": [' + b"[]," * 100_000 + b"[]]}", "at most 65536 values"),
    ],
)
def test_a_failure_is_the_word_error_with_status_200_and_the_reason_in_a_header(
    serving: Callable[..., Post], body: Any, reason: str
) -> None:
    post = serving(Echo())
    status, answer, headers = post(body)
    assert (status, answer) == (200, "error")
    assert reason in headers["X-VLA-Error"]
    assert post({"image": pack_array(IMAGE), "instruction": "go"})[1]["shape"] == [7], "and it answers the next"


def test_a_body_that_is_too_large_is_not_read(serving: Callable[..., Post]) -> None:
    for length in ("9" * 5000, "\xb2", "-1", ""):
        assert serving(Echo())(b"", **{"Content-Length": length})[1] == "error"
    _, answer, headers = serving(Echo())(b"", **{"Content-Length": str(MAX_BODY_BYTES + 1)})
    assert answer == "error" and "Content-Length" in headers["X-VLA-Error"]


def test_health_and_strange_paths(serving: Callable[..., Post]) -> None:
    post = serving(Echo())
    status, body, _ = post({}, path="/health", method="GET")
    assert (status, body["status"], body["policy"], body["waiting"]) == (200, "ok", "echo", 0)
    assert post({}, path="/")[0] == 404
    assert post({}, path="/act", method="GET")[0] == 404


def test_a_taken_port_is_told() -> None:
    batcher = Batcher(Echo(), Line(1, 0))
    with contextlib.closing(RestServer(batcher, "echo", (), 0)) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{port}"):
            RestServer(batcher, "echo", (), port)


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", "<i8", "|b1"])
def test_arrays_come_back_as_they_were(dtype: str) -> None:
    array: NDArray[Any] = np.arange(12).astype(dtype).reshape(3, 4)
    back = unpack_array(json.loads(json.dumps(pack_array(array))), "x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_a_policy_of_one_named_camera_takes_the_contracts_name_and_its_own() -> None:
    for field in ("image", "full_image", "front"):
        request = {field: pack_array(IMAGE), "instruction": "go"}
        assert list(read_observation(request, ["front"]).images) == ["front"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/act"), ("GET", "/health")])
def test_no_page_in_a_browser_is_answered(
    serving: Callable[..., Post], headers: dict[str, str], method: str, path: str
) -> None:
    act = Echo()
    post = serving(act)
    status, body, told = post({"image": pack_array(IMAGE), "instruction": "go"}, path, method, **headers)
    assert status == 403 and "no page of a browser" in body["detail"] and act.seen == []
    assert "Access-Control-Allow-Origin" not in told


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost:8000", "localhost", "[::1]:8000"])
def test_a_tunnel_may_begin_at_another_port(serving: Callable[..., Post], host: str) -> None:
    assert serving(Echo())({"image": pack_array(IMAGE), "instruction": "go"}, Host=host)[1]["shape"] == [7]


def test_a_client_that_hangs_up_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the head, in the body, before its answer and in the midst of it."""
    let_go = threading.Event()

    def act(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        let_go.wait(60)
        return [ActionChunk(np.zeros((4096, 7)), o.stamp_ns, o.step) for o in observations]

    batcher = Batcher(act, Line(8, 0))
    thread = answering(batcher)
    body = json.dumps({"image": pack_array(IMAGE), "instruction": "go"}).encode()
    head = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.closing(RestServer(batcher, "echo", (), 0)) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        for part in (b"", head[:20], head, head + body[:9], head + body, head + body):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(part)
                # Hanging up with data unread resets the connection, as a process that is killed does.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        let_go.set()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("POST", "/act", body)
            assert connection.getresponse().status == 200, "others are answered"
    batcher.close()
    thread.join()
    assert "Traceback" not in capfd.readouterr().err
    assert [record.message for record in caplog.records if record.exc_info] == []


def test_silent_connections_keep_no_robot_out(
    silent: Callable[..., contextlib.AbstractContextManager[object]],
) -> None:
    batcher = Batcher(Echo(), Line(8, 0))
    thread = answering(batcher)
    with contextlib.closing(RestServer(batcher, "echo", (), 0)) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with (
            silent(port, 150),
            silent(port, 150, b"POST /act HTTP/1.1\r\nX-Slow: "),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection,
        ):
            connection.request("POST", "/act", json.dumps({"image": pack_array(IMAGE), "instruction": "go"}))
            assert connection.getresponse().status == 200
    batcher.close()
    thread.join()
