"""The program of a replica: loads a policy and answers the server that started it, until that ends.

    server   row {observation, key}, one for each observation of a batch
    server   infer {}                                                      ours   chunk {chunk}, one for each row
                                                                               or error {error, message}, one for all

The first message is ours: `ready`, the description of the loaded policy, or `error`, why it cannot be loaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError, TransportError, VlaError, in_words, unknown
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.recipe.policy import OnnxRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.batcher import Act
from vla_robot.serve.replicas.stream import Stream
from vla_robot.transport.codec import MessageReader, pack_action_chunk, pack_embodiment, pack_error, unpack_observation
from vla_robot.transport.wire import UNNUMBERED, Buffer, Message, encode

STDOUT, STDERR = 1, 2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """Loaded policy of a replica.

    Attributes:
        act: runs it.
        embodiment: the arm that it was trained for; None if its checkpoint does not say.
        device: device of its weights, in words.
    """

    act: Act
    embodiment: Embodiment | None
    device: str

    def packed(self) -> dict[str, Any]:
        embodiment = {} if self.embodiment is None else pack_embodiment(self.embodiment)
        return {"embodiment": embodiment, "device": self.device}


def answer_all(stream: Stream, load: Callable[[], Ready]) -> None:
    """Load a policy and answer batches until the server closes its end."""
    try:
        ready = load()
    except VlaError as error:
        stream.send(encode(Message("error", UNNUMBERED, pack_error(error))))
        return
    stream.send(encode(Message("ready", UNNUMBERED, ready.packed())))
    while True:
        observations, keys, seq = _batch(stream)
        for answer in _answers(ready.act, observations, keys, seq):
            stream.send(answer)


def _batch(stream: Stream) -> tuple[list[Observation], list[str | None], int]:
    """Return the observations and statistics keys of the next batch, and the number of its request."""
    observations: list[Observation] = []
    keys: list[str | None] = []
    while (message := stream.receive()).kind == "row":
        reader = MessageReader(message.body, message.kind)
        observations.append(unpack_observation(reader.table("observation")))
        keys.append(reader.text("key") or None)
    if message.kind != "infer":
        raise TransportError(unknown("request", message.kind, ["row", "infer"]))
    return observations, keys, message.seq


def _answers(act: Act, observations: Sequence[Observation], keys: Sequence[str | None], seq: int) -> list[list[Buffer]]:
    """Return the encoded chunk of each row, or one error for all. The server's batcher finds the faulty row."""
    try:
        chunks = answered(act, observations, keys)
    except VlaError as error:
        return [encode(Message("error", seq, pack_error(error)))]
    return [encode(Message("chunk", seq, {"chunk": pack_action_chunk(chunk)})) for chunk in chunks]


def answered(act: Act, observations: Sequence[Observation], keys: Sequence[str | None]) -> Sequence[ActionChunk]:
    """Return one chunk for each observation. Raises VlaError alone, whatever the policy raises."""
    try:
        chunks: Sequence[ActionChunk] = act(observations, keys)
    except VlaError:
        raise
    except BaseException as error:  # a bug of a policy, or a panic of a native library, must not end the replica
        _LOG.exception("inference failed")
        raise PolicyError(f"the policy failed with {in_words(error)}.") from error
    if len(chunks) != len(observations):
        raise PolicyError(f"the policy gave {len(chunks)} answers to {len(observations)} observations.")
    return chunks


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as one replica."""
    parser = argparse.ArgumentParser(prog="python -m vla_robot.serve.replicas.program", description=main.__doc__)
    parser.add_argument("policy", help="the policy, by name or path")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the socket to the server")
    parser.add_argument("--replica", type=int, required=True, help="number of this replica, from 0; chooses its GPU")
    parser.add_argument("--device", help="where the weights are, instead of the recipe's device")
    parser.add_argument("--cores", help="CPU cores of this process, such as 0,1; by default the server's")
    arguments = parser.parse_args(argv)
    # The server decides when a signal of the terminal ends this process.
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.dup2(STDERR, STDOUT)  # a library's print must not mix with the server's lines
    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})  # before torch counts the cores
    with Stream(socket.socket(fileno=arguments.fd)) as stream:
        try:
            answer_all(
                stream, lambda: load(find_policy(arguments.policy).on_device(arguments.device), arguments.replica)
            )
        except OSError:  # the server closed its end, or is gone
            return 0
    return 0


def load(source: PolicySource, replica: int) -> Ready:
    """Load a policy as one of several replicas.

    Args:
        source: the policy.
        replica: number of the replica, from 0; of several GPUs, each replica has its own.

    Raises:
        VlaError: the policy or the device cannot be used.
    """
    from vla_robot.serve.policy.load import build_served_policy, device_of

    own = _on_own_gpu(source, replica)
    policy = build_served_policy(own)
    return Ready(policy.act, policy.embodiment, device_of(own) or "")


def _on_own_gpu(source: PolicySource, replica: int) -> PolicySource:
    """Replace the device "auto" or "cuda" by this replica's own GPU; if there are fewer GPUs, replicas share them."""
    from vla_robot.serve.policy.load import weights_of

    if isinstance(source.recipe, OnnxRecipe) or weights_of(source).device not in ("auto", "cuda"):
        return source
    import torch

    count = torch.cuda.device_count()
    return source if count == 0 else source.on_device(f"cuda:{replica % count}")


if __name__ == "__main__":
    sys.exit(main())
