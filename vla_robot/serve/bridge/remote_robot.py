"""Client of a bridge, as a Robot. The protocol is described in docs/bridge.md.

    main thread     --command connection-->  bridge      hello, reset, chunk, end, clock: one answer each
    stream thread   <--stream connection---  bridge      ticks, each once and in order
                    ---- watch ----------->              what arrived; ten times a second, the heartbeat

The stream thread stores every tick until the main thread takes it, so that a policy that computes for many ticks misses
none of them. The store is bounded (BACKLOG_BYTES): the oldest ticks are dropped first, and their numbers are missing.

The heartbeat says that this process runs. The age of its actions says whether its policy still answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment, differences
from vla_robot.core.errors import BusyError, ContractError, TransportError, VlaError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.robot import Tick
from vla_robot.core.seeds import require_seed
from vla_robot.serve.bridge.camera_frames import NewestFrames
from vla_robot.serve.requests import Requests
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL, no_answer, unpack_tick, unpack_time_limits
from vla_robot.transport.clock_sync import ClockSample, ClockSync, Offset
from vla_robot.transport.codec import (
    MessageReader,
    pack_action_chunk,
    pack_embodiment,
    read_answer,
    unpack_embodiment,
    unpack_error,
    unpack_observation,
)
from vla_robot.transport.keys import ClientSecurity
from vla_robot.transport.sockets import SLICE_S, ClientSocket
from vla_robot.transport.wire import Message, decode, encode

CONNECT_TIMEOUT_S = 10.0
RESET_TIMEOUT_S = 60.0
"""Time limit of a reset [s]: robosuite's first one builds shaders and takes seconds on a slow computer."""
ANSWER_TIMEOUT_S = 3.0
TRY_TIMEOUT_S = 1.0
"""An unanswered request is sent again after this time [s]."""
CLOSE_TIMEOUT_S = 0.5
PATIENCE_S = 3.0
"""How long to ask for an arm that another controller has [s]; one that died keeps it for 2 s."""
SEAT_EVERY_S = 0.25
"""Period of asking for an arm that another controller has [s]."""

BACKLOG_BYTES = 256 << 20
"""Largest size of the frames of stored ticks [bytes]: 17 s of two raw cameras of 224 x 224 at 50 Hz."""
NUMBERS_BYTES = 2048
"""Approximate size of a tick without its frames [bytes]."""

SYNC_EXCHANGES = 8
"""Exchanges of stamps before each episode; the fastest one determines the accuracy of the clock offset."""
SYNC_EVERY_S = 1.0
"""Period at which stamps of ticks update the clock offset [s], since clocks drift."""


