"""Checks an ONNX file before the runtime reads it, and finds its weights. What a folder says is not trusted:

- weights lie in one file beside it, whose name is fixed here, each within its bytes and as large as its shape says
- operators are ONNX's own: no custom operator, function, loop, or node that names a file of a device
- fields that this check does not know are refused, since they might name something

The runtime gets the checked bytes and the weights; it opens no file itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_robot.core.errors import CheckpointError
from vla_robot.core.untrusted import shortened
from vla_robot.policy.onnx.protobuf import fields, message, numbers, text
from vla_robot.policy.onnx.record import IR, OPSET, WEIGHTS

MOST_BYTES = 256 * 2**20
"""Largest graph, whose weights are elsewhere; a graph of openvla_nano has 0.2 MB."""
MOST_DIMS = 8
TYPES: Mapping[int, type[np.generic]] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64
}  # fmt: skip
"""ONNX's numbers of types of tensors."""

EXTERNAL = 1
"""TensorProto's data_location of a tensor in another file."""


@dataclass(frozen=True)
class Weight:
    """A tensor of a graph in the file of weights.

    Attributes:
        name: its name in the graph.
        type: numpy's type.
        shape: its shape.
        begin: offset of its first byte.
    """

    name: str
    type: type[np.generic]
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * np.dtype(self.type).itemsize


def weights_of(source: str, graph: bytes, available: int) -> list[Weight]:
    """Return the weights of an ONNX file.

    Args:
        source: the file, for messages.
        graph: its content.
        available: bytes of the file of weights.

    Raises:
        CheckpointError: it is damaged, of another version, or asks for something that is refused.
    """
    try:
        return _Model(source, available).read(memoryview(graph))
    except ValueError as error:  # of `protobuf`, and text that is not UTF-8
        raise CheckpointError(f"{source} is not a readable ONNX file ({error}). Copy the folder again.") from error


# Fields that are read or skipped, by message; numbers of onnx.proto. All others are refused.
_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}
_GRAPH = {1, 2, 5, 10, 11, 12, 13, 14, 16}
_NODE = {1, 2, 3, 4, 5, 6, 7, 9}
_ATTRIBUTE = {1, 2, 3, 4, 5, 7, 8, 9, 13, 20}
_TENSOR = {1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 16}


class _Model:
    def __init__(self, source: str, available: int) -> None:
        self._source, self._available = source, available
        self._weights: list[Weight] = []

    def read(self, model: memoryview) -> list[Weight]:
        versions: list[tuple[str, int]] = []
        graphs = 0
        for number, value in self._known("model", model, _MODEL):
            match number:
                case 1:
                    versions.append(("file format", int(value) if isinstance(value, int) else -1))
                case 7:
                    graphs += 1
                    self._graph(message(value))
                case 8:
                    versions.append(self._operators(message(value)))
                case _:
                    pass
        if versions != [("file format", IR), ("operators", OPSET)] or graphs != 1:
            raise CheckpointError(
                f"{self._source} has {graphs} graph(s) and versions {shortened(versions)}; one graph of file format "
                f"{IR} and operators {OPSET} is read. Export the policy again: vla export onnx POLICY FOLDER."
            )
        return self._weights

    def _operators(self, operators: memoryview) -> tuple[str, int]:
        domain, version = "", -1
        for number, value in self._known("set of operators", operators, {1, 2}):
            if number == 1:
                domain = text(value)
            elif isinstance(value, int):
                version = value
        self._require(domain == "", f"operators of {domain!r}")
        return "operators", version

    def _graph(self, graph: memoryview) -> None:
        for number, value in self._known("graph", graph, _GRAPH):
            if number == 1:
                self._node(message(value))
            elif number == 5:
                self._tensor(message(value), may_be_outside=True)

    def _node(self, node: memoryview) -> None:
        for number, value in self._known("node", node, _NODE):
            if number == 7:
                self._require(text(value) == "", f"a node of {text(value)!r}")
            elif number == 5:
                self._attribute(message(value))

    def _attribute(self, attribute: memoryview) -> None:
        for number, value in self._known("attribute", attribute, _ATTRIBUTE):
            if number == 5:
                self._tensor(message(value), may_be_outside=False)

    def _tensor(self, tensor: memoryview, may_be_outside: bool) -> None:
        shape, kind, name, place, outside = list[int](), 0, "", dict[str, str](), False
        for number, value in self._known("tensor", tensor, _TENSOR):
            match number:
                case 1:
                    shape += numbers(value)
                case 2 if isinstance(value, int):
                    kind = value
                case 8:
                    name = text(value)
                case 13:
                    self._entry(place, message(value))
                case 14:
                    outside = value == EXTERNAL
                case _:
                    pass
        self._require(outside == bool(place), "a tensor whose place is unclear")
        if outside:
            self._require(may_be_outside, "a constant in another file")
            self._weights.append(self._weight(name, kind, shape, place))

    def _entry(self, place: dict[str, str], entry: memoryview) -> None:
        found = {number: text(value) for number, value in self._known("entry", entry, {1, 2})}
        key = found.get(1, "")
        self._require(key in ("location", "offset", "length") and key not in place, f"a place of a tensor by {key!r}")
        place[key] = found.get(2, "")

    def _weight(self, name: str, kind: int, shape: list[int], place: Mapping[str, str]) -> Weight:
        self._require(place.get("location") == WEIGHTS, f"weights in {place.get('location')!r}, not in {WEIGHTS}")
        self._require(kind in TYPES, f"weights of type {kind}")
        self._require(len(shape) <= MOST_DIMS and all(0 < side < 2**31 for side in shape), f"a shape {shape}")
        offset, length = place.get("offset", "0"), place.get("length", "")
        plain = all(each.isascii() and each.isdigit() and len(each) < 16 for each in (offset, length))
        self._require(plain, f"weights at {offset!r} of {length!r} bytes")
        weight = Weight(name, TYPES[kind], tuple(shape), int(offset))
        if weight.size != int(length) or weight.begin + weight.size > self._available:
            raise CheckpointError(
                f"{self._source}: weights of shape {shape} take {length} bytes from {offset} on, but {WEIGHTS} has "
                f"{self._available} bytes, and they need {weight.size}. Copy the folder again."
            )
        return weight

    def _known(self, what: str, found: memoryview, known: set[int]):
        for number, value in fields(found):
            self._require(number in known, f"field {number} of a {what}")
            yield number, value

    def _require(self, is_fine: bool, what: str) -> None:
        if not is_fine:
            raise CheckpointError(
                f"{self._source} holds {shortened(what)}, which `vla export onnx` does not write and which is refused."
            )
