"""The page's server: who may look, who may act, and what another site or another computer cannot do."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import TransportError
from vla_robot.transport import listener
from vla_robot.transport.listener import ROOM
from vla_robot.web.http_json import BoundedServer, JsonHandler
from vla_robot.web.latest_frame import LatestFrameBuffer
from vla_robot.web.server import ASSETS, MAX_BODY_BYTES, TOKEN_HEADER, Access, Listen, WebServer

SECRET = "operator-token"
IMAGE = np.zeros((4, 6, 3), np.uint8)
PATIENCE_S = 60.0

Connections = Callable[..., contextlib.AbstractContextManager[list[socket.socket]]]


class Site:
    """A server, and what was done through it."""

    def __init__(self, access: Access) -> None:
        self.board = LatestFrameBuffer()
        self.done: list[Mapping[str, Any]] = []
        self.web = WebServer(self.board, lambda: {"title": "toy"}, {"stop": self._stop}, access)
        self.host = self.web.url.removeprefix("http://").rstrip("/")
        self.port = int(self.host.rpartition(":")[2])

    def _stop(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if "refuse" in body:
            raise TransportError("the bridge did not answer 'stop'.")
        self.done.append(body)
        return {"stopped": True}

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=60)) as connection:
            connection.request(method, path, body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def act(self, headers: Mapping[str, str] | None = None, name: str = "stop", body: bytes = b"{}") -> tuple[int, Any]:
        status, told, _ = self.ask("POST", f"/act/{name}", body, headers)
        return status, json.loads(told)


@pytest.fixture
def open_site() -> Iterator[Callable[..., Site]]:
    with contextlib.ExitStack() as stack:

        def start(access: Access | None = None) -> Site:
            site = Site(access or Access(SECRET))
            stack.callback(site.web.close)
            return site

        yield start


def test_the_page_may_load_nothing_from_elsewhere_and_nobody_may_embed_it(open_site: Callable[..., Site]) -> None:
    site = open_site()
    for path in ASSETS:
        status, body, headers = site.ask("GET", path)
        assert status == 200 and body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


def test_the_page_names_no_address_and_holds_no_inline_script() -> None:
    from importlib.resources import files

    folder = files("vla_robot.web").joinpath("page")
    assert {name for name, _ in ASSETS.values()} == {entry.name for entry in folder.iterdir()}
    for entry in folder.iterdir():
        text = entry.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        outside = [line for line in text.splitlines() if "://" in line and not line.lstrip().startswith("//")]
        assert outside == []
    page = folder.joinpath("page.html").read_text("utf-8")
    assert "style=" not in page and "onclick" not in page


def test_a_scene_arrives_as_facts_and_pictures(open_site: Callable[..., Site]) -> None:
    site = open_site()
    site.board.post({"mode": "run", "state": np.array([0.5, np.nan])}, {"front": IMAGE, "wrist": IMAGE})
    status, body, _ = site.ask("GET", "/next?seen=0")
    (length,) = struct.unpack(">I", body[:4])
    facts = json.loads(body[4 : 4 + length])
    assert status == 200 and facts["number"] == 1 and facts["state"] == [0.5, None]
    assert [p["name"] for p in facts["pictures"]] == ["front", "wrist"]
    assert len(body) == 4 + length + sum(p["bytes"] for p in facts["pictures"])
    assert body[4 + length :].startswith(b"\xff\xd8")


def test_a_page_waits_for_the_next_scene_and_skips_what_it_missed(open_site: Callable[..., Site]) -> None:
    site = open_site()
    site.board.post({"k": 1}, {})
    posting = threading.Timer(0.05, lambda: [site.board.post({"k": k}, {}) for k in (2, 3)])
    posting.start()
    status, body, _ = site.ask("GET", "/next?seen=1")
    assert status == 200 and json.loads(body[4:])["k"] in (2, 3)
    posting.join()
    scene = site.board.next(1, timeout_s=1.0)
    assert scene is not None and scene.facts["k"] == 3


def test_only_the_token_may_act(open_site: Callable[..., Site]) -> None:
    site = open_site()
    assert site.act()[0] == 403
    assert site.act({TOKEN_HEADER: "wrong"})[0] == 403
    assert site.act({TOKEN_HEADER: "wröng".encode().decode("latin1")})[0] == 403
    assert site.done == []
    assert site.act({TOKEN_HEADER: SECRET}) == (200, {"stopped": True})
    assert site.done == [{}]


def test_a_read_only_page_lets_nobody_act(open_site: Callable[..., Site]) -> None:
    site = open_site(Access(operator=None))
    for token in ("", "None", SECRET):
        status, told = site.act({TOKEN_HEADER: token})
        assert status == 403 and "may only view" in told["error"]
    assert site.done == [] and site.web.operator_url is None


def test_what_a_page_may_do_is_told_to_it(open_site: Callable[..., Site]) -> None:
    site = open_site()
    assert json.loads(site.ask("GET", "/about")[1])["may"] == []
    assert json.loads(site.ask("GET", "/about", headers={TOKEN_HEADER: SECRET})[1])["may"] == ["stop"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8571"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/next"), ("GET", "/about"), ("POST", "/act/stop")])
def test_another_site_in_the_same_browser_is_refused(
    open_site: Callable[..., Site], headers: dict[str, str], method: str, path: str
) -> None:
    site = open_site()
    status, _, answer = site.ask(method, path, b"{}" if method == "POST" else None, {TOKEN_HEADER: SECRET, **headers})
    assert status == 403 and site.done == []
    assert "Access-Control-Allow-Origin" not in answer


def test_the_pages_own_origin_is_let_in(open_site: Callable[..., Site]) -> None:
    site = open_site()
    told = site.act({TOKEN_HEADER: SECRET, "Origin": f"http://{site.host}", "Sec-Fetch-Site": "same-origin"})
    assert told == (200, {"stopped": True})


def test_a_page_that_needs_a_token_for_looking_shows_nothing_without(open_site: Callable[..., Site]) -> None:
    site = open_site(Access(SECRET, watcher="watcher-token"))
    site.board.post({}, {})
    for path in ("/about", "/next"):
        assert site.ask("GET", path)[0] == 403
        assert site.ask("GET", path, headers={TOKEN_HEADER: "watcher-token"})[0] == 200
        assert site.ask("GET", path, headers={TOKEN_HEADER: SECRET})[0] == 200
    assert site.act({TOKEN_HEADER: "watcher-token"})[0] == 403
    assert site.web.watcher_url.endswith("#watcher-token")


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("stopp", b"{}", "did you mean 'stop'"),
        ("stop", b"[]", "must be a JSON object, got list"),
        ("stop", b"{", "not JSON"),
        ("stop", b"[" * 60_000, "not JSON"),
        ("stop", b"\xff", "not JSON"),
        ("stop", b'{"refuse": 1}', "did not answer 'stop'"),
    ],
)
def test_a_bad_request_is_told_why(open_site: Callable[..., Site], name: str, body: bytes, why: str) -> None:
    site = open_site()
    status, told = site.act({TOKEN_HEADER: SECRET}, name, body)
    assert status == 400 and why in told["error"]


def test_a_body_of_any_size_is_not_read(open_site: Callable[..., Site]) -> None:
    site = open_site()
    status, told = site.act({TOKEN_HEADER: SECRET, "Content-Length": str(MAX_BODY_BYTES + 1)})
    assert status == 400 and "up to 65536 bytes" in told["error"]


def until_ended(connection: socket.socket) -> bytes:
    """What came before the server hung up."""
    heard = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(4096):
            heard += chunk
    return heard


def until_answered(site: Site) -> tuple[int, Any]:
    """The operator's stop, asked again where it was not there whole in time: a busy computer takes longer."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return site.act({TOKEN_HEADER: SECRET})
        assert time.monotonic() < end_s, "the stop was never answered"


