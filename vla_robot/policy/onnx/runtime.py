"""onnxruntime's sessions: which provider runs them, with how many threads, over weights that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError
from vla_robot.core.host.provenance import main_memory_mb
from vla_robot.core.untrusted import read_file, shortened
from vla_robot.policy.onnx.graph_file import MOST_BYTES, weights_of
from vla_robot.policy.onnx.record import WEIGHTS, Record, file_names

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""Names in a recipe -> onnxruntime's."""
WHEELS = {"openvino": "onnxruntime-openvino", "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu"}
"""Provider -> the distribution that has it on Linux; it replaces the plain one."""
QUIET = 3
"""onnxruntime's log level at which only errors are told."""

type Session = onnxruntime.InferenceSession
type Values = Mapping[str, Any]
"""Name -> onnxruntime's OrtValue."""


def require_provider(provider: str) -> str:
    """Return onnxruntime's name of a provider. Raises ContractError if this installation has none."""
    name = PROVIDERS[provider]
    there = onnxruntime.get_available_providers()
    if name not in there:
        found = [short for short, long in PROVIDERS.items() if long in there]
        wheel = WHEELS.get(provider)
        hint = f" Install it instead of onnxruntime: pip install {wheel}." if wheel else ""
        raise ContractError(
            f"provider is '{provider}', but onnxruntime {onnxruntime.__version__} here has: {', '.join(found)}.{hint}"
        )
    return name


class Graphs:
    """The graphs of a folder. Each is opened when it is first run; all files are read and checked at once before."""

    def __init__(self, folder: Path, record: Record, provider: str, threads: int) -> None:
        """
        Args:
            folder: an exported folder.
            record: its onnx.json.
            provider: key of `PROVIDERS`.
            threads: processor threads of an inference; 0 leaves them to the runtime.

        Raises:
            ContractError: the provider is not there.
            CheckpointError: a file is missing, damaged or refused.
        """
        self._provider, self._threads = require_provider(provider), threads
        self._folder, self._lock = folder, Lock()
        self._weights = np.frombuffer(_checked(folder, WEIGHTS, record), np.uint8)
        names = [name for name in file_names(record) if name != WEIGHTS]
        self._graphs = {name: _checked(folder, name, record, MOST_BYTES) for name in names}
        self._places = {n: weights_of(str(folder / n), g, len(self._weights)) for n, g in self._graphs.items()}
        self._sessions: dict[str, Session] = {}

    def run(self, name: str, inputs: Values) -> dict[str, Any]:
        """Return a graph's outputs by name; inputs that it does not read are left out.

        Raises:
            CheckpointError: the runtime cannot open the graph.
            PolicyError: the runtime fails.
        """
        session = self.opened(name)
        read = {wanted.name: inputs[wanted.name] for wanted in session.get_inputs()}
        outputs = [output.name for output in session.get_outputs()]
        try:
            return dict(zip(outputs, session.run_with_ort_values(outputs, read), strict=True))
        except Exception as error:  # the runtime raises its own types, which it does not export
            raise PolicyError(f"{self._folder / name}: onnxruntime failed: {shortened(error)}.") from error

    def opened(self, name: str) -> Session:
        """Return the session of a graph. Raises CheckpointError if the runtime cannot open it."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._open(name)
            return self._sessions[name]

    def _open(self, name: str) -> Session:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = QUIET
        places = self._places[name]
        tensors = [self._weights[w.begin : w.begin + w.size].view(w.type).reshape(w.shape) for w in places]
        options.add_external_initializers([w.name for w in places], [value(tensor) for tensor in tensors])
        try:
            session = onnxruntime.InferenceSession(self._graphs[name], options, providers=[self._provider])
        except Exception as error:  # as in `run`
            raise CheckpointError(f"{self._folder / name}: onnxruntime cannot open it: {shortened(error)}.") from error
        if session.get_providers()[0] != self._provider:  # it falls back to the CPU with a warning
            raise ContractError(f"onnxruntime cannot start {self._provider} on this computer. Choose another provider.")
        return session


def value(array: NDArray[Any]) -> Any:
    """Return an array as an OrtValue, which shares its memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(folder: Path, name: str, record: Record, most: int | None = None) -> bytes:
    """Return a file's content, if its sha256 is the record's.

    Raises:
        CheckpointError: it is missing, too large for `most` or for this computer's memory, or damaged.
    """
    path = folder / name
    try:
        size = path.stat().st_size  # `read_file` takes memory for as much as it may read
        content = read_file(path, min(size, int(main_memory_mb() * 1e6) if most is None else most), CheckpointError)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the folder again.") from error
    if hashlib.sha256(content).hexdigest() != record.files[name]:
        raise CheckpointError(f"{path} is damaged: its sha256 is not that of onnx.json. Copy the folder again.")
    return content
