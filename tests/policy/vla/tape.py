"""Work that is recorded and repeated on a CPU, by the rules of a CUDA graph.

A graph is a list of kernels with the addresses that they read and write. Its repetition runs no Python: an attribute
that the work assigned, or a number that it read, is what it was while it was recorded. `Tape` keeps the operations with
their tensors, and repeats them into the same memory; a step that relies on more gives another answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla_robot.policy.vla.slots.recorded import Work

READS = {"_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero"}


class Tape(TorchDispatchMode):
    """Keeps the operations of a `with` block. As a graph's recording, it sees those of its own thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    def __len__(self) -> int:
        return len(self._done)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name.partition("::")[2] in READS:
            raise RuntimeError(f"{func} reads a number, which no graph can")
        given = dict(kwargs or {})
        known = {_place(t) for t in tree_leaves((args, given)) if isinstance(t, Tensor)}
        result = func(*args, **given)
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _place(t) not in known]
        self._done.append((func, args, given, made))
        return result

    def repeat(self) -> None:
        """Run all operations again, into the memory of the first time."""
        for func, args, kwargs, made in self._done:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for target, result in zip(made, again if made else [], strict=True):
                target.copy_(result)


class Tapes:
    """Stands in for `slots.recorded.recorded`.

    Attributes:
        recorded: name of a work and the thread that recorded it, in order.
        repeated: the same of each repetition.
    """

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str]] = []
        self.repeated: list[tuple[str, str]] = []

    def __call__(self, device: torch.device, works: Mapping[str, Work]) -> dict[str, Work]:
        return {name: self._record(name, work) for name, work in works.items()}

    def _record(self, name: str, work: Work) -> Work:
        self.recorded.append((name, threading.current_thread().name))
        with Tape() as tape:
            work()
        assert len(tape) > 0

        def repeat() -> None:
            # torch keeps the mode by thread: memory of inference mode can be written in it alone.
            assert torch.is_inference_mode_enabled()
            self.repeated.append((name, threading.current_thread().name))
            tape.repeat()

        return repeat


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
