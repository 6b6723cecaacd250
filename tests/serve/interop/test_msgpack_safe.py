"""The dialects of openpi and GR00T: golden bytes made by their own packers, and what is refused.

The bytes were packed by openpi-client 0.1.2, by msgpack-numpy 0.4.8 as GR00T N1.7 calls it, and by np.save in the map
of GR00T N1.5 and N1.6 (NumPy 1.26, msgpack 1.2): `x` is a (2, 3) float32 of 0, 0.25, ... 1.25.
"""

from __future__ import annotations

import io
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_robot.core.errors import TransportError
from vla_robot.serve.interop import groot_wire, openpi_wire
from vla_robot.serve.interop.msgpack_safe import MAX_MESSAGE_BYTES
from vla_robot.transport.wire import DTYPES

X = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
X_HEX = "000000000000803e0000003f0000403f0000803f0000a03f"
NPY_PADDING = "20" * 58 + "0a"

OPENPI = bytes.fromhex(
    "82a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c418" + X_HEX + "c4056474797065a33c6634c4057368617065"
    "920203a16e83c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fe0000000000000c4056474797065a33c6634"
)
GROOT_HEAD = "82a8656e64706f696e74aa6765745f616374696f6ea464617461"
GROOT_NPY = bytes.fromhex(
    GROOT_HEAD + "81a17882b15f5f6e6461727261795f636c6173735f5fc3a661735f6e7079c498934e554d5059010076007b27646573637227"
    "3a20273c6634272c2027666f727472616e5f6f72646572273a2046616c73652c20277368617065273a2028322c2033292c207d"
    + NPY_PADDING
    + X_HEX
)
GROOT_NUMPY = bytes.fromhex(
    GROOT_HEAD + "81a17885c4026e64c3c40474797065a33c6634c4046b696e64c400c4057368617065920203c40464617461c418" + X_HEX
)
SCALAR_NUMPY = bytes.fromhex("81a16e83c4026e64c2c40474797065a33c6634c40464617461c4040000003f")

any_array = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_openpi_writes_what_openpi_client_writes() -> None:
    ours = openpi_wire.pack({"actions": X})
    assert ours[1:] == OPENPI[1 : len(ours)]  # the first byte counts the entries


def test_openpi_reads_what_openpi_client_writes() -> None:
    message = openpi_wire.unpack(OPENPI)
    np.testing.assert_array_equal(message["actions"], X)
    assert message["n"] == 0.5


@pytest.mark.parametrize(("dialect", "golden"), [("npy", GROOT_NPY), ("msgpack_numpy", GROOT_NUMPY)])
def test_groot_writes_and_reads_both_dialects_to_the_byte(dialect: groot_wire.Dialect, golden: bytes) -> None:
    message = {"endpoint": "get_action", "data": {"x": X}}
    assert groot_wire.pack(message, dialect) == golden
    read = groot_wire.unpack(golden)
    assert read["endpoint"] == "get_action"
    np.testing.assert_array_equal(read["data"]["x"], X)


def test_groot_writes_a_ping_as_upstream_does() -> None:
    golden = bytes.fromhex("81a8656e64706f696e74a470696e67")
    assert groot_wire.pack({"endpoint": "ping"}, "npy") == groot_wire.pack({"endpoint": "ping"}, "msgpack_numpy")
    assert groot_wire.pack({"endpoint": "ping"}, "npy") == golden


def test_groot_reads_a_scalar_and_an_array_in_columns() -> None:
    assert groot_wire.unpack(SCALAR_NUMPY) == {"n": 0.5}
    message = msgpack.packb({"__ndarray_class__": True, "as_npy": npy(np.asfortranarray(X))})
    np.testing.assert_array_equal(groot_wire.unpack(message), X)


@pytest.mark.parametrize("mark", ["__ModalityConfig__", "__ModalityConfig_class__"])
@pytest.mark.parametrize("config", [{"delta_indices": [0]}, '{"delta_indices": [0]}', b'{"delta_indices": [0]}'])
def test_groot_reads_a_modality_of_every_generation(mark: str, config: object) -> None:
    message = msgpack.packb({"video": {mark: True, "as_json": config}})
    assert groot_wire.unpack(message) == {"video": {"delta_indices": [0]}}


@given(any_array)
def test_every_array_survives_the_way_there_and_back(array: np.ndarray) -> None:
    there = [
        openpi_wire.unpack(openpi_wire.pack({"x": array})),
        groot_wire.unpack(groot_wire.pack({"x": array}, "npy")),
        groot_wire.unpack(groot_wire.pack({"x": array}, "msgpack_numpy")),
    ]
    for message in there:
        assert message["x"].dtype == array.dtype
        np.testing.assert_array_equal(message["x"], array)
        assert not message["x"].flags.writeable


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for unpack in (openpi_wire.unpack, groot_wire.unpack):
        try:
            unpack(data)
        except TransportError:
            continue


