"""One replica, seen from the server: a process that holds the policy, here or on a node of a cluster."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError, TransportError
from vla_robot.core.host.child_process import end_child
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.exit_status import exit_in_words
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import ModelLostError
from vla_robot.serve.replicas.stream import Stream
from vla_robot.transport.codec import (
    MessageReader,
    pack_observation,
    unpack_action_chunk,
    unpack_embodiment,
    unpack_error,
)
from vla_robot.transport.wire import Message, encode

START_TIMEOUT_S = 1800.0
"""Time limit of loading a policy [s]: 15 GB from a network disk take minutes."""

STUCK_S = 600.0
"""A replica that has not answered a batch after this time is ended [s]. The first batch may compile the model."""

STOP_TIMEOUT_S = 2.0
"""A process that has not ended after this time is killed [s]."""


@dataclass(frozen=True)
class Loaded:
    """What a replica says of its policy.

    Attributes:
        embodiment: the arm that it was trained for; None if its checkpoint does not say.
        device: device of its weights, in words.
    """

    embodiment: Embodiment | None
    device: str


class Replica(Closeable, ABC):
    """A process with one copy of the policy; for one thread, `close`, `kill` and `lost` excepted."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process, on its computer; 0 before it is known."""

    @property
    @abstractmethod
    def lost(self) -> str:
        """Why it cannot answer any more; empty if it can."""

    @abstractmethod
    def await_loaded(self) -> Loaded:
        """Wait until the policy is loaded.

        Raises:
            VlaError: the error that loading raised in the process.
            ModelLostError: the process ended, or took too long.
        """

    @abstractmethod
    def act(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        """Return one chunk per observation, computed in one batch.

        Raises:
            VlaError: the policy's error.
            ModelLostError: the process ended, is stuck, or answered something invalid; it cannot be asked again.
        """

    @abstractmethod
    def kill(self) -> None:
        """Kill the process, from any thread: a batch that it computes raises ModelLostError."""


def without_truth(observations: Sequence[Observation]) -> list[Observation]:
    """Return observations without the simulator's state, which a learned policy never gets."""
    return [replace(observation, privileged={}) for observation in observations]


class ProcessReplica(Replica):
    """A process on this computer, and our end of its socket pair."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process.

        Args:
            command: the program and its arguments; `--fd N` is added.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal goes to the whole group: the server decides what it means for a replica.
                process_group=0,
            )
        self._stream = Stream(ours)
        self._number = 0
        self._broken = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lost(self) -> str:
        status = self._process.poll()
        if status is None:
            return self._broken
        return f"the replica's process {self.pid} ended ({exit_in_words(status)})"

    def await_loaded(self) -> Loaded:
        message = self._receive(START_TIMEOUT_S)
        reader = MessageReader(message.body, message.kind)
        if message.kind == "error":
            raise unpack_error(reader)
        embodiment = reader.table("embodiment")
        return Loaded(unpack_embodiment(embodiment) if embodiment.names() else None, reader.text("device"))

    def act(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self._number += 1
        self._send(observations, keys)
        return [self._chunk() for _ in observations]

    def close(self) -> None:
        """End the process: it ends when its socket does, or is killed. May be called twice."""
        self._broken = self._broken or "the replica was ended"
        self._stream.close()
        end_child(self._process, STOP_TIMEOUT_S)

    def kill(self) -> None:
        self._process.kill()

    def _send(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> None:
        rows = [pack_observation(observation) for observation in without_truth(observations)]
        bodies = [{"observation": row, "key": key or ""} for row, key in zip(rows, keys, strict=True)]
        # All are encoded before the first is sent: the replica never keeps part of a batch.
        messages = [encode(Message("row", self._number, body)) for body in bodies]
        try:
            for message in (*messages, encode(Message("infer", self._number, {}))):
                self._stream.send(message)
        except OSError as error:
            raise self._given_up(error) from error

    def _chunk(self) -> ActionChunk:
        answer = self._receive(STUCK_S)
        reader = MessageReader(answer.body, answer.kind)
        if answer.kind == "error":
            raise unpack_error(reader)
        try:
            if answer.seq != self._number:
                raise TransportError(f"answer {answer.seq} to request {self._number}.")
            return unpack_action_chunk(reader.table("chunk"))
        except TransportError as error:
            raise self._given_up(error) from error

    def _receive(self, timeout_s: float) -> Message:
        try:
            return self._stream.receive(timeout_s)
        except (OSError, TransportError) as error:
            raise self._given_up(error) from error

    def _given_up(self, error: Exception) -> ModelLostError:
        """Note that the stream is broken, end the process, and return the error of the batch."""
        if isinstance(error, TimeoutError):
            self._process.kill()  # it hangs
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)  # it ended its socket and has an exit status soon
        self._broken = f"the replica's process {self.pid} failed: {error}"
        return ModelLostError(f"{self.lost}.")


def program(policy: str, replica: int, device: str | None, cores: Sequence[int]) -> list[str]:
    """Return the command of a replica.

    Args:
        policy: name or path of the policy.
        replica: its number, from 0.
        device: device of the weights; None for the recipe's.
        cores: its CPU cores; empty for all that this process may use.
    """
    command = [sys.executable, "-P", "-m", "vla_robot.serve.replicas.program", policy, "--replica", str(replica)]
    command += [] if device is None else ["--device", device]
    return command + (["--cores", ",".join(map(str, cores))] if cores else [])


def require_one_policy(first: Loaded, other: Loaded) -> None:
    """Raise PolicyError unless two replicas loaded policies for the same arm."""
    if first.embodiment != other.embodiment:
        raise PolicyError(
            "the policy's folder holds a policy for another arm now, and its replicas must answer as one. Put the old "
            "one back, or start the server anew."
        )
