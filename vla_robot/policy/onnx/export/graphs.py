"""Turns steps into ONNX files by torch's own exporter, with one file of weights for all of them."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from vla_robot.core.errors import PolicyError
from vla_robot.core.untrusted import shortened
from vla_robot.policy.onnx.export.steps import Step
from vla_robot.policy.onnx.record import OPSET, WEIGHTS

SMALL = 1024
"""Constants of fewer bytes stay in their graph."""
ALIGNED = 64
"""Tensors in the file of weights begin at multiples of it [bytes], as vector instructions read fastest."""


def exported(step: Step, where: str) -> Any:
    """Return a step as onnx.ModelProto of fixed sizes, with its weights inside.

    Args:
        step: the step.
        where: what is exported, for the message.

    Raises:
        PolicyError: torch's exporter cannot; the message has its reason.
    """
    inputs = step.inputs
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _recorded(step),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=step.outputs,
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        return program.model_proto
    except Exception as error:  # the exporter raises errors of many types
        reason = str(error).strip().splitlines() or [""]
        raise PolicyError(
            f"{where} is not exported: torch's exporter fails with {type(error).__name__}: {shortened(reason[0])}"
        ) from error


def _recorded(step: Step) -> torch.nn.Module:
    """Return a step's operations, recorded while it runs on its example.

    Some libraries read the frames' sizes from tensors, which the exporter, whose tensors have no values, cannot. Sizes
    are fixed here, so what they read is a constant. One that depended on a pixel would be found by the self-test.
    """
    step.eval()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        with _NumbersAreConstants():
            return step(*tensors)

    return make_fx(run, tracing_mode="real")(*step.inputs.values())


class _NumbersAreConstants(TorchDispatchMode):
    """Gives the number in a tensor that is being recorded, which `make_fx` refuses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            with disable_proxy_modes_tracing():
                return func(*args)
        return func(*args, **(kwargs or {}))


class SharedWeights:
    """Moves the weights of graphs into one file, each tensor once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        self._file = (self._folder / WEIGHTS).open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(self, name: str, model: Any) -> None:
        """Write a graph without its weights as `name`, and those weights that the file does not have yet."""
        for tensor in model.graph.initializer:
            content = _content(tensor)
            if len(content) >= SMALL:
                self._move(tensor, content)
        used = {name for node in model.graph.node for name in node.input}
        for unused in [each for each in model.graph.input if each.name not in used]:
            model.graph.input.remove(unused)  # onnxruntime's OpenVINO crashes at one
        del model.metadata_props[:]
        for node in model.graph.node:  # the exporter's notes on the source code, most of the file
            del node.metadata_props[:]
        del model.graph.value_info[:]
        (self._folder / name).write_bytes(model.SerializeToString(deterministic=True))

    def _move(self, tensor: Any, content: bytes) -> None:
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNED))
            self._places[key] = self._file.tell()
            self._file.write(content)
        place = {"location": WEIGHTS, "offset": str(self._places[key]), "length": str(len(content))}
        dims, kind, name = list(tensor.dims), tensor.data_type, tensor.name
        tensor.Clear()
        tensor.dims.extend(dims)
        tensor.data_type, tensor.name, tensor.data_location = kind, name, TensorProto.EXTERNAL
        for part, text in place.items():
            tensor.external_data.add(key=part, value=text)


def _content(tensor: Any) -> bytes:
    """Return a tensor's bytes, in the order of the file format."""
    return tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Return a context without the exporter's notes on itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