@given(st.data())
def test_a_damaged_message_is_read_or_refused(data: st.DataObject) -> None:
    golden, unpack = data.draw(
        st.sampled_from(
            [(OPENPI, openpi_wire.unpack), (GROOT_NPY, groot_wire.unpack), (GROOT_NUMPY, groot_wire.unpack)]
        )
    )
    damaged = bytearray(golden)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(damaged))
    except TransportError:
        return


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02", b"\x80\x04"])
def test_the_dialect_that_carries_pickle_is_refused_and_explained(start: bytes) -> None:
    with pytest.raises(TransportError, match=r"before September 2025, torch\.save.*Update the server"):
        groot_wire.unpack(start + b"\x00archive/data.pkl")


def array_map(**changes: Any) -> bytes:
    table = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": X.tobytes()}
    return msgpack.packb({"x": {**table, **{key.encode(): value for key, value in changes.items()}}})


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (array_map(kind=b"O", data=b"\x80\x04."), "never read"),
        (array_map(kind="O", data=b"\x80\x04."), "never read"),
        (array_map(kind=b"V", type=[["a", "<f4"]]), "never read"),
        (array_map(type="|O"), "allowed are"),
        (array_map(type="|V8"), "allowed are"),
        (array_map(shape=[2, 4]), "has 32 bytes, its frame 24"),
        (array_map(shape=[1 << 40, 1 << 40]), "numbers from 0 to"),
        (array_map(data=None), "without its 'data'"),
        (
            msgpack.packb({"__ndarray_class__": True, "as_npy": npy(np.array([1, None]), allow_pickle=True)}),
            "never read",
        ),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": npy(np.zeros(2, "<f4,<i4"))}), "never read"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": npy(X)[:-1]}), "has 24 bytes, its frame 23"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": b""}), "never read"),
        (msgpack.packb({"__ndarray_class__": True}), "without its 'as_npy'"),
        (msgpack.packb({"__ModalityConfig__": True, "as_json": "{"}), "not JSON"),
    ],
)
def test_groot_refuses_what_is_no_array_of_numbers(message: bytes, says: str) -> None:
    with pytest.raises(TransportError, match=says):
        groot_wire.unpack(message)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "|O"}, "allowed are"),
        ({"dtype": ">f4"}, "allowed are"),
        ({"dtype": "<U1"}, "allowed are"),
        ({"dtype": None}, "allowed are"),
        ({"shape": [7]}, "has 28 bytes, its frame 24"),
        ({"shape": "23"}, "not a list"),
        ({"data": [1.0]}, "without its data"),
    ],
)
def test_openpi_refuses_what_is_no_array_of_numbers(changes: dict[str, Any], says: str) -> None:
    table: dict[str, Any] = {"__ndarray__": True, "data": X.tobytes(), "dtype": "<f4", "shape": [2, 3], **changes}
    with pytest.raises(TransportError, match=says):
        openpi_wire.unpack(msgpack.packb({"x": {key.encode(): value for key, value in table.items()}}))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (msgpack.packb([1, 2]), "must be a map, got list"),
        (msgpack.packb({1: 2}), "not valid msgpack"),
        (msgpack.packb({"x": msgpack.ExtType(5, b"")}), "ext value 5"),
        (msgpack.packb({"x": [[[]] * 4000] * 5}), "more than 16384 values"),
        (b"\x91" * 2000, "not valid msgpack"),
        (OPENPI[:-1], "not valid msgpack"),
    ],
)
def test_openpi_refuses_what_is_no_message(message: bytes, says: str) -> None:
    with pytest.raises(TransportError, match=says):
        openpi_wire.unpack(message)


def test_a_message_that_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(TransportError, match="allowed are 134217728"):
        openpi_wire.unpack(memoryview(np.zeros(MAX_MESSAGE_BYTES + 1, np.uint8)))


@pytest.mark.parametrize("array", [np.array([1, None]), np.zeros(2, complex), np.array(["a"])])
def test_what_is_no_number_is_not_sent(array: np.ndarray) -> None:
    for pack in (
        openpi_wire.pack,
        lambda m: groot_wire.pack(m, "npy"),
        lambda m: groot_wire.pack(m, "msgpack_numpy"),
    ):
        with pytest.raises(TransportError, match="cannot travel"):
            pack({"x": array})
