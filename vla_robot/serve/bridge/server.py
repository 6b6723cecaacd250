"""The bridge's sockets and control clock: it answers messages between deadlines, and the arm ticks at each deadline.

    |<------------- period ------------->|
    tick  publish   messages ...   sleep  tick

Between episodes there is no deadline: requests are answered first, and viewers get the cameras' frames.

The protocol is described in docs/bridge.md. Everything runs in the thread that calls `serve`.
"""

from __future__ import annotations

import contextlib
import hmac
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.embodiment import require_fit
from vla_robot.core.errors import BusyError, ContractError, SessionError, TransportError, VlaError, WorldError, unknown
from vla_robot.core.messages import Observation, StepResult
from vla_robot.core.ports import Streamed
from vla_robot.core.robot import Mode, Tick
from vla_robot.core.seeds import require_seed
from vla_robot.serve.bridge.bridge import NOTHING_PROCESSED, Bridge
from vla_robot.serve.bridge.camera_frames import FramesUnderWay
from vla_robot.serve.bridge.idle_camera_poll import IdleCameraPoll
from vla_robot.serve.bridge.viewers import Viewers
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL, pack_tick, pack_time_limits
from vla_robot.transport.codec import (
    MessageReader,
    pack_embodiment,
    pack_error,
    pack_observation,
    require_protocol,
    unpack_action_chunk,
    unpack_embodiment,
)
from vla_robot.transport.limits import RateLimit
from vla_robot.transport.sequence import SequenceGuard
from vla_robot.transport.wire import UNNUMBERED, Buffer, Message, decode, encode

CREDIT = 4
"""Most unacknowledged ticks. More would queue up in a slow network and arrive old."""

RESEND_S = 0.25
"""Resend the newest tick if it is unacknowledged for this long [s]."""

IDLE_S = 0.05
"""How long the server waits for a message when no clock is running [s]."""

MARGIN_NS = 1_200_000
"""Polling a socket may return 1 ms late: the last part before a deadline is slept on the clock [ns]."""

SILENT_S = 2.0
"""A controller that is silent for this long may be replaced by another one [s]."""

DEAF_S = 0.1
"""A longer pause between two reads of the socket [s] does not count as the controller's silence: the arm was busy."""

ASKED_AT_ONCE = 50
"""Messages that are answered at once while the arm is reset, so that a flood of messages delays no motion."""

WHILE_RESETTING = ("stop", "status", "about", "clock", "watch", "view")
"""Requests that are answered while the arm is being reset: those that do not move it."""

REQUESTS_PER_TICK = 20
BURST = 200
"""Rate limit of one client; a controller sends about five requests per tick."""

SHOWN_CHARS = 200
"""Longest reason of a stop that is shown [characters]."""

NO_SESSION = "the bridge was started anew, or another controller has the arm by now."

ENDED = "the bridge was ended"
"""Reason of an episode that the bridge's end stopped."""


class Socket(Protocol):
    """The server's socket; `ServerSocket` is one."""

    def receive(self, timeout_s: float) -> tuple[bytes, list[Buffer]] | None: ...

    def send(self, peer: bytes, frames: list[Buffer]) -> bool: ...

    def user_of(self, peer: bytes) -> str: ...


class Pace(Protocol):
    """Schedule of the ticks; `Ticker` keeps absolute deadlines."""

    missed: int

    def next_ns(self) -> int:
        """Return the time of the next tick [ns]."""
        ...


