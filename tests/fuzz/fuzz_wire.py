"""Coverage-guided fuzzing of everything that reads what a peer sent. By hand, as it takes minutes:

    .venv/bin/pip install 'vla_robot[fuzz]'
    .venv/bin/python tests/fuzz/fuzz_wire.py --inputs 1000000

`--replay` runs the kept inputs and mutations of them, and needs no fuzzer: the tests do that. An input is a sequence of
frames, each after its length in two bytes, big endian. It passes if nothing but a TransportError comes of it, the nouns
it is read as are no larger than allowed, and time and memory stay bounded.

corpus/ keeps the smallest input found for each outcome, that is, for each different set of reasons to be refused. To
renew it: `--inputs N --found FOLDER`, then `--keep FOLDER`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

FUZZER = importlib.import_module("atheris") if "--inputs" in sys.argv else None

# The fuzzer sees which lines run of what is imported here.
with FUZZER.instrument_imports(include=["vla_robot", "PIL"]) if FUZZER else contextlib.nullcontext():
    import PIL.JpegImagePlugin  # noqa: F401

    from vla_robot.core.errors import TransportError, WorldError
    from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult
    from vla_robot.testing.embodiments import X, toy_embodiment
    from vla_robot.transport import codec as nouns
    from vla_robot.transport import jpeg, wire

CORPUS = Path(__file__).parent / "corpus"

MAX_INPUT_BYTES = 2048
MAX_INPUT_S = 2
MAX_MEMORY_MB = 1024
MAX_NOUN_BYTES = 3 * jpeg.MAX_PIXELS + MAX_INPUT_BYTES
"""JPEG frames grow when they are decoded, up to a bound of their own."""

UNPACKERS = (
    nouns.unpack_observation,
    nouns.unpack_step_result,
    nouns.unpack_action_chunk,
    nouns.unpack_embodiment,
    nouns.unpack_error,
)
MUTATIONS = 100
"""Of each kept input, in a replay."""

VALUES = (
    None,
    True,
    0,
    -1,
    2**26,
    2**63,
    1.5,
    [0, 2**26, 2**26, 2**26],
    float("nan"),
    "",
    "x" * 40,
    [],
    [[]],
    {},
    {"a": 1},
    msgpack.ExtType(1, b"\0"),
)
"""What a field of a header is replaced with."""


def peak_memory_mb() -> float:
    """Of this program alone; getrusage would count the peak of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def outcome(data: bytes) -> tuple[str, ...]:
    """Decode an input, and read it as every noun that travels.

    Returns:
        For each reader the reason why it refused, or "" where it did not. Of an invalid message, the decoder's only.

    Raises:
        Exception: what must never happen.
    """
    frames = list(split(data))
    try:
        message = wire.decode(frames)
    except TransportError as error:
        return (str(error),)
    if sum(array.nbytes for array in arrays_in(message.body)) > len(data):
        raise AssertionError("the arrays of a message are larger than the message")
    return tuple(refusal(unpack, nouns.MessageReader(message.body, "fuzz")) for unpack in UNPACKERS)


def refusal(unpack: Callable[[nouns.MessageReader], Any], reader: nouns.MessageReader) -> str:
    try:
        noun = unpack(reader)
    except TransportError as error:
        return str(error)
    if sum(array.nbytes for array in arrays_in(vars(noun))) > MAX_NOUN_BYTES:
        raise AssertionError("the arrays of a noun are larger than allowed")
    return ""


def split(data: bytes) -> Iterator[bytes]:
    """The frames of an input."""
    while len(data) >= 2:
        length = int.from_bytes(data[:2])
        yield data[2 : 2 + length]
        data = data[2 + length :]


def joined(frames: Sequence[bytes]) -> bytes:
    """The input of these frames."""
    return b"".join(len(frame).to_bytes(2) + frame for frame in frames)


def arrays_in(value: Any) -> Iterator[Any]:
    if hasattr(value, "nbytes"):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from arrays_in(item)


def seeds() -> list[bytes]:
    """One valid message of each kind, for a fuzzer to start from."""
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    observation = Observation({"front": image, "wrist": image}, np.zeros(2), "lift", 1, 2, {"cube": np.ones(3)})
    result = StepResult(observation, np.ones(2), True, False, False, (Clamp("x", "range", 2.0, 1.0),), 5)
    embodiment = toy_embodiment(name="arm", axes=[X], gripper=None, height=4, width=4)
    bodies = {
        "observation": nouns.pack_observation(observation),
        "jpeg": nouns.pack_observation(observation, {"front": 50}),
        "result": nouns.pack_step_result(result),
        "chunk": nouns.pack_action_chunk(
            ActionChunk(np.zeros((2, 2)), 1, 2, {"decode": 1.0}, entropy=1.5, chunk_gap=0.5)
        ),
        "embodiment": nouns.pack_embodiment(embodiment),
        "error": nouns.pack_error(WorldError("unstable")),
    }
    messages = [wire.encode(wire.Message(kind, 1, body)) for kind, body in bodies.items()]
    return [joined([bytes(frame) for frame in frames]) for frames in messages]


