"""Files of a checkpoint whose tensors are shared: each process writes its own rows, and any number of them read theirs.

    resume/state.safetensors                      one process: whole tensors
    resume/state-00000-of-00002.safetensors       rows of rank 0, as FSDP shares them; the header says which
    resume/state-00001-of-00002.safetensors

    weight (5, 3)     written by two: rows 0-2, 3-4      read by three: rows 0-1, 2-3, 4, from the files that have them

No process holds or reads more than its own rows. torch's own distributed checkpoint is not used: its `.metadata` is a
pickle, which runs what it holds when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from vla_robot.core.host.closeable import Closeable
from vla_robot.train.parallel.fsdp import first_row, local

WHOLE = "state.safetensors"
FIRST_ROWS = "first_rows"
"""Key of a file's header: JSON of name -> number of the first row that the file has."""

_PART = re.compile(r"state-\d{5}-of-\d{5}\.safetensors")


def part_name(rank: int, count: int) -> str:
    """Return the name of a rank's file.

    >>> part_name(1, 2)
    'state-00001-of-00002.safetensors'
    """
    return f"state-{rank:05d}-of-{count:05d}.safetensors"


def own_rows(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return this process's rows of each tensor, without empty ones, and the header that says which they are."""
    rows = {name: local(tensor) for name, tensor in tensors.items() if local(tensor).numel()}
    return rows, {FIRST_ROWS: json.dumps({name: first_row(tensors[name]) for name in rows})}


class _Piece(NamedTuple):
    """Rows of a tensor in a file, from `first` on."""

    file: Any
    first: int
    shape: tuple[int, ...]


class StoredState(Closeable):
    """The tensors of a checkpoint folder, whichever number of processes wrote it.

    Attributes:
        bytes_read: bytes of the rows that were read so far.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            SafetensorError: a file is damaged.
            OSError: there is none.
            ValueError: a header is malformed.
        """
        self.bytes_read = 0
        self._stack = ExitStack()
        self._pieces: dict[str, list[_Piece]] = {}
        parts = sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))
        try:
            for path in parts or [folder / WHOLE]:
                self._add(self._stack.enter_context(safe_open(path, framework="pt")))
        except BaseException:
            self.close()
            raise

    def names(self) -> set[str]:
        return set(self._pieces)

    def read_into(self, name: str, target: Tensor) -> None:
        """Read the rows of `target` that this process holds.

        Raises:
            KeyError: there is no such tensor.
            ValueError: it has another shape, or rows are missing.
        """
        into, first = local(target), first_row(target)
        if target.ndim == 0:
            (piece,) = self._pieces[name]
            into.copy_(piece.file.get_tensor(name))
            return
        missing = len(into)
        for piece in self._pieces[name]:
            if piece.shape[1:] != tuple(target.shape[1:]):
                raise ValueError(f"'{name}' has rows of {piece.shape[1:]}, expected {tuple(target.shape[1:])}")
            low, high = max(piece.first, first), min(piece.first + piece.shape[0], first + len(into))
            if low < high:
                rows: Tensor = piece.file.get_slice(name)[low - piece.first : high - piece.first]
                into[low - first : high - first].copy_(rows)
                self.bytes_read += rows.nbytes
                missing -= high - low
        rows_there = sum(piece.shape[0] for piece in self._pieces[name])
        if missing or rows_there != target.shape[0]:
            raise ValueError(f"'{name}' has {rows_there} rows, expected {target.shape[0]}; is a file missing?")

    def close(self) -> None:
        self._stack.close()

    def _add(self, file: Any) -> None:
        firsts = json.loads((file.metadata() or {}).get(FIRST_ROWS, "{}"))
        for name in file.keys():  # noqa: SIM118 (no mapping)
            first = firsts.get(name, 0)
            if type(first) is not int or first < 0:
                raise ValueError(f"the first row of '{name}' is {first!r}")
            self._pieces.setdefault(name, []).append(_Piece(file, first, tuple(file.get_slice(name).get_shape())))