@dataclass
class Stream:
    """The ticks on their way to the controller.

    While the network keeps up, each tick is sent once and in order. Otherwise the newest tick replaces those
    that wait: their numbers are missing at the controller, which marks the gap. Only the ticks of a ramp to rest
    are queued: no answer to them is expected, so their age does not matter.
    Attributes:
        peer: connection of the stream; None until the controller sends `watch`.
        number: number of the newest tick.
        newest: the newest tick; None before the first of an episode.
        unsent: (number, tick) of ticks that wait to be sent.
        seen: highest number that arrived.
        sent: highest number that was sent.
        sent_ns: time of the last sending.
        replaced: number of ticks that a newer one replaced before they were sent.
        frames: frames that arrived or are on their way.
        heard: times at which the newest `watch` was sent and received, each on its own clock [ns], for the next tick.
    """

    peer: bytes | None = None
    number: int = 0
    newest: Tick | None = None
    unsent: deque[tuple[int, Tick]] = field(default_factory=deque[tuple[int, Tick]])
    seen: int = 0
    sent: int = 0
    sent_ns: int = 0
    replaced: int = 0
    frames: FramesUnderWay = field(default_factory=FramesUnderWay)
    heard: dict[str, int] = field(default_factory=dict[str, int])

    def push(self, tick: Tick, ramp: Sequence[Tick] = ()) -> None:
        """Add a tick; `ramp` holds the ticks before it that brought the arm to rest."""
        self.replaced += len(self.unsent)
        self.unsent.clear()
        for pushed in (*ramp, tick):
            self.number += 1
            self.unsent.append((self.number, pushed))
        self.newest = tick

    def due(self, now_ns: int) -> tuple[int, Tick] | None:
        """Return the number and the tick to send now, and note it as sent; None if there is none."""
        if self.peer is None or self.newest is None or self.seen >= self.number:
            return None
        fresh = self.unsent and self.sent - self.seen < CREDIT
        lost = self.sent > self.seen and now_ns - self.sent_ns > RESEND_S * NS_PER_S
        if not (fresh or lost):
            return None
        if lost:
            self.frames.give_up(self.seen)
        if fresh:
            due = self.unsent.popleft()
        else:
            due = self.number, self.newest
            self.replaced += sum(number < self.number for number, _ in self.unsent)
            self.unsent.clear()
        self.sent, self.sent_ns = due[0], now_ns
        return due


@dataclass
class Controller:
    """The client that commands the arm."""

    peer: bytes | None = None
    session: str = ""
    heard_ns: int = 0
    stream: Stream = field(default_factory=Stream)