@pytest.mark.parametrize("says", [b"", b"POST /act/stop HTTP/1.1\r\nX-Slow: "])
def test_connections_that_ask_nothing_keep_no_operator_from_the_stop(
    open_site: Callable[..., Site], silent: Connections, says: bytes
) -> None:
    """64 of them were enough, for as long as they liked."""
    site, threads = open_site(), threading.active_count()
    with silent(site.port, 300, says):
        for _ in range(5):
            assert site.act({TOKEN_HEADER: SECRET}) == (200, {"stopped": True})
        assert threading.active_count() <= threads + sum(ROOM)
    assert len(site.done) == 5


def test_guests_that_poll_keep_no_operator_from_the_stop(open_site: Callable[..., Site], silent: Connections) -> None:
    site = open_site()
    with silent(site.port, 200, b"GET /next?seen=0 HTTP/1.1\r\nHost: " + site.host.encode() + b"\r\n\r\n"):
        assert site.act({TOKEN_HEADER: SECRET}) == (200, {"stopped": True})


@pytest.mark.parametrize(
    "says",
    [b"", b"\x16", b"GET / HTTP/1.1\r\nHo", b"POST /act/stop HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\n{"],
)
def test_a_request_that_is_never_whole_ends_its_connection(
    open_site: Callable[..., Site], silent: Connections, says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener.Listener.__init__, "__defaults__", (ROOM, 0.3))
    monkeypatch.setattr(JsonHandler, "request_s", 0.3)
    site = open_site()
    with silent(site.port, 1, says.replace(b"HOST", site.host.encode())) as (connection,):
        assert b"stopped" not in until_ended(connection)
    assert until_answered(site) == (200, {"stopped": True})


