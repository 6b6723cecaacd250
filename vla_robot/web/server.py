"""Server of the page: HTTP from the standard library, one thread per connection.

    GET  /                  the page; /page.css and the scripts beside it
    GET  /about             description, and the actions that the client may use: {"title", ..., "may": [NAME, ..]}
    GET  /next?seen=N       the newest scene when its number is not N, as `Scene.packed`; 204 after a second
    POST /act/NAME          an action: a JSON object in, a JSON object out; needs the operator's token

It listens on this computer only, unless it has a certificate. Then viewing needs a token as well. A token is
the part after the # of the page's address, which a browser does not send; the page sends it in the header X-VLA-Token.

Another site that is open in the same browser cannot use it: a request that names another Host (DNS rebinding) or
another Origin is refused, the token's header would need a permission that is never given, and the page may neither load
nor embed content from elsewhere, nor be embedded.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vla_robot.core.errors import TransportError, VlaError, unknown
from vla_robot.transport.listener import GUEST, OPERATOR
from vla_robot.transport.sockets import is_loopback
from vla_robot.web.http_json import BoundedServer, JsonHandler, Serving
from vla_robot.web.latest_frame import LatestFrameBuffer

LOOPBACK = "127.0.0.1"

MAX_BODY_BYTES = 1 << 16
WAIT_S = 1.0
"""How long a page waits for the next scene before it asks again [s]."""

LOOK_UP_S = 0.05
"""Period at which the server checks whether it is closed [s]."""

TOKEN_HEADER = "X-VLA-Token"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

ASSETS = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/traces.js": ("traces.js", "text/javascript; charset=utf-8"),
    "/drive.js": ("drive.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

type Action = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Access:
    """Tokens of the page. The operator's token also allows viewing.

    Attributes:
        operator: token for actions; None allows no client to act.
        watcher: token for viewing; None allows every client to view.
    """

    operator: str | None = field(default_factory=lambda: secrets.token_urlsafe(16))
    watcher: str | None = None

    def may_act(self, token: str) -> bool:
        return self.operator is not None and hmac.compare_digest(token.encode(), self.operator.encode())

    def may_look(self, token: str) -> bool:
        return self.watcher is None or hmac.compare_digest(token.encode(), self.watcher.encode()) or self.may_act(token)


@dataclass(frozen=True)
class Listen:
    """Address of the page.

    Attributes:
        port: 0 means any free one.
        host: the host name in the browser. Off this computer it needs a certificate.
        certificate: PEM file; None for plain HTTP.
        key: PEM file of the certificate's key.
    """

    port: int = 0
    host: str = LOOPBACK
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_loopback(self) -> bool:
        return is_loopback(f"tcp://{self.host}:{self.port}")

    def __post_init__(self) -> None:
        if self.certificate is None and not self.is_loopback:
            raise TransportError(
                f"'{self.host}' is reachable from other computers; without a certificate, any computer between could "
                "read and use the token that stops the arm. Use a certificate (docs/bridge.md), or stay on "
                f"{LOOPBACK}, with an SSH tunnel between computers."
            )
        if self.host in ("0.0.0.0", "::", ""):
            raise TransportError(
                f"a browser cannot open '{self.host}', and the page is served under one name "
                "only. Name this computer's own address in the network."
            )


class WebServer:
    """Serves the scenes of one buffer, in threads of its own."""

    def __init__(
        self,
        board: LatestFrameBuffer,
        about: Callable[[], Mapping[str, Any]],
        actions: Mapping[str, Action],
        access: Access,
        listen: Listen | None = None,
    ) -> None:
        """
        Args:
            board: buffer of the scenes.
            about: returns the description of the page.
            actions: the operator's actions by name.
            access: the tokens.
            listen: address; by default any free port of this computer.

        Raises:
            TransportError: the port is taken, or the certificate is invalid.
        """
        listen = listen or Listen()
        try:
            self._http = _Server(board, about, actions, access, listen)
        except (OSError, ssl.SSLError) as error:
            raise TransportError(
                f"cannot serve the page on {listen.host}:{listen.port}: {error.strerror or error}. "
                "Choose another --port; 0 takes a free one."
            ) from error
        scheme = "http" if listen.certificate is None else "https"
        self.url = f"{scheme}://{_in_url(listen.host)}:{self._http.server_port}/"
        self._access = access
        self._board = board
        self._serving = Serving(self._http, "web", LOOK_UP_S)

    @property
    def operator_url(self) -> str | None:
        """Address of the page for the operator; None without an operator's token."""
        return None if self._access.operator is None else f"{self.url}#{self._access.operator}"

    @property
    def watcher_url(self) -> str:
        """Address of the page for viewers."""
        return self.url if self._access.watcher is None else f"{self.url}#{self._access.watcher}"

    def close(self) -> None:
        """Stop the server. May be called twice."""
        self._board.close()
        self._serving.close()


