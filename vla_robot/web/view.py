"""Viewer of a bridge for a page: it sends no commands but, if allowed, a stop.

    watching thread   --view, status, clock-->  bridge
                      <------- tick ----------           --post--> LatestFrameBuffer --> pages
    page's thread     --stop, over StopLine--->  bridge

The bridge sends the newest tick only after the last one arrived here, so that a slow viewer delays no other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, VlaError, in_words
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.robot import Tick
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL, no_answer, unpack_tick
from vla_robot.transport.clock_sync import ClockSample, ClockSync
from vla_robot.transport.codec import MessageReader, read_answer, require_protocol, unpack_embodiment, unpack_error
from vla_robot.transport.keys import ClientSecurity
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode
from vla_robot.web.latest_frame import LatestFrameBuffer

CONNECT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
WARM_TIMEOUT_S = 0.3
"""Time limit of a stop over the open connection, before it is sent over a new one [s]."""

WARM_EVERY_S = 1.0
"""Period of using the open connection, so that the bridge keeps it and its loss is noticed [s]."""

TRY_TIMEOUT_S = 0.5
"""An unanswered stop is sent again after this time [s]; stopping twice is harmless."""

SLICE_S = 0.02
VIEW_EVERY_S = 0.1
ASK_EVERY_S = 0.25
LOST_AFTER_S = 1.5
"""After this long without a message from the bridge, the page shows that its view is old [s]."""

RATE_TICKS = 40
"""Number of ticks over which the shown rate is averaged."""

_LOG = logging.getLogger(__name__)

type Listener = Callable[[Tick, Embodiment], None]


class BridgeView(Closeable):
    """Connects to a running bridge as a viewer, and posts its ticks and status to a buffer."""

    def __init__(
        self,
        address: str,
        board: LatestFrameBuffer,
        *,
        security: ClientSecurity | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Clock | None = None,
        listener: Listener = lambda tick, embodiment: None,
    ) -> None:
        """
        Args:
            address: address of the bridge.
            board: buffer that gets every scene.
            security: this client's key and the bridge's public key; None on this computer.
            connect_timeout_s: time limit of the bridge's first answer.
            clock: stamps what arrives.
            listener: called with every tick, in the viewing thread.

        Raises:
            TransportError: no answer came in time, or the bridge speaks another version.
        """
        self.address = address
        self.ticks = 0
        """Number of ticks that arrived."""
        self._board = board
        self._security = security
        self._clock = clock or MonotonicClock()
        self._listener = listener
        self._over = threading.Event()
        with ClientSocket(address, security) as socket:
            self._take_about(_exchange(socket, Message("about", 0, {}), connect_timeout_s, self._clock, address))
        self._stop_line = StopLine(address, security, self._clock)
        self._link = _Link(self._clock.now_ns())
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._thread.start()

    def stop(self, reason: str) -> None:
        """Latch the e-stop at the bridge, until its controller arms it.

        Raises:
            TransportError: the bridge did not confirm the stop: use the arm's own switch.
        """
        self._stop_line.stop(reason)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._stop_line.close()

    def _take_about(self, reader: MessageReader) -> None:
        require_protocol(reader, BRIDGE_PROTOCOL, f"the bridge at {self.address}", "this side")
        self.embodiment = unpack_embodiment(reader.table("embodiment"))
        self.instruction = reader.text("instruction")

    def _run(self) -> None:
        """Run until closed; no message ends this thread, since the page would silently show an old picture."""
        with ClientSocket(self.address, self._security) as socket:
            while not self._over.is_set():
                try:
                    self._turn(socket)
                    self._stop_line.keep_warm()
                except VlaError as error:
                    self._tell_trouble(str(error))
                except Exception as error:
                    _LOG.exception("the view failed and continues")
                    self._tell_trouble(f"the view failed: {in_words(error)}")

    def _tell_trouble(self, trouble: str) -> None:
        self._link.trouble = trouble
        with contextlib.suppress(Exception):  # posting may be what failed
            self._post()
        self._over.wait(ASK_EVERY_S)

    def _turn(self, socket: ClientSocket) -> None:
        """Send the due requests, and handle one answer."""
        now_ns = self._clock.now_ns()
        for message in self._link.due(now_ns):
            socket.send(encode(message))
        frames = socket.receive(SLICE_S)
        if frames is not None:
            self._take(decode(frames))
        elif self._link.newly_lost(now_ns):
            self._post()

    def _take(self, message: Message) -> None:
        link, now_ns = self._link, self._clock.now_ns()
        link.heard_ns, link.trouble = now_ns, ""
        if message.kind == "error":
            link.trouble = str(unpack_error(MessageReader(message.body, "answer to a viewer")))
        elif message.kind == "tick":
            self._take_tick(message, now_ns)
        elif "mode" in message.body:
            link.status = message.body
            self._post()
        elif "received_ns" in message.body:
            link.take_stamps(MessageReader(message.body, "answer to clock"), message.seq, now_ns)
        elif "embodiment" in message.body:
            self._take_about(MessageReader(message.body, "answer to about"))

    def _take_tick(self, message: Message, now_ns: int) -> None:
        reader = MessageReader(message.body, "tick")
        tick = unpack_tick(reader.table("tick"))
        self.embodiment.check(tick.result.observation)
        self._link.take_tick(reader.integer("number"), reader.integer("episode"), tick, now_ns)
        self.ticks += 1
        self._listener(tick, self.embodiment)
        self._post()

    def _post(self) -> None:
        link = self._link
        facts, images = link.facts(self._clock.now_ns()), {}
        if link.tick is not None:
            images = link.tick.result.observation.images
        self._board.post({**facts, "instruction": self._shown_instruction()}, images)

    def _shown_instruction(self) -> str:
        tick = self._link.tick
        return self.instruction if tick is None else tick.result.observation.instruction


class _Link:
    """State of the bridge as known here, and the requests that are due."""

    def __init__(self, now_ns: int) -> None:
        self.heard_ns = now_ns
        self.status: Mapping[str, Any] = {}
        self.tick: Tick | None = None
        self.trouble = ""
        self._number = self._episode = self._seq = 0
        self._view_ns = self._ask_ns = 0
        self._asked_at: dict[int, int] = {}
        self._sync = ClockSync()
        self._arrivals_ns: deque[int] = deque(maxlen=RATE_TICKS)
        self._lost = False

    def due(self, now_ns: int) -> list[Message]:
        """Return the requests to send now; after a silence also "about", since the robot may be another one."""
        messages: list[Message] = []
        if now_ns >= self._view_ns:
            messages.append(self._message("view", {"seen": self._number}))
            self._view_ns = now_ns + round(VIEW_EVERY_S * NS_PER_S)
        if now_ns >= self._ask_ns:
            messages += [self._message("status", {}), self._message("clock", {})]
            self._asked_at = {messages[-1].seq: now_ns}
            self._ask_ns = now_ns + round(ASK_EVERY_S * NS_PER_S)
            messages += [self._message("about", {})] if self._lost else []
        return messages

    def take_tick(self, number: int, episode: int, tick: Tick, now_ns: int) -> None:
        self._number, self._episode, self.tick = number, episode, tick
        self._arrivals_ns.append(now_ns)
        self._view_ns = now_ns  # acknowledge at once: the next tick waits for it

    def take_stamps(self, reader: MessageReader, seq: int, now_ns: int) -> None:
        sent_ns = self._asked_at.pop(seq, None)
        if sent_ns is not None:
            stamps = reader.integer("received_ns"), reader.integer("answered_ns")
            self._sync.add(ClockSample(sent_ns, *stamps, now_ns))

    def newly_lost(self, now_ns: int) -> bool:
        """Return whether the bridge has just become silent, so that the page must show it."""
        before, self._lost = self._lost, now_ns - self.heard_ns > LOST_AFTER_S * NS_PER_S
        if self._lost and not before:
            # A restarted bridge counts from 1 again.
            self._number = 0
        return self._lost and not before

    def facts(self, now_ns: int) -> dict[str, Any]:
        """Return the present state as plain data for the page."""
        silent_s = (now_ns - self.heard_ns) / NS_PER_S
        link = {"silent_s": silent_s if silent_s > LOST_AFTER_S else 0.0, "trouble": self.trouble}
        return {
            "link": link,
            "mode": self.status.get("mode", "hold"),
            "reason": self.status.get("reason", ""),
            "counts": self.status.get("counts", {}),
            "cuts": self.status.get("cuts", []),
            "dry_run": self.status.get("dry_run", False),
            "running": self.status.get("running", False),
            "last_refusal": self.status.get("last_refusal", ""),
            "log_failure": self.status.get("log_failure", ""),
            "shown_hz": self._rate_hz(),
            **({} if self.tick is None else self._of_tick(self.tick, now_ns)),
        }

    def _of_tick(self, tick: Tick, now_ns: int) -> dict[str, Any]:
        result, observation = tick.result, tick.result.observation
        told: dict[str, Any] = {
            "tick": self._number,
            "episode": self._episode,
            "step": observation.step,
            "state": observation.state,
            "executed": result.executed,
            "success": result.success,
            "dropped_rows": tick.dropped_rows,
            "entropy": tick.entropy,
            "chunk_gap": tick.chunk_gap,
            "clamps": [
                {"dim": c.dim, "cause": c.cause, "wanted": c.wanted, "allowed": c.allowed} for c in result.clamps
            ],
            "capture_to_command_ms": (result.command_ns - tick.obs_stamp_ns) / NS_PER_MS if tick.obs_stamp_ns else None,
            "picture_age_ms": self._age_ms(observation.stamp_ns, now_ns),
        }
        # The status is older than a tick, unless the arm was stopped, which lasts beyond the last tick.
        if self.status.get("running") and self.status.get("mode") != "stopped":
            told |= {"mode": tick.mode, "reason": tick.reason}
        return told

    def _age_ms(self, stamp_ns: int, now_ns: int) -> float | None:
        with contextlib.suppress(TransportError):
            return (now_ns + self._sync.offset(now_ns).offset_ns - stamp_ns) / NS_PER_MS
        return None

    def _rate_hz(self) -> float:
        if len(self._arrivals_ns) < 2:
            return 0.0
        return (len(self._arrivals_ns) - 1) * NS_PER_S / max(self._arrivals_ns[-1] - self._arrivals_ns[0], 1)

    def _message(self, kind: str, body: Mapping[str, Any]) -> Message:
        self._seq += 1
        return Message(kind, self._seq, body)


def about(title: str, embodiment: Embodiment, **more: Any) -> dict[str, Any]:
    """Return the description of a page.

    Args:
        title: title of the page.
        embodiment: gives the names and units of the plots.
        more: further entries for the page.
    """
    return {
        "title": title,
        "robot": embodiment.name,
        "rate_hz": embodiment.rate_hz,
        "cameras": [camera.name for camera in embodiment.cameras],
        "state": [{"name": dim.name, "unit": dim.unit} for dim in embodiment.state],
        "action": [{"name": dim.name, "unit": dim.unit} for dim in embodiment.action.dims],
        **more,
    }


class StopLine:
    """Connection to a bridge that is kept open for the e-stop, so that a flood of new ones cannot delay it.

    A stop that is not answered over it is sent once more over a new connection.
    """

    def __init__(self, address: str, security: ClientSecurity | None, clock: Clock) -> None:
        """
        Args:
            address: address of the bridge.
            security: as for `ClientSocket`.
            clock: measures timeouts.

        Raises:
            TransportError: the address is malformed, or off loopback without keys.
        """
        self._address, self._security, self._clock = address, security, clock
        self._socket = ClientSocket(address, security)
        self._seq = 0
        self._used_ns = 0
        self._lock = threading.Lock()

    def stop(self, reason: str) -> None:
        """
        Raises:
            TransportError: the bridge did not confirm the stop.
        """
        with self._lock:
            try:
                self._ask(reason, WARM_TIMEOUT_S)
            except TransportError:
                self._renew()
                self._ask(reason, STOP_TIMEOUT_S)

    def keep_warm(self) -> None:
        """Use the connection if that is due; return at once. A refused connection is made anew."""
        now_ns = self._clock.now_ns()
        if now_ns - self._used_ns < WARM_EVERY_S * NS_PER_S or not self._lock.acquire(blocking=False):
            return
        try:
            self._used_ns = now_ns
            self._seq += 1
            self._socket.send(encode(Message("clock", self._seq, {})))
            while self._socket.receive(0) is not None:
                pass
        except TransportError:
            self._renew()
        finally:
            self._lock.release()

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def _ask(self, reason: str, timeout_s: float) -> None:
        self._seq += 1
        request = Message("stop", self._seq, {"reason": reason})
        _exchange(self._socket, request, timeout_s, self._clock, self._address)

    def _renew(self) -> None:
        self._socket.close()
        self._socket = ClientSocket(self._address, self._security)


def _exchange(socket: ClientSocket, request: Message, timeout_s: float, clock: Clock, address: str) -> MessageReader:
    """Send a request until it is answered, and return the answer; the request must be harmless when repeated.

    Raises:
        VlaError: the error that the bridge reports, or TransportError if it does not answer.
    """
    end_ns, try_ns = clock.now_ns() + round(timeout_s * NS_PER_S), 0
    while (now_ns := clock.now_ns()) < end_ns:
        if now_ns >= try_ns:
            try_ns = now_ns + round(TRY_TIMEOUT_S * NS_PER_S)
            socket.send(encode(request))
        if (frames := socket.receive(SLICE_S)) is None:
            continue
        answer = decode(frames)
        if answer.seq == request.seq:  # and not to an older request on the same connection
            return read_answer(answer, request.kind)
    raise no_answer(address, request.kind, timeout_s)