class RemoteRobot(Closeable):
    """Robot over ZeroMQ; `SynchronousEnv` makes a simulated one a World.

    Attributes:
        can_wait: whether the robot is simulated, so that lockstep is possible.
        time_limits: the bridge's limits on the age of actions and the silence between them.
    """

    def __init__(
        self,
        address: str,
        *,
        security: ClientSecurity | None = None,
        wanted: Embodiment | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """Connect and get the robot's embodiment.

        Args:
            address: address of a bridge, e.g. "tcp://127.0.0.1:5570".
            security: this client's key and the bridge's public key; None on this computer.
            wanted: embodiment of the policy; the bridge refuses one that does not fit.
            connect_timeout_s: time limit of the bridge's first answer.
            clock: measures the stages.

        Raises:
            TransportError: no answer came, or the bridge speaks another version or has a controller already.
            ContractError: the policy does not fit the robot; the message lists every difference.
        """
        self.address = address
        self._security = security
        self._clock = clock or MonotonicClock()
        self._episode = 0
        self._session = ""
        self._number = 0
        self._stages_ms: dict[str, float] = {}
        self._sync, self._synced_ns = ClockSync(), 0
        self._refusals: list[VlaError] = []
        self._requests = Requests(address, self._clock, security)
        self._stream: _Stream | None = None
        try:
            self._hello(wanted, connect_timeout_s)
            self._reconnect_stream()
            self._synchronise()
        except BaseException:
            self._disconnect()
            raise

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        """Times of the newest observation on its way here [ms]: `render`, `transport_back`."""
        return self._stages_ms

    @property
    def offset(self) -> Offset:
        """The bridge's clock minus this computer's, with its bound."""
        return self._sync.offset(self._clock.now_ns())

    def begin(self, seed: int, *, lockstep: bool = False) -> Observation:
        """Begin an episode, and join a bridge again that was restarted since the last one.

        Args:
            seed: seed of a simulation.
            lockstep: whether the robot waits for each action.

        Raises:
            ContractError: the arm is stopped and was not armed again, or cannot wait; the seed is refused; the bridge
                was restarted with another arm, and the message lists every difference.
            BusyError: another controller has the arm.
            TransportError: no answer came in time.
        """
        self._join_again()
        self._synchronise()
        self._episode += 1
        self._refusals.clear()
        body = {"episode": self._episode, "seed": require_seed(seed), "lockstep": lockstep}
        number = self._command("reset", body, RESET_TIMEOUT_S).integer("number")
        self._number = number
        return self._first_tick(number).result.observation

    def send(self, chunk: ActionChunk) -> None:
        self._drain()
        if self._refusals:
            raise self._refusals.pop(0)
        self._requests.post("chunk", {"session": self._session, "chunk": pack_action_chunk(chunk)})

    def ticks(self, timeout_s: float) -> list[Tick]:
        """Return the ticks that arrived since the last call, as `Robot.ticks`.

        Raises:
            TransportError: the bridge refuses the stream.
        """
        arrived = self._connected_stream().take(lambda a: a.episode == self._episode, timeout_s)
        self._drain()
        return [self._taken(a) for a in arrived]

    def newest(self, after: int, timeout_s: float) -> Tick | None:
        """Return the newest tick of this episode whose observation's step is above `after`; None after the timeout.

        It is for callers that record nothing: earlier ticks are dropped. The tick that stops the arm has no new
        observation, and is returned for any step.

        Raises:
            TransportError: the bridge refuses the stream.
        """

        def is_news(arrived: Arrived) -> bool:
            newer = arrived.tick.mode == "stopped" or arrived.tick.result.observation.step > after
            return newer and arrived.episode == self._episode

        stream = self._connected_stream()
        arrived = stream.await_tick(is_news, timeout_s)
        if arrived is not None:
            stream.forget(arrived.number)
        self._drain()
        return None if arrived is None else self._taken(arrived)

    def look(self) -> Observation | None:
        """Return the newest observation of this episode without taking its tick; None before the first. Thread-safe."""
        stream = self._stream
        arrived = None if stream is None else stream.await_tick(lambda a: a.episode == self._episode, 0.0)
        return None if arrived is None else arrived.tick.result.observation

    def look_idle(self) -> Observation:
        """Return the present observation between episodes; the arm does not move.

        Raises:
            WorldError: the arm or a camera does not answer; a reset may connect it again.
            ContractError: an episode is running.
        """
        answer = self._command("look", {}, ANSWER_TIMEOUT_S)
        observation = unpack_observation(answer.table("observation"))
        self.embodiment.check(observation)
        return observation

    def end(self) -> None:
        self._command("end", {}, ANSWER_TIMEOUT_S)

    def arm(self) -> None:
        """Release the e-stop. Raises ContractError while its cause is present."""
        self._command("arm", {}, ANSWER_TIMEOUT_S)

    def stop(self, reason: str) -> None:
        """Latch the e-stop at the bridge."""
        self._exchange("stop", {"reason": reason}, ANSWER_TIMEOUT_S)

    def status(self) -> Mapping[str, Any]:
        """Return the bridge's status: mode, reason, counts; see docs/bridge.md."""
        return self._exchange("status", {}, ANSWER_TIMEOUT_S).fields

    def play(self, chunk: ActionChunk) -> Tick:
        """Send one action in lockstep and return its tick.

        Raises:
            PolicyError: the bridge refused the action; the arm did not move.
            TransportError: no answer came in time. Whether the arm moved is unknown.
        """
        self._command("chunk", {"chunk": pack_action_chunk(chunk)}, RESET_TIMEOUT_S)
        self._number += 1
        return self._tick_above(self._number - 1, RESET_TIMEOUT_S)

    def close(self) -> None:
        """Disconnect, so that another controller can have the robot; the arm holds."""
        with contextlib.suppress(VlaError):
            self._command("close", {}, CLOSE_TIMEOUT_S)
        self._disconnect()

    def _hello(self, wanted: Embodiment | None, timeout_s: float) -> None:
        body = {"protocol": BRIDGE_PROTOCOL, "wanted": pack_embodiment(wanted) if wanted else {}}
        answer = self._seat(body, timeout_s)
        self.embodiment = unpack_embodiment(answer.table("embodiment"))
        self.instruction = answer.text("instruction")
        self.can_wait = answer.flag("can_wait")
        self.time_limits = unpack_time_limits(answer.table("time_limits"))
        self._session = answer.text("session")

    def _join_again(self) -> None:
        """Send hello between episodes: the answer has our session, or a new one if the bridge was restarted."""
        embodiment, session = self.embodiment, self._session
        self._hello(None, CONNECT_TIMEOUT_S)
        changed, self.embodiment = differences(embodiment, self.embodiment), embodiment
        if changed:
            raise ContractError(
                f"the bridge at {self.address} was started anew with another arm: {'; '.join(changed)}. Nothing was "
                "moved. Begin a new run, which compares it with the policy."
            )
        if self._stream is None or self._session != session or self._stream.failed:
            self._reconnect_stream()

    def _reconnect_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = _Stream(self.address, self._security, self._session, self._clock)

    def _seat(self, hello: Mapping[str, Any], timeout_s: float) -> MessageReader:
        """Send `hello` until the arm is free: a controller before us may have died without closing."""
        end_ns = self._clock.now_ns() + round(min(timeout_s, PATIENCE_S) * NS_PER_S)
        while True:
            try:
                return self._exchange("hello", hello, timeout_s)
            except BusyError:
                if self._clock.now_ns() >= end_ns:
                    raise
                self._requests.receive(SEAT_EVERY_S)

    def _synchronise(self) -> None:
        for _ in range(SYNC_EXCHANGES):
            sent_ns = self._clock.now_ns()
            answer = self._exchange("clock", {}, ANSWER_TIMEOUT_S)
            stamps = answer.integer("received_ns"), answer.integer("answered_ns")
            self._learn_clocks(ClockSample(sent_ns, *stamps, self._clock.now_ns()))

    def _learn_clocks(self, sample: ClockSample) -> None:
        self._sync.add(sample)
        self._synced_ns = sample.returned_ns

    def _first_tick(self, number: int) -> Tick:
        """Return the first tick of an episode, or the first one after it that was not lost."""
        arrived = self._connected_stream().take_first(number, RESET_TIMEOUT_S)
        if arrived is None:
            raise self._sent_nothing(RESET_TIMEOUT_S)
        return self._taken(arrived)

    def _tick_above(self, number: int, timeout_s: float) -> Tick:
        stream = self._connected_stream()
        arrived = stream.await_tick(lambda a: a.number > number, timeout_s)
        if arrived is None:
            raise self._sent_nothing(timeout_s)
        stream.forget(arrived.number)
        return self._taken(arrived)

    def _sent_nothing(self, timeout_s: float) -> TransportError:
        return TransportError(f"the bridge at {self.address} sent no observation within {timeout_s:g} s.")

    def _taken(self, arrived: Arrived) -> Tick:
        observation = arrived.tick.result.observation
        self.embodiment.check(observation)
        if arrived.clocks is not None and arrived.clocks.returned_ns - self._synced_ns >= SYNC_EVERY_S * NS_PER_S:
            self._learn_clocks(arrived.clocks)
        away_ns = arrived.at_ns - arrived.returned_ns + self.offset.offset_ns
        self._stages_ms = {
            "render": (arrived.returned_ns - observation.stamp_ns) / NS_PER_MS,
            "transport_back": max(away_ns, 0) / NS_PER_MS,
        }
        return arrived.tick

    def _command(self, kind: str, body: Mapping[str, Any], timeout_s: float) -> MessageReader:
        """Send a command. Raises SessionError as soon as the stream reports that our session ended."""
        require = self._connected_stream().require_open
        return self._exchange(kind, {"session": self._session, **body}, timeout_s, require)

    def _exchange(
        self, kind: str, body: Mapping[str, Any], timeout_s: float, require: Callable[[], None] = lambda: None
    ) -> MessageReader:
        """Send a request and return its answer; without one in TRY_TIMEOUT_S it is sent again, except for actions.

        Raises:
            VlaError: the error that the bridge reports, or TransportError if it does not answer.
        """
        end_ns = self._requests.ends_ns(timeout_s)
        first = self._requests.number + 1
        try_ns = 0
        while (now_ns := self._clock.now_ns()) < end_ns:
            if now_ns >= try_ns and (kind != "chunk" or not try_ns):
                self._requests.post(kind, body)
                try_ns = self._requests.ends_ns(TRY_TIMEOUT_S)
            answer = self._requests.receive()
            if answer is None:
                require()
            elif answer.seq < first:
                self._note(answer)
            elif answer.kind == "wait":  # the bridge is still working on it
                end_ns = self._requests.ends_ns(timeout_s)
            else:
                return read_answer(answer, kind)
        raise no_answer(self.address, kind, timeout_s)

    def _drain(self) -> None:
        """Read the answers to posted messages; refusals are kept for the next `send`."""
        while (answer := self._requests.receive(0.0)) is not None:
            self._note(answer)

    def _note(self, answer: Message) -> None:
        if answer.kind == "error":
            self._refusals.append(unpack_error(MessageReader(answer.body, "refusal")))

    def _connected_stream(self) -> _Stream:
        if self._stream is None:
            raise TransportError("the connection to the robot was closed; connect again.")
        return self._stream

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._requests.close()


@dataclass(frozen=True)
class Arrived:
    """A tick as received.

    Attributes:
        number: number of the tick; it only grows within a session.
        episode: number of its episode.
        tick: the tick.
        returned_ns: time at which it was sent, on the bridge's clock.
        at_ns: time at which it arrived, on this computer's clock.
        clocks: the newest exchange of stamps, if any: `watch` is its way there, a tick its way back.
        num_bytes: size of the frames that came with it [bytes].
    """

    number: int
    episode: int
    tick: Tick
    returned_ns: int
    at_ns: int
    clocks: ClockSample | None = None
    num_bytes: int = 0


class _Stream:
    """Receives ticks in a thread of its own, which alone uses the socket, and stores them until they are taken."""

    def __init__(self, address: str, security: ClientSecurity | None, session: str, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: Arrived | None = None
        self._untaken: deque[Arrived] = deque()
        self._untaken_bytes = 0
        self._frames = NewestFrames()
        self._failure: VlaError | None = None
        self._stop = threading.Event()
        self._seq = 0
        self._thread = threading.Thread(target=self._run, args=(address, security), name="ticks", daemon=True)
        self._thread.start()

    def await_tick(self, wanted: Callable[[Arrived], bool], timeout_s: float) -> Arrived | None:
        """Wait until the newest tick is wanted, and return it; None after the timeout. Raises the stream's error."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or (self._newest and wanted(self._newest)), timeout_s)
            if self._failure is not None:
                raise self._failure
            return self._newest if self._newest is not None and wanted(self._newest) else None

    def take(self, wanted: Callable[[Arrived], bool], timeout_s: float) -> list[Arrived]:
        """Return all wanted ticks that were not taken yet, oldest first; the others are dropped.

        Raises the stream's error once all ticks before it are taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or any(map(wanted, self._untaken)), timeout_s)
            taken = [arrived for arrived in self._untaken if wanted(arrived)]
            self._untaken.clear()
            self._untaken_bytes = 0
            if self._failure is not None and not taken:
                raise self._failure
            return taken

    def take_first(self, number: int, timeout_s: float) -> Arrived | None:
        """Return the oldest tick from this number on; earlier ones are dropped. Raises the stream's error."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or (self._untaken and self._untaken[-1].number >= number), timeout_s
            )
            self._drop_until(number - 1)
            if self._untaken:
                return self._pop()
            if self._failure is not None:
                raise self._failure
            return None

    def forget(self, number: int) -> None:
        """Drop stored ticks up to this number."""
        with self._changed:
            self._drop_until(number)

    def _drop_until(self, number: int) -> None:
        while self._untaken and self._untaken[0].number <= number:
            self._pop()

    def _pop(self) -> Arrived:
        arrived = self._untaken.popleft()
        self._untaken_bytes -= arrived.num_bytes
        return arrived

    def _keep(self, arrived: Arrived) -> None:
        """Store a tick; if the store is full, drop the oldest ones."""
        self._untaken.append(arrived)
        self._untaken_bytes += arrived.num_bytes
        while self._untaken_bytes > BACKLOG_BYTES and len(self._untaken) > 1:
            self._pop()

    @property
    def failed(self) -> bool:
        """Whether the stream ended with an error."""
        return self._failure is not None

    def require_open(self) -> None:
        """Raise the error that ended the stream, if it ended."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, address: str, security: ClientSecurity | None) -> None:
        try:
            with ClientSocket(address, security) as socket:
                self._watch(socket)
                while not self._stop.is_set():
                    frames = socket.receive(SLICE_S)
                    if frames is not None:
                        self._take(decode(frames))
                    self._watch(socket)
        except VlaError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _watch(self, socket: ClientSocket) -> None:
        """Report what arrived; this is also the heartbeat."""
        self._seq += 1
        seen = 0 if self._newest is None else self._newest.number
        # While the network is frozen the queue is full; the next message says the same and more.
        with contextlib.suppress(TransportError):
            body = {"session": self._session, "seen": seen, "frames": self._frames.stamps_ns}
            socket.send(encode(Message("watch", self._seq, {**body, "sent_ns": self._clock.now_ns()})))

    def _take(self, message: Message) -> None:
        reader = MessageReader(message.body, message.kind)
        if message.kind == "error":
            raise unpack_error(reader)
        number, packed = reader.integer("number"), reader.table("tick")
        if self._newest is not None and number <= self._newest.number:
            return
        episode, tick = reader.integer("episode"), unpack_tick(packed)
        num_bytes = NUMBERS_BYTES + sum(image.nbytes for image in tick.result.observation.images.values())
        observation = self._frames.complete(episode, tick.result.observation)
        if observation is None:
            return  # a camera's first frame was lost; an unacknowledged tick is sent again, whole
        tick = replace(tick, result=replace(tick.result, observation=observation))
        returned_ns, at_ns = packed.integer("returned_ns"), self._clock.now_ns()
        clocks = None if self._newest is None else self._newest.clocks
        if "heard" in reader.names():
            heard = reader.table("heard")
            clocks = ClockSample(heard.integer("sent_ns"), heard.integer("received_ns"), returned_ns, at_ns)
        arrived = Arrived(number, episode, tick, returned_ns, at_ns, clocks, num_bytes)
        with self._changed:
            self._newest = arrived
            self._keep(arrived)
            self._changed.notify_all()
