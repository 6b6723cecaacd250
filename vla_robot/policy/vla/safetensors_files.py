"""Safetensors files of a checkpoint folder: where each tensor is, read from the files' headers.

Only safetensors is read: no code in a checkpoint is ever executed. A file that an index names lies directly in the
folder.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla import adapters
from vla_robot.policy.vla.json_files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.safetensors")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        files = _shards(folder, read_json(folder / INDEX).get("weight_map"))
    else:
        files = [folder / SINGLE]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        alone = [each for each in (folder, folder / "lora_adapter") if adapters.are_in(each)]
        more = f" Only LoRA adapters are there, in {alone[0]}. {adapters.MERGE}" if alone else ""
        lacks = ", ".join(missing) or "weight files"
        raise CheckpointError(f"{folder} lacks {lacks}; download or copy them again.{more}")
    return files


def _shards(folder: Path, weight_map: object) -> list[Path]:
    """Return the files that an index names, each directly in the folder."""
    names: list[object] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    plain = {name for name in names if isinstance(name, str) and SHARD_NAME.fullmatch(name)}
    if strange := [name for name in names if not (isinstance(name, str) and name in plain)]:
        raise CheckpointError(f"{folder / INDEX}: weight_map must name files of this folder, it holds {strange!r:.80}.")
    return [folder / name for name in sorted(plain)]


type Rows = Callable[[int, int], Tensor]
"""(first, last) -> rows of a stored tensor in main memory, without the last; the others are not read."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file.

    Attributes:
        name: name in the file.
        path: path of the file.
        dtype: torch's, or None for one that torch lacks.
        shape: shape of the tensor.
        begin: offset of its first byte in the file.
        size: size [bytes].
    """

    name: str
    path: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    begin: int
    size: int

    def read(self, file: BufferedReader, buffer: Tensor) -> Tensor:
        """Read the tensor as a view of `buffer`, (size or more,) uint8, from `file`, which is open at `path`."""
        return self._bytes(file, 0, buffer[: self.size]).view(self.shape)

    def rows(self, first: int, last: int) -> Tensor:
        """Read rows `first` to `last`, without the last, alone; of a tensor without dimensions, all of it."""
        if not self.shape:
            first, last = 0, 1
        row = self.size // max(1, self.shape[0] if self.shape else 1)
        with self.path.open("rb") as file:
            raw = self._bytes(file, first * row, torch.empty((last - first) * row, dtype=torch.uint8))
        return raw.view(last - first, *self.shape[1:]) if self.shape else raw.view(())

    def _bytes(self, file: BufferedReader, offset: int, raw: Tensor) -> Tensor:
        """Fill `raw`, uint8, from an offset in the tensor on, and return it as numbers of the tensor's precision."""
        assert self.dtype is not None
        file.seek(self.begin + offset)
        if file.readinto(memoryview(raw.numpy())) != len(raw):
            raise CheckpointError(f"{self.path} ends within tensor '{self.name}'. Copy the file again.")
        return raw.view(self.dtype)


def stored_in(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a folder's files, by name; reads only their headers.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors.
    """
    return {name: stored for path in _weight_files(folder) for name, stored in stored_at(path).items()}


def stored_at(path: Path) -> dict[str, Stored]:
    """Return every tensor of a file, by name; reads only its header. Raises CheckpointError as `stored_in`."""
    try:
        with safe_open(path, framework="pt"):
            pass  # the library's own checks: header, overlaps, and whether the file holds what it says
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or not safetensors ({error}). Copy the file again and compare its size."
        ) from error
    found: dict[str, Stored] = {}
    for name, spec in header.items():
        if name != "__metadata__":
            begin, end = spec["data_offsets"]
            dtype, shape = _DTYPES.get(spec["dtype"]), tuple(spec["shape"])
            found[name] = Stored(name, path, dtype, shape, 8 + size + begin, end - begin)
    return found


def write_in_turn(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a file in fp32, of whose tensors one is in memory at a time; the library's writer needs all at once.

    Args:
        path: where to write.
        shapes: name -> shape, in the order of the file.
        tensors: name and tensor, in this order.
        metadata: content of the header's `__metadata__`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), (given, tensor) in zip(shapes.items(), tensors, strict=True):
            assert (given, tuple(tensor.shape)) == (name, shape)
            file.write(memoryview(tensor.detach().cpu().float().contiguous().view(-1).numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of floating-point precisions in safetensors."""


def require_floats(tensors: Iterable[Stored]) -> None:
    for stored in tensors:
        if stored.dtype is None:
            raise CheckpointError(f"tensor '{stored.name}' in {stored.path} is not in {', '.join(_DTYPES)}.")


def audit(
    place: Path,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    unused: Mapping[str, tuple[int, ...]],
    described_by: str = "its config.json",
) -> None:
    """Raise CheckpointError, which lists every difference by group, unless the tensors found are those wanted.

    Args:
        place: the folder or file that was read.
        wanted: name -> shape.
        found: name -> shape.
        unused: name -> shape of tensors that may be there and are ignored.
        described_by: source of the wanted shapes, for the message.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted and name not in unused]
    wrong = [f"{n} {list(found[n])} (expected {list(s)})" for n, s in wanted.items() if n in found and found[n] != s]
    if missing or unexpected or wrong:
        parts = [
            f"{len(names)} {what}: {_by_group(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if names
        ]
        raise CheckpointError(f"the weights in {place} do not fit {described_by}. " + ". ".join(parts) + ".")


def _by_group(names: Iterable[str]) -> str:
    """Return "group (count, first name)" for each top-level part of the model."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[".".join(name.split(".")[:2])].append(name)
    return "; ".join(f"{group} ({len(members)}, e.g. {members[0]})" for group, members in sorted(groups.items()))