def test_a_server_loop_that_fails_is_told_and_begun_again(
    open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [RuntimeError("no memory for a selector")] * 2
    serve = BoundedServer.serve_forever

    def serve_forever(self: BoundedServer, poll_interval: float = 0.5) -> None:
        if broken:
            raise broken.pop()
        serve(self, poll_interval)

    monkeypatch.setattr(BoundedServer, "serve_forever", serve_forever)
    site = open_site()
    assert site.act({TOKEN_HEADER: SECRET}) == (200, {"stopped": True})
    assert caplog.text.count("failed and is restarted") == 2


def test_a_site_that_is_closed_at_once_is_closed() -> None:
    """Before its thread has begun to serve."""
    for _ in range(20):
        Site(Access(SECRET)).web.close()


def test_a_taken_port_is_told(open_site: Callable[..., Site]) -> None:
    port = int(open_site().host.rpartition(":")[2])
    with pytest.raises(TransportError, match="Choose another --port"):
        WebServer(LatestFrameBuffer(), dict, {}, Access(), Listen(port))


def test_off_this_computer_a_certificate_is_needed() -> None:
    with pytest.raises(TransportError, match=r"without a certificate, any computer between"):
        Listen(0, "192.168.1.20")
    with pytest.raises(TransportError, match="a browser cannot open"):
        Listen(0, "0.0.0.0", Path("cert.pem"))


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(TransportError, match="cannot serve the page"):
        WebServer(LatestFrameBuffer(), dict, {}, Access(), Listen(0, "127.0.0.1", tmp_path / "cert.pem"))


def test_with_a_certificate_the_page_is_encrypted(tmp_path: Path, silent: Connections) -> None:
    import shutil
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*make, *subject, "-keyout", key, "-out", cert], check=True, capture_output=True)
    board = LatestFrameBuffer()
    with contextlib.closing(WebServer(board, dict, {}, Access(SECRET), Listen(0, "127.0.0.1", cert, key))) as web:
        host = web.url.removeprefix("https://").rstrip("/")
        context = ssl.create_default_context(cafile=cert)
        with contextlib.closing(http.client.HTTPSConnection(host, context=context, timeout=60)) as connection:
            connection.request("GET", "/about", headers={"Origin": f"https://{host}"})
            assert connection.getresponse().status == 200
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as plain:
            plain.request("GET", "/about")
            with pytest.raises((http.client.HTTPException, OSError)):
                plain.getresponse()
        with (
            silent(int(host.rpartition(":")[2]), 100, b"\x16\x03\x01"),  # that never end their handshake
            contextlib.closing(http.client.HTTPSConnection(host, context=context, timeout=60)) as connection,
        ):
            connection.request("GET", "/about", headers={"Origin": f"https://{host}"})
            assert connection.getresponse().status == 200
