"""Serialises core dataclasses to message bodies and back; any invalid message raises TransportError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import ACTION_KINDS, MAX_RATE_HZ, MIN_RATE_HZ, ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import (
    BusyError,
    CheckpointError,
    ContractError,
    DataError,
    LostError,
    MissingDependencyError,
    NoActionYetError,
    OverdueError,
    PolicyError,
    RecipeError,
    SessionError,
    SupersededError,
    TeleopError,
    TransportError,
    VlaError,
    WorldError,
    unknown,
)
from vla_robot.core.messages import ActionChunk, Clamp, Image, Observation, StepResult
from vla_robot.transport.jpeg import MAX_PIXELS, decode_jpeg, encode_jpeg
from vla_robot.transport.wire import Array, Message

ERRORS: dict[str, type[VlaError]] = {
    "RecipeError": RecipeError,
    "ContractError": ContractError,
    "CheckpointError": CheckpointError,
    "DataError": DataError,
    "TransportError": TransportError,
    "BusyError": BusyError,
    "LostError": LostError,
    "SessionError": SessionError,
    "PolicyError": PolicyError,
    "NoActionYetError": NoActionYetError,
    "OverdueError": OverdueError,
    "SupersededError": SupersededError,
    "WorldError": WorldError,
    "TeleopError": TeleopError,
    "MissingDependencyError": MissingDependencyError,
}
"""Errors that a peer can report and that are then raised here."""

MAX_ERROR_CHARS = 8000
"""Longest error message to a peer: it may quote what the peer sent, and must fit into a header."""

MAX_STAGES, MAX_STAGE_MS = 32, 1e7
"""Most stages of a chunk, and the longest time of one [ms], about three hours."""

MAX_SIGNALS = {"entropy": 100.0, "chunk_gap": 1.0}
"""How unsure a policy was: field of a chunk or tick -> its largest value. Entropy is in nats, of which a vocabulary of
2**32 rows has at most 22; the gap is a share of a range."""

SHOWN_FIELDS, SHOWN_CHARS = 20, 40
"""Most of a peer's field names, and of a name's characters, that error messages show."""


class MessageReader:
    """Reads a message body field by field; a missing field or wrong type raises TransportError.

    Attributes:
        fields: the body, unchecked.
    """

    def __init__(self, body: Mapping[str, Any], of: str) -> None:
        """
        Args:
            body: decoded plain data and arrays.
            of: name of the content, for error messages.
        """
        self.fields = body
        self._of = of

    def text(self, key: str) -> str:
        return self._typed(key, str)

    def flag(self, key: str) -> bool:
        return self._typed(key, bool)

    def integer(self, key: str) -> int:
        """Return an integer of 64 bits with sign."""
        value = self._typed(key, int)
        if isinstance(value, bool):
            raise self._wrong(key, "int", value)
        if not -(2**63) <= value < 2**63:
            raise TransportError(f"{self._of}: '{key}' does not fit into 64 bits with a sign: {value}.")
        return value

    def integers(self) -> dict[str, int]:
        """Return all fields, each an integer."""
        return {name: self.integer(name) for name in self.names()}

    def number(self, key: str) -> float:
        """Return a float; an int is converted."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "number", value)
        return float(value)

    def finite(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number from `low` to `high`."""
        value = self.number(key)
        if not math.isfinite(value) or not low <= value <= high:
            raise TransportError(
                f"{self._of}: '{key[:SHOWN_CHARS]}' must be a number from {low:g} to {high:g}, got {value:g}."
            )
        return value

    def array(self, key: str, dtype: type[np.generic], ndim: int) -> Array:
        value = self._get(key)
        if not isinstance(value, np.ndarray):
            raise self._wrong(key, "array", value)
        array = cast(Array, value)
        if array.dtype != dtype or array.ndim != ndim:
            raise TransportError(
                f"{self._of}: '{key}' must be {dtype.__name__} of {ndim} dimensions, "
                f"got {array.dtype} of shape {array.shape}."
            )
        return array

    def array_or_none(self, key: str, dtype: type[np.generic], ndim: int) -> Array | None:
        """Return an array as `array` does, or None if the value is None."""
        return None if self._get(key) is None else self.array(key, dtype, ndim)

    def ndim(self, key: str) -> int | None:
        """Return the number of dimensions of an array; None if the value is not an array."""
        value = self._get(key)
        return cast(Array, value).ndim if isinstance(value, np.ndarray) else None

    def table(self, key: str) -> MessageReader:
        return MessageReader(cast(Mapping[str, Any], self._typed(key, dict)), f"{self._of}.{key}")

    def tables(self, key: str) -> list[MessageReader]:
        """Return a list of tables."""
        items = cast(list[Any], self._typed(key, list))
        if not all(isinstance(item, dict) for item in items):
            raise TransportError(f"{self._of}: '{key}' must be a list of maps.")
        return [MessageReader(cast(Mapping[str, Any], item), f"{self._of}.{key}") for item in items]

    def names(self) -> list[str]:
        return list(self.fields)

    def _get(self, key: str) -> Any:
        if key not in self.fields:
            there = ", ".join(name[:SHOWN_CHARS] for name in [*self.fields][:SHOWN_FIELDS]) or "no fields"
            raise TransportError(f"{self._of}: '{key}' is missing; there are {there}.")
        return self.fields[key]

    def _typed[T](self, key: str, kind: type[T]) -> T:
        value = self._get(key)
        if not isinstance(value, kind):
            raise self._wrong(key, kind.__name__, value)
        return value

    def _wrong(self, key: str, wanted: str, value: Any) -> TransportError:
        return TransportError(f"{self._of}: '{key}' must be {wanted}, got {type(value).__name__}.")


def pack_observation(observation: Observation, jpeg_quality: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Convert an observation to plain data and arrays.

    Args:
        observation: the observation.
        jpeg_quality: camera -> quality, 1 to 100, of frames sent as JPEG; the others are sent raw.
    """
    return {
        "images": {
            name: _pack_frame(image, (jpeg_quality or {}).get(name)) for name, image in observation.images.items()
        },
        "state": observation.state,
        "instruction": observation.instruction,
        "stamp_ns": observation.stamp_ns,
        "step": observation.step,
        "privileged": dict(observation.privileged),
        **({} if observation.committed is None else {"committed": observation.committed}),
        **({} if observation.planned is None else {"planned": observation.planned}),
        **({"stamps_ns": dict(observation.stamps_ns)} if observation.stamps_ns else {}),
    }


def unpack_observation(reader: MessageReader) -> Observation:
    images, privileged = reader.table("images"), reader.table("privileged")
    return Observation(
        images=_unpack_frames(images),
        state=reader.array("state", np.float64, ndim=1),
        instruction=reader.text("instruction"),
        stamp_ns=reader.integer("stamp_ns"),
        step=reader.integer("step"),
        privileged={name: privileged.array(name, np.float64, ndim=1) for name in privileged.names()},
        committed=reader.array("committed", np.float64, ndim=2) if "committed" in reader.names() else None,
        planned=reader.array("planned", np.float64, ndim=2) if "planned" in reader.names() else None,
        stamps_ns=reader.table("stamps_ns").integers() if "stamps_ns" in reader.names() else {},
    )


def pack_step_result(result: StepResult) -> dict[str, Any]:
    return {
        "observation": pack_observation(result.observation),
        "executed": result.executed,
        "success": result.success,
        "terminated": result.terminated,
        "truncated": result.truncated,
        "clamps": [{"dim": c.dim, "cause": c.cause, "wanted": c.wanted, "allowed": c.allowed} for c in result.clamps],
        "command_ns": result.command_ns,
    }


def unpack_step_result(reader: MessageReader) -> StepResult:
    return StepResult(
        observation=unpack_observation(reader.table("observation")),
        executed=reader.array_or_none("executed", np.float64, ndim=1),
        success=reader.flag("success"),
        terminated=reader.flag("terminated"),
        truncated=reader.flag("truncated"),
        clamps=tuple(
            Clamp(c.text("dim"), c.text("cause"), c.finite("wanted"), c.finite("allowed"))
            for c in reader.tables("clamps")
        ),
        command_ns=reader.integer("command_ns"),
    )


def pack_action_chunk(chunk: ActionChunk) -> dict[str, Any]:
    """Convert a chunk to plain data and arrays. What is not set is not sent, so that older peers can read the rest."""
    return {
        "actions": chunk.actions,
        "stamp_ns": chunk.stamp_ns,
        "step": chunk.step,
        "stages_ms": dict(chunk.stages_ms),
        **{mark: True for mark in ("intervention", "conditioned") if getattr(chunk, mark)},
        **{name: number for name in (*MAX_SIGNALS, "rows") if (number := getattr(chunk, name)) is not None},
    }


def unpack_action_chunk(reader: MessageReader) -> ActionChunk:
    actions = reader.array("actions", np.float64, ndim=2)
    return ActionChunk(
        actions=actions,
        stamp_ns=reader.integer("stamp_ns"),
        step=reader.integer("step"),
        stages_ms=_stages_ms(reader.table("stages_ms")),
        intervention="intervention" in reader.names() and reader.flag("intervention"),
        conditioned="conditioned" in reader.names() and reader.flag("conditioned"),
        **signals_in(reader),
        rows=_rows(reader, len(actions)) if "rows" in reader.names() else None,
    )


def _rows(reader: MessageReader, most: int) -> int:
    rows = reader.integer("rows")
    if not 1 <= rows <= most:
        raise TransportError(f"rows {rows} is outside 1 to {most}, the actions of the chunk.")
    return rows


def signals_in(reader: MessageReader) -> dict[str, Any]:
    """Return those of MAX_SIGNALS that a chunk or tick has."""
    return {name: reader.finite(name, 0.0, most) for name, most in MAX_SIGNALS.items() if name in reader.names()}


def _stages_ms(reader: MessageReader) -> dict[str, float]:
    """Return the stages' times [ms], each finite: one NaN would spoil the report of a whole run."""
    names = reader.names()
    if len(names) > MAX_STAGES or any(len(name) > SHOWN_CHARS for name in names):
        raise TransportError(f"stages_ms: at most {MAX_STAGES} stages with names of {SHOWN_CHARS} characters.")
    return {name: reader.finite(name, 0.0, MAX_STAGE_MS) for name in names}


def pack_embodiment(embodiment: Embodiment) -> dict[str, Any]:
    return embodiment.to_dict()


def unpack_embodiment(reader: MessageReader) -> Embodiment:
    action = reader.table("action")
    kind = action.text("kind")
    if kind not in ACTION_KINDS:
        raise TransportError(unknown("kind of action", kind, ACTION_KINDS))
    return Embodiment(
        name=reader.text("name"),
        action=ActionSpace(kind=kind, frame=action.text("frame"), dims=_dims(action.tables("dims"))),
        state=_dims(reader.tables("state")),
        cameras=tuple(
            CameraSpec(c.text("name"), c.integer("height"), c.integer("width")) for c in reader.tables("cameras")
        ),
        rate_hz=reader.finite("rate_hz", MIN_RATE_HZ, MAX_RATE_HZ),
    )


def pack_error(error: VlaError) -> dict[str, str]:
    """Convert an error to its class name and message; another class is sent as its nearest known base."""
    name = next((c.__name__ for c in type(error).__mro__ if c.__name__ in ERRORS), "TransportError")
    return {"error": name, "message": str(error)[:MAX_ERROR_CHARS]}


def unpack_error(reader: MessageReader) -> VlaError:
    """Return the error that a peer reported, to be raised here."""
    name, message = reader.text("error"), reader.text("message")
    return ERRORS[name](message) if name in ERRORS else TransportError(f"the peer reported {name}: {message}")


def read_answer(answer: Message, kind: str) -> MessageReader:
    """The body of the answer to a request of this kind. Raises the error that the peer reported instead of one."""
    reader = MessageReader(answer.body, f"answer to {kind}")
    if answer.kind == "error":
        raise unpack_error(reader)
    return reader


def require_protocol(reader: MessageReader, ours: int, they: str, we: str) -> None:
    """Raise TransportError unless a peer's message names our version of the protocol."""
    protocol = reader.integer("protocol")
    if protocol != ours:
        raise TransportError(
            f"{they} speaks protocol {protocol}, {we} {ours}. Install the same version of vla_robot on both sides."
        )


def _pack_frame(image: Image, quality: int | None) -> NDArray[np.uint8]:
    """Return (H, W, 3) pixels, or (N,) bytes of a JPEG file if there is a quality."""
    return image if quality is None else encode_jpeg(image, quality)


def _unpack_frames(images: MessageReader) -> dict[str, Image]:
    """Decode frames; an array of one dimension is a JPEG file. All JPEG frames together may hold MAX_PIXELS."""
    frames: dict[str, Image] = {}
    pixels = 0
    for name in images.names():
        if images.ndim(name) == 1:
            frames[name] = decode_jpeg(images.array(name, np.uint8, ndim=1), MAX_PIXELS - pixels)
            pixels += frames[name].size // 3
        else:
            frames[name] = images.array(name, np.uint8, ndim=3)
    return frames


def _dims(tables: list[MessageReader]) -> tuple[Dim, ...]:
    return tuple(Dim(t.text("name"), t.text("unit"), t.number("low"), t.number("high")) for t in tables)
