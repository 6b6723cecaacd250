"""GR00T's msgpack, in its two safe dialects. Both are read, whichever is sent.

    "npy"            {"__ndarray_class__": true, "as_npy": bytes of a .npy file}                       N1.5 to N1.7
    "msgpack_numpy"  {b"nd": true, b"type": "<f4", b"kind": b"", b"shape": [..], b"data": bytes}       N1.7

A server from before September 2025 uses a third one, torch.save. Reading it would unpickle the server's data and run
any code in it, so it is refused.

>>> unpack(pack({"action.arm": np.zeros((1, 16, 6), np.float32)}, "npy"))["action.arm"].shape
(1, 16, 6)

Source: Isaac-GR00T, gr00t/eval/service.py (N1.5) and gr00t/policy/server_client.py (N1.6, N1.7).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgpack
import numpy as np

from vla_robot.core.errors import TransportError
from vla_robot.serve.interop.msgpack_safe import MAX_TEXT_BYTES, sendable
from vla_robot.serve.interop.msgpack_safe import unpack as unpack_with
from vla_robot.transport.wire import Array, Buffer, read_array

Dialect = Literal["npy", "msgpack_numpy"]

PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a torch.save file, new or old, or of a pickle. As msgpack, 0x80 would be a complete, empty map."""

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][A-Za-z]\d{1,3})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}, )*(?:\d{1,12},?)?)\), \} *\n"
)
_MODALITY_MARKS = ("__ModalityConfig__", "__ModalityConfig_class__")


def pack(value: Mapping[str, Any], dialect: Dialect) -> bytes:
    """Pack one message.

    Raises:
        TransportError: a value cannot be packed.
    """
    try:
        return msgpack.packb(value, default=_PACKERS[dialect])
    except (ValueError, TypeError, OverflowError) as error:
        raise TransportError(f"the message cannot be packed: {error}.") from error


def unpack(data: Buffer) -> Any:
    """Unpack a message; its arrays are read-only views of `data`.

    Raises:
        TransportError: it is not such a message, or one that only pickle can read.
    """
    if bytes(memoryview(data)[:4]).startswith(PICKLED):
        raise TransportError(
            "the server speaks GR00T's dialect of before September 2025, torch.save. Reading it would run any "
            "code that the server sends (pickle), so it is refused. Update the server: N1.5 since then, N1.6 and "
            "N1.7 speak msgpack."
        )
    return unpack_with(data, _read_map)


def _pack_npy(value: Any) -> Any:
    file = io.BytesIO()
    np.save(file, sendable(_array(value)), allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _pack_msgpack_numpy(value: Any) -> Any:
    array = sendable(_array(value))
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


_PACKERS: dict[Dialect, Callable[[Any], Any]] = {"npy": _pack_npy, "msgpack_numpy": _pack_msgpack_numpy}


def _array(value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} cannot travel")
    return value


def _read_map(table: Mapping[Any, Any]) -> Any:
    if _get(table, "__ndarray_class__"):
        return _read_npy(_bytes(table, "as_npy"))
    if _has(table, "nd"):
        return _read_msgpack_numpy(table)
    if any(_has(table, mark) for mark in _MODALITY_MARKS):
        return _read_modality(_get(table, "as_json"))
    return table


def _read_npy(data: bytes) -> Array:
    """Read a .npy file of format 1.0. np.load would allocate what the header says before it checks the size."""
    header_end = 10 + int.from_bytes(data[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[10:header_end])
    if not data.startswith(_NPY_MAGIC) or header is None:
        raise TransportError("an array is not a .npy file of numbers, format 1.0. Arrays of objects are never read.")
    shape = [int(size) for size in re.findall(rb"\d+", header[3])]
    fortran = header[2] == b"True"
    array = read_array([header[1].decode(), shape[::-1] if fortran else shape], memoryview(data)[header_end:])
    return array.T if fortran else array


def _read_msgpack_numpy(table: Mapping[Any, Any]) -> Any:
    if _get(table, "kind") not in (None, b"", ""):
        raise TransportError(
            f"an array of kind {str(_get(table, 'kind'))[:8]} came. Arrays of objects are pickled; reading them could "
            "run code of the server: they are never read."
        )
    kind, data = _get(table, "type"), memoryview(_bytes(table, "data"))
    if _get(table, "nd"):
        return read_array([kind, _get(table, "shape")], data)
    return read_array([kind, []], data).item()


def _read_modality(config: Any) -> Any:
    """Return a server's configuration of one modality, which is a map or JSON text."""
    if not isinstance(config, str | bytes):
        return config
    try:
        return json.loads(config[:MAX_TEXT_BYTES])
    except (ValueError, RecursionError) as error:
        raise TransportError("a modality's configuration is not JSON.") from error


def _has(table: Mapping[Any, Any], key: str) -> bool:
    return key in table or key.encode() in table


def _get(table: Mapping[Any, Any], key: str) -> Any:
    """Return the value of a key in either spelling: servers pack keys as text or as bytes."""
    return table.get(key, table.get(key.encode()))


def _bytes(table: Mapping[Any, Any], key: str) -> bytes:
    data = _get(table, key)
    if not isinstance(data, bytes):
        raise TransportError(f"an array comes without its '{key}'.")
    return data