def replay() -> None:
    """Run the seeds, all kept inputs, and mutations of them, the same ones every time."""
    inputs = [*seeds(), *(path.read_bytes() for path in sorted(CORPUS.iterdir()))]
    inputs += [mutate(data, MAX_INPUT_BYTES, seed) for data in inputs for seed in range(MUTATIONS)]
    slowest_s = 0.0
    for data in inputs:
        started_s = time.process_time()  # what others do on this computer is not the input's fault
        outcome(data)
        slowest_s = max(slowest_s, time.process_time() - started_s)
    memory_mb = peak_memory_mb()
    print(f"{len(inputs)} inputs, slowest {slowest_s * 1e3:.1f} ms, {memory_mb:.0f} MB")
    if slowest_s > MAX_INPUT_S or memory_mb > MAX_MEMORY_MB:
        sys.exit("too slow, or too much memory")


def keep(folder: Path) -> None:
    """Add the smallest input of each outcome that no kept one has."""
    known = {kind(path.read_bytes()) for path in CORPUS.iterdir()}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_size):
        data = path.read_bytes()
        if kind(data) not in known:
            known.add(kind(data))
            (CORPUS / f"{len(known):03d}").write_bytes(data)
    print(f"{len(known)} outcomes in {CORPUS}")


def kind(data: bytes) -> tuple[str, ...]:
    """The outcome without what differs from input to input: numbers, and words from the input."""
    return tuple(re.sub(r"b?'.*?'|[\d.]+|b?\".*?\"|there are .*", "", reason)[:100] for reason in outcome(data))


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A neighbour of an input in which the lengths of the frames agree with what they hold."""
    frames = list(split(data)) or [data]
    chance = random.Random(seed)
    index = chance.randrange(len(frames))
    with contextlib.suppress(Exception):  # a header that msgpack cannot read is mutated as bytes
        if index == 0 and chance.random() < 0.5:
            prefix, packed = frames[0][:4], frames[0][4:]
            frames[0] = prefix + msgpack.packb(changed(msgpack.unpackb(packed, strict_map_key=False), chance))
            return joined(frames)[:max_size]
    scramble = FUZZER.Mutate if FUZZER else lambda frame, _: scrambled(frame, chance)
    frames[index] = scramble(frames[index], max_size - len(data) + len(frames[index]))
    return joined(frames)[:max_size]


def scrambled(frame: bytes, chance: random.Random) -> bytes:
    """The same bytes, with a stretch of them overwritten, left out or repeated."""
    start, length = chance.randint(0, len(frame)), chance.choice((1, 1, 2, 4, 8))
    middle = chance.choice((chance.randbytes(length), b"\xff" * length, b"", 2 * frame[start : start + length]))
    return frame[:start] + middle + frame[start + length :]


def changed(value: Any, chance: random.Random) -> Any:
    """The same plain data, with one thing in it replaced, dropped or doubled."""
    if not isinstance(value, list | dict) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value = value.copy()
    if chance.random() < 0.1:
        del value[key]
    elif chance.random() < 0.1:
        value = [*value, value[key]] if isinstance(value, list) else {**value, f"{key}_": value[key]}
    else:
        value[key] = changed(value[key], chance)
    return value


def try_input(data: bytes) -> None:
    outcome(data)


def fuzz(inputs: int, found: Path) -> None:
    """Hand over to libFuzzer; does not return."""
    assert FUZZER is not None
    found.mkdir(exist_ok=True)
    for index, seed in enumerate(seeds()):
        (found / f"seed_{index}").write_bytes(seed)
    limits = [f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_INPUT_S}", f"-rss_limit_mb={MAX_MEMORY_MB}"]
    where = [f"-artifact_prefix={found}/", str(found), str(CORPUS)]
    FUZZER.Setup(
        [sys.argv[0], *limits, f"-runs={inputs}", "-print_final_stats=1", *where],
        try_input,
        custom_mutator=mutate,
    )
    FUZZER.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--inputs", type=int, metavar="N", help="try so many")
    what.add_argument("--replay", action="store_true", help="run the kept inputs only")
    what.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what is new in this folder")
    parser.add_argument("--found", type=Path, metavar="FOLDER", help="write here what reaches something new")
    options = parser.parse_args()
    if options.replay:
        replay()
    elif options.keep:
        keep(options.keep)
    else:
        fuzz(options.inputs, options.found or Path(tempfile.mkdtemp(prefix="fuzz_wire_")))


if __name__ == "__main__":
    main()