class _Server(BoundedServer):
    def __init__(
        self,
        board: LatestFrameBuffer,
        about: Callable[[], Mapping[str, Any]],
        actions: Mapping[str, Action],
        access: Access,
        listen: Listen,
    ) -> None:
        self.board, self.about, self.actions, self.access = board, about, actions, access
        self.tls = _tls(listen)
        super().__init__(listen.host, listen.port, _Handler)
        names = [LOOPBACK, "localhost", "[::1]"] if listen.is_loopback else [_in_url(listen.host)]
        self.hosts = {f"{name}:{self.server_port}" for name in {*names, _in_url(listen.host)}}
        self.origins = {f"{'http' if self.tls is None else 'https'}://{host}" for host in self.hosts}

    def accepted(self, request: socket.socket) -> socket.socket:
        """Wrap the connection in TLS if there is a certificate."""
        if self.tls is None:
            return request
        # Here and not on the listening socket, where an unfinished handshake would block all others.
        request.settimeout(_Handler.timeout)
        wrapped = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        self.listener.replace(request, wrapped)
        try:
            wrapped.do_handshake()
        except OSError:
            self.listener.leave(wrapped)
            wrapped.close()
            raise
        return wrapped


class _Handler(JsonHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def rank(self) -> int:
        return OPERATOR if self.server.access.may_act(self._token) else GUEST

    def do_GET(self) -> None:  # noqa: N802
        place = urlsplit(self.path)
        if not self._is_ours():
            return
        if place.path in ASSETS:
            name, kind = ASSETS[place.path]
            self.reply(200, _asset(name), kind, HEADERS)
        elif not self.server.access.may_look(self._token):
            self._fail(403, "this page needs the token after the # of its address.")
        elif place.path == "/about":
            may = list(self.server.actions) if self.server.access.may_act(self._token) else []
            self._reply_json(200, {**self.server.about(), "may": may})
        elif place.path == "/next":
            self._next(parse_qs(place.query).get("seen", ["0"])[0])
        else:
            self._fail(404, "there is no such page.")

    def do_POST(self) -> None:  # noqa: N802
        if not self._is_ours():
            return
        name = self.path.removeprefix("/act/")
        try:
            body = self.read_object(MAX_BODY_BYTES)
            if not self.server.access.may_act(self._token):
                self._fail(403, "this page may only view. The terminal that started it shows the operator's address.")
                return
            if name not in self.server.actions:
                raise TransportError(unknown("action", name[:40], self.server.actions))
            self._reply_json(200, self.server.actions[name](body))
        except VlaError as error:
            self._fail(400, str(error))

    @property
    def _token(self) -> str:
        return self.headers.get(TOKEN_HEADER, "")

    def _is_ours(self) -> bool:
        """Return whether the request comes from our own page or a program; otherwise answer 403."""
        if not self.is_foreign(self.server.hosts, self.server.origins):
            return True
        self._fail(403, "this page answers under its own address only; a tunnel must keep its port.")
        return False

    def _next(self, seen: str) -> None:
        scene = self.server.board.next(int(seen) if seen.isdecimal() and len(seen) < 16 else 0, WAIT_S)
        if scene is None:
            self.reply(204, b"", "application/octet-stream", HEADERS)
        else:
            self.reply(200, scene.packed, "application/octet-stream", HEADERS)

    def _fail(self, status: int, message: str) -> None:
        self._reply_json(status, {"error": message})

    def _reply_json(self, status: int, body: Mapping[str, Any]) -> None:
        self.reply(status, json.dumps(body, allow_nan=False).encode(), "application/json", HEADERS)


def _asset(name: str) -> bytes:
    return files("vla_robot.web").joinpath("page", name).read_bytes()


def _tls(listen: Listen) -> ssl.SSLContext | None:
    if listen.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listen.certificate, listen.key)
    return context


def _in_url(host: str) -> str:
    """Write a host as in a URL.

    >>> _in_url("::1")
    '[::1]'
    """
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
