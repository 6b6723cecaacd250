"""Converts ticks to message bodies and back; the protocol's version. See docs/bridge.md for the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast, get_args

import numpy as np

from vla_robot.core.errors import TransportError, unknown
from vla_robot.core.robot import Mode, Tick, TimeLimits
from vla_robot.transport.codec import (
    MAX_SIGNALS,
    MessageReader,
    pack_observation,
    pack_step_result,
    signals_in,
    unpack_step_result,
)

BRIDGE_PROTOCOL = 2
"""Version of requests and answers between a controller and a bridge; the wire format has a version of its own."""


def pack_tick(tick: Tick, jpeg_quality: Mapping[str, int], returned_ns: int) -> dict[str, Any]:
    """Convert a tick to plain data and arrays.

    Args:
        tick: the tick.
        jpeg_quality: camera -> quality of the frames that are sent as JPEG; the others are sent raw.
        returned_ns: present time on the clock of the frames' stamps [ns].
    """
    result = pack_step_result(tick.result)
    if jpeg_quality:
        result["observation"] = pack_observation(tick.result.observation, jpeg_quality)
    return {
        "result": result,
        "mode": tick.mode,
        "reason": tick.reason,
        "last_processed_step": tick.last_processed_step,
        "obs_stamp_ns": tick.obs_stamp_ns,
        "cause_step": tick.cause_step,
        "wanted": tick.wanted,
        "dropped_rows": tick.dropped_rows,
        "returned_ns": returned_ns,
        **({"intervention": True} if tick.intervention else {}),
        **{name: value for name in MAX_SIGNALS if (value := getattr(tick, name)) is not None},
    }


def no_answer(address: str, kind: str, timeout_s: float) -> TransportError:
    """Return the error for a request without an answer."""
    unknown_stop = "It is not known whether the arm stopped: use its own switch."
    return TransportError(
        f"the bridge at {address} did not answer '{kind}' within {timeout_s:g} s. "
        + (unknown_stop if kind == "stop" else "Is `vla bridge` running there?")
    )


def pack_time_limits(limits: TimeLimits) -> dict[str, Any]:
    return {name: float(value) for name, value in asdict(limits).items()}


def unpack_time_limits(reader: MessageReader) -> TimeLimits:
    return TimeLimits(*(reader.number(name) for name in ("max_age_s", "hold_after_s", "stop_after_s")))


def unpack_tick(reader: MessageReader) -> Tick:
    mode = reader.text("mode")
    if mode not in get_args(Mode):
        raise TransportError(unknown("mode", mode, get_args(Mode)))
    return Tick(
        result=unpack_step_result(reader.table("result")),
        mode=cast(Mode, mode),
        reason=reader.text("reason"),
        last_processed_step=reader.integer("last_processed_step"),
        obs_stamp_ns=reader.integer("obs_stamp_ns"),
        dropped_rows=reader.integer("dropped_rows"),
        cause_step=reader.integer("cause_step"),
        wanted=reader.array_or_none("wanted", np.float64, ndim=1),
        intervention="intervention" in reader.names() and reader.flag("intervention"),
        **signals_in(reader),
    )