class BridgeServer:
    """Serves one bridge to one controller, and its state to viewers."""

    def __init__(
        self,
        bridge: Bridge,
        socket: Socket,
        clock: Clock | None = None,
        jpeg_quality: Mapping[str, int] | None = None,
        pace: Callable[[Clock, int], Pace] = Ticker,
        dry_run: bool = False,
    ) -> None:
        """
        Args:
            bridge: the bridge to serve.
            socket: bound socket; the caller closes it.
            clock: the clock that stamps the arm's frames.
            jpeg_quality: camera -> quality of frames sent as JPEG; other cameras' frames are sent raw.
            pace: makes an episode's schedule from a clock and a period [ns].
            dry_run: reported in the status: the arm gets no commands.
        """
        self._pace = pace
        self._dry_run = dry_run
        self._bridge = bridge
        self._socket = socket
        self._clock = clock or MonotonicClock()
        self._jpeg_quality = dict(jpeg_quality or {})
        rate_hz = bridge.arm.embodiment.rate_hz
        self._period_ns = round(NS_PER_S / rate_hz)
        self._limit = RateLimit(REQUESTS_PER_TICK * rate_hz, BURST, self._clock, exempt={"stop"})
        self._guard = SequenceGuard()
        self._controller = Controller()
        self._viewers = Viewers(self._clock)
        self._idle_cameras = IdleCameraPoll(bridge.arm, self._clock, self._period_ns)
        self._ticker: Pace | None = None
        self._listened_ns = self._clock.now_ns()
        self._should_stop: Callable[[], bool] = lambda: False
        self._resetting = False
        self._put_off: list[tuple[bytes, Message]] = []
        self._missed = 0
        self._last_refusal = ""
        self._open_requests: dict[str, Callable[[bytes, int, MessageReader], dict[str, Any] | None]] = {
            "hello": self._hello,
            "status": lambda peer, seq, fields: self.status(),
            "stop": self._stop,
            "clock": self._stamps,
            "watch": self._watch,
            "about": self._about,
            "view": self._view,
        }
        self._commands: dict[str, Callable[[MessageReader], dict[str, Any]]] = {
            "reset": self._reset,
            "chunk": self._chunk,
            "end": self._end,
            "arm": self._arm,
            "look": self._look,
            "close": self._close,
        }

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Tick and answer until `should_stop`, which is called at least 20 times a second; then the arm holds."""
        self._should_stop = should_stop
        try:
            while not should_stop():
                try:
                    self._turn()
                except Exception as error:  # a bug: the arm is stopped, and requests are still answered
                    self._fail(error)
        finally:
            self._bridge.end(ENDED)

    def _turn(self) -> None:
        """Serve one period of the arm's clock, or wait once for a message if no clock is running."""
        while self._put_off:
            self._answer(*self._put_off.pop(0))
        if not self._bridge.running:
            self._rest()
        elif self._ticker is None or self._bridge.lockstep:
            self._answer_for(IDLE_S)
        elif self._answer_until(self._ticker.next_ns()):
            self._tick()
        self._publish()

    def _fail(self, error: Exception) -> str:
        """Stop the arm after a failure of this server; return the failure as text."""
        told = self._bridge.faults.add("bridge", error)
        self.emergency_stop(f"a failure of the bridge: {told}")
        return told

    def emergency_stop(self, cause: str) -> None:
        """Stop the arm now, in the serving thread; it stays stopped until it is armed."""
        self._bridge.stop_again()
        self._bridge.emergency_stop(cause)
        self._tick()

    @property
    def unstopped(self) -> str:
        """Why the arm did not execute its last stop; empty if it did."""
        return self._bridge.unstopped

    def interrupted(self) -> bool:
        """Return whether an arm that is being reset must stop moving, after a stop or when its controller gave up.

        The arm calls this several times a second. It answers requests that do not move the arm, including a stop.
        """
        try:
            for _ in range(ASKED_AT_ONCE):
                if not self._answer_for(0.0):
                    break
            return self._should_stop() or bool(self._bridge.watchdog.stopped_by or self._put_off)
        except Exception as error:  # a bug of the server, not of the arm
            self._fail(error)
            return True

    def status(self) -> dict[str, Any]:
        """Return the status as plain data; see docs/bridge.md."""
        observation = self._bridge.observation
        mode, reason = self._standing()
        return {
            "mode": mode,
            "reason": reason,
            "last_refusal": self._last_refusal,
            "log_failure": self._bridge.faults.present("log"),
            "episode": self._bridge.episode,
            "running": self._bridge.running,
            "dry_run": self._dry_run,
            "step": 0 if observation is None else observation.step,
            "ticks": self._viewers.number,
            "arm_stages_ms": {stage: times.quantiles_ms() for stage, times in self._bridge.arm_stages.items()},
            "cuts": self._viewers.cuts(),
            "watchdog": dict(self._bridge.watchdog.counts),
            "counts": {
                **self._guard.counts,
                "dropped_rows": self._bridge.dropped_rows,
                "refused": self._bridge.refused,
                "too_many": self._limit.refused,
                "missed_ticks": self._missed + (0 if self._ticker is None else self._ticker.missed),
                "frames_replaced": self._controller.stream.replaced,
                **self._bridge.faults.counts,
            },
        }

    def _standing(self) -> tuple[Mode, str]:
        """Return the present mode, and why it is not "run"."""
        newest, stopped_by = self._controller.stream.newest, self._bridge.watchdog.stopped_by
        if self._bridge.running and newest is not None and not stopped_by:
            return newest.mode, newest.reason
        idle = "the arm is being reset" if self._resetting else "no episode is running"
        mode, reason = ("stopped", stopped_by) if stopped_by else ("hold", idle)
        unseen = self._idle_cameras.trouble if self._viewers else ""  # without a viewer the cameras are not read
        return mode, "; ".join(filter(None, (reason, self._bridge.unstopped, unseen)))

    def _rest(self) -> None:
        """Serve without an episode: answer requests first; if none comes, send viewers the cameras' frames."""
        wait_s = min(IDLE_S, self._idle_cameras.due_in_s) if self._viewers else IDLE_S
        if self._answer_for(wait_s) or not self._viewers or self._idle_cameras.due_in_s > 0:
            return
        observation = self._idle_cameras.look()
        if observation is not None:
            self._viewers.push(self._idle_tick(observation))

    def _idle_tick(self, observation: Observation) -> Tick:
        """Return a tick without an action; since the arm did not move, the task's success is unchanged."""
        success = self._viewers.newest is not None and self._viewers.newest.result.success
        result = StepResult(observation, None, success, terminated=False, truncated=False)
        return Tick(result, *self._standing(), NOTHING_PROCESSED, 0, 0)

    def _answer_until(self, deadline_ns: int) -> bool:
        """Answer messages and send due set points until the deadline; return whether it was reached."""
        while (left_ns := deadline_ns - self._clock.now_ns() - MARGIN_NS) > 0:
            if left_ns > self._period_ns:
                return True  # the clock went back: tick now
            # In slices, since a resend may become due in between.
            self._answer_for(min(left_ns / NS_PER_S, IDLE_S, self._set_point_in_s()))
            if self._should_stop():
                return False  # also here: the terminal's e-stop does not wait for the end of a period
            self._publish()
            self._send_set_point()
        self._clock.sleep_until_ns(deadline_ns)
        self._send_set_point()
        return True

    def _set_point_in_s(self) -> float:
        """Return the time until the next set point [s]; infinite for an arm of one command per tick."""
        if not isinstance(self._bridge.arm, Streamed):
            return np.inf
        return max(self._bridge.arm.next_set_point_ns - self._clock.now_ns(), 0) / NS_PER_S

    def _send_set_point(self) -> None:
        """Send a set point if it is due. An arm that fails here is stopped, as in a tick."""
        arm = self._bridge.arm
        if not isinstance(arm, Streamed) or not self._bridge.running:
            return
        if self._clock.now_ns() + MARGIN_NS >= arm.next_set_point_ns:
            self._clock.sleep_until_ns(min(arm.next_set_point_ns, self._clock.now_ns() + MARGIN_NS))
            self._guarded(arm.send_set_point)

    def _answer_for(self, timeout_s: float) -> bool:
        """Wait for one message and answer it; return whether one came."""
        received = self._listen(timeout_s)
        if received is None:
            return False
        peer, frames = received
        try:
            request = decode(frames)
        except Exception as error:  # an unreadable message requests nothing
            told = error if isinstance(error, VlaError) else TransportError(self._bridge.faults.add("bridge", error))
            self._send_error(peer, UNNUMBERED, told)
        else:
            self._answer(peer, request)
        return True

    def _listen(self, timeout_s: float) -> tuple[bytes, list[Buffer]] | None:
        """Receive one message. A time in which the bridge did not listen is not counted as its controller's silence."""
        deaf_ns = self._clock.now_ns() - self._listened_ns
        if deaf_ns > DEAF_S * NS_PER_S:
            self._controller.heard_ns += deaf_ns
        received = self._socket.receive(timeout_s)
        self._listened_ns = self._clock.now_ns()
        return received

    def _tick(self) -> None:
        if not self._bridge.running:
            return
        self._guarded(lambda: self._push(self._bridge.tick()))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Run an action of the arm, and stop the arm if it raises."""
        try:
            act()
        except Exception as error:
            # The arm itself failed. A person must look at it before it moves again.
            self._bridge.fail(error)
            if self._bridge.running:
                self._push(self._bridge.tick())

    def _push(self, tick: Tick) -> None:
        ramp = self._bridge.take_ramp()
        for earlier in ramp:
            self._viewers.push(earlier)
        self._viewers.push(tick)
        # In lockstep a controller waits for the one tick of its action, so it gets no ramp.
        self._controller.stream.push(tick, () if self._bridge.lockstep else ramp)

    def _publish(self) -> None:
        stream = self._controller.stream
        while (due := stream.due(self._clock.now_ns())) is not None and stream.peer is not None:
            number, tick = due
            observation = stream.frames.pick(number, tick.result.observation)
            lean = replace(tick, result=replace(tick.result, observation=observation))
            self._socket.send(stream.peer, self._packed(number, lean, stream.heard))
            stream.heard = {}
        for peer in self._viewers.due():
            assert self._viewers.newest is not None
            if not self._socket.send(peer, self._packed(self._viewers.number, self._viewers.newest)):
                self._viewers.drop(peer)

    def _packed(self, number: int, tick: Tick, heard: Mapping[str, int] | None = None) -> list[Buffer]:
        body = {"number": number, "episode": self._bridge.episode, **({"heard": dict(heard)} if heard else {})}
        packed = pack_tick(tick, self._jpeg_quality, returned_ns=self._clock.now_ns())
        return encode(Message("tick", number, {**body, "tick": packed}))

    def _answer(self, peer: bytes, request: Message) -> None:
        try:
            body = self._handle(peer, request)
            if body is not None:
                self._socket.send(peer, encode(Message("ok", request.seq, body)))
        except VlaError as error:
            self._send_error(peer, request.seq, error)
        except Exception as error:  # a bug: the client gets an answer, and the arm is stopped
            told = f"the bridge failed at this request: {self._fail(error)}"
            self._send_error(peer, request.seq, TransportError(told))

    def _send_error(self, peer: bytes, seq: int, error: VlaError) -> None:
        self._last_refusal = str(error)
        self._socket.send(peer, encode(Message("error", seq, pack_error(error))))

    def _handle(self, peer: bytes, request: Message) -> dict[str, Any] | None:
        """Return the answer; None if there is none, or not yet."""
        self._limit.admit(self._socket.user_of(peer) or peer.hex(), request.kind)
        if self._resetting and request.kind not in WHILE_RESETTING:
            return self._wait_for_reset(peer, request)
        reader = MessageReader(request.body, request.kind)
        if request.kind in self._open_requests:
            return self._open_requests[request.kind](peer, request.seq, reader)
        if request.kind not in self._commands:
            raise TransportError(unknown("request", request.kind, [*self._open_requests, *self._commands]))
        if peer != self._controller.peer:
            raise SessionError(f"this connection does not command the arm: {NO_SESSION}")
        self._guard.admit(reader.text("session"), request.seq)
        self._hear()
        return self._commands[request.kind](reader)

    def _wait_for_reset(self, peer: bytes, request: Message) -> None:
        """Handle a request during a reset: the controller may give up; other clients are told to try again."""
        if peer != self._controller.peer:
            raise BusyError("the arm is being reset for its controller; ask again when that is done.")
        if request.kind in ("end", "close") and len(self._put_off) < ASKED_AT_ONCE:
            self._put_off.append((peer, request))
        elif request.kind == "reset":  # a repeated request: tell the client to go on waiting
            self._socket.send(peer, encode(Message("wait", request.seq, {})))

    def _hello(self, peer: bytes, seq: int, reader: MessageReader) -> dict[str, Any]:
        require_protocol(reader, BRIDGE_PROTOCOL, "the controller", "the bridge")
        wanted = reader.table("wanted")
        if wanted.names():
            require_fit(unpack_embodiment(wanted), self._bridge.arm.embodiment)
        silent_s = (self._clock.now_ns() - self._controller.heard_ns) / NS_PER_S
        if self._controller.peer not in (None, peer) and silent_s < SILENT_S:
            raise BusyError(
                "the arm has a controller already, and accepts one at a time. Close it, or wait until it has been "
                f"silent for {SILENT_S:g} s."
            )
        self._bridge.end(
            "another controller took over" if peer != self._controller.peer else "its controller joined again"
        )
        if peer != self._controller.peer:
            # A second hello on one connection is a repetition after a slow answer: both answers must be valid.
            self._controller = Controller(peer, session=self._guard.open())
        self._hear()
        return {"session": self._controller.session, **self._about(peer, seq, reader)}

    def _about(self, peer: bytes, seq: int, reader: MessageReader) -> dict[str, Any]:
        """Return the facts that a client needs no control for."""
        return {
            "protocol": BRIDGE_PROTOCOL,
            "embodiment": pack_embodiment(self._bridge.arm.embodiment),
            "instruction": self._bridge.arm.instruction,
            "can_wait": self._bridge.arm.can_wait,
            "time_limits": pack_time_limits(self._bridge.time_limits),
        }

    def _view(self, peer: bytes, seq: int, reader: MessageReader) -> None:
        self._viewers.acknowledge(peer, reader.integer("seen"))

    def _stop(self, peer: bytes, seq: int, reader: MessageReader) -> dict[str, Any]:
        """Stop the arm, even if the request's reason is unreadable.

        Raises:
            WorldError: the arm did not stop.
        """
        reason = ""
        with contextlib.suppress(TransportError):
            reason = reader.text("reason")[:SHOWN_CHARS]
        self.emergency_stop(reason or "the network")
        if self._bridge.unstopped:
            raise WorldError(f"{self._bridge.unstopped}.")
        return {}

    def _stamps(self, peer: bytes, seq: int, reader: MessageReader) -> dict[str, Any]:
        received_ns = self._clock.now_ns()
        return {"received_ns": received_ns, "answered_ns": self._clock.now_ns()}

    def _watch(self, peer: bytes, seq: int, reader: MessageReader) -> None:
        if not hmac.compare_digest(reader.text("session").encode(), self._controller.session.encode()):
            raise SessionError(f"this stream belongs to no session that is open here: {NO_SESSION}")
        stream = self._controller.stream
        stream.peer, stream.seen = peer, min(max(stream.seen, reader.integer("seen")), stream.number)
        if "sent_ns" in reader.names():
            stream.heard = {"sent_ns": reader.integer("sent_ns"), "received_ns": self._clock.now_ns()}
        frames = reader.table("frames").integers() if "frames" in reader.names() else None
        stream.frames.acknowledge(stream.seen, frames)
        self._hear()

    def _hear(self) -> None:
        self._controller.heard_ns = self._clock.now_ns()
        self._bridge.watchdog.beat()

    def _reset(self, reader: MessageReader) -> dict[str, Any]:
        """Begin an episode. If it runs already, its answer was lost, and the arm does not move."""
        episode = reader.integer("episode")
        if self._bridge.running and episode == self._bridge.episode:
            return {"number": self._controller.stream.number}
        seed = require_seed(reader.integer("seed"))
        observation = self._begin(episode, seed, reader.flag("lockstep"))
        if self._ticker is not None:
            self._missed += self._ticker.missed
        self._ticker = self._pace(self._clock, self._period_ns)
        self._push(self._first_tick(observation))
        return {"number": self._controller.stream.number}

    def _begin(self, episode: int, seed: int, lockstep: bool) -> Observation:
        self._resetting = True
        try:
            return self._bridge.begin(episode, seed, lockstep)
        finally:
            self._resetting = False

    def _first_tick(self, observation: Observation) -> Tick:
        """Return the tick of an episode's first observation."""
        result = StepResult(observation, None, success=False, terminated=False, truncated=False)
        return Tick(result, "hold", "the episode begins", NOTHING_PROCESSED, 0, 0)

    def _chunk(self, reader: MessageReader) -> dict[str, Any]:
        dropped = self._bridge.put(unpack_action_chunk(reader.table("chunk")))
        if self._bridge.lockstep:
            self._tick()
        return {"dropped_rows": dropped}

    def _end(self, reader: MessageReader) -> dict[str, Any]:
        self._bridge.end("the controller ended it")
        return {}

    def _arm(self, reader: MessageReader) -> dict[str, Any]:
        self._bridge.watchdog.arm()
        return {}

    def _look(self, reader: MessageReader) -> dict[str, Any]:
        """Return the present observation between episodes, for the warm-up of a policy. The arm does not move."""
        if self._bridge.running:
            raise ContractError("an episode is running; its ticks have the observations.")
        return {"observation": pack_observation(self._bridge.arm.look(), self._jpeg_quality)}

    def _close(self, reader: MessageReader) -> dict[str, Any]:
        self._bridge.end("the controller closed the connection")
        self._guard.close()
        self._controller = Controller()
        return {}
