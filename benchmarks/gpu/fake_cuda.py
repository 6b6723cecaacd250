"""A CUDA device that computes nothing, on a machine without one: torch's fake tensors, with every operation counted.

Fake tensors have a shape, a precision and a device, and no numbers. An operation on two devices raises as on a GPU.
What needs a number (`bool(tensor)`, `tensor.item()`) is a read, for which the program would wait until the GPU is done;
here it is counted by the function that asked, and answered from a table.

    with FakeCuda() as gpu:
        policy = load(folder, Loading(device="cuda"))
        policy.generate(batch, 7, gpu.timer())
    gpu.stages["prefill"].kernels    # what was started, by the stages of the timer
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vla_robot
from vla_robot.policy.openvla.engine import chunk_regression
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.slots import block
from vla_robot.policy.vla.slots.recorded import Work

PACKAGE = Path(vla_robot.__file__).parent
READS = frozenset({"_local_scalar_dense", "equal", "nonzero", "is_nonzero"})
"""Operations whose result is needed in main memory, or has a shape that depends on numbers."""
FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "t",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "split",
        "unbind",
        "chunk",
        "split_with_sizes",
        "as_strided",
        "view_as",
        "_reshape_alias",
        "unflatten",
        "narrow",
        "lift_fresh",
        "empty",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "empty_like",
        "diagonal",
        "unfold",
    ]
)
"""Operations that start no kernel."""

type Answer = bool | int | Callable[[], bool | int]


@dataclass
class Tally:
    """What one stage started.

    Attributes:
        kernels: operation -> how often; a composite one by its parts, so that it is an estimate of kernel launches. A
            function that is compiled is one kernel, "fused"; `tests/policy/openvla/engine/test_fused.py` holds that.
        reads: "file function" that waited for the device -> how often.
        copies: "cpu->cuda" or "cuda->cpu" -> how often.
        uploaded_bytes: bytes of all copies to the device.
        masks: precision of an attention's mask, or "none" -> how often.
    """

    kernels: Counter[str] = field(default_factory=Counter[str])
    reads: Counter[str] = field(default_factory=Counter[str])
    copies: Counter[str] = field(default_factory=Counter[str])
    uploaded_bytes: int = 0
    masks: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: Tally) -> None:
        """Add what another stage started."""
        for mine, more in zip(self._counters(), other._counters(), strict=True):
            mine.update(more)
        self.uploaded_bytes += other.uploaded_bytes

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.kernels, self.reads, self.copies, self.masks


class _Region:
    """The work of one function that `torch.compile` joins, which counts as one kernel.

    Attributes:
        inside: whether such a function runs.
        counted: whether its kernel was counted.
    """

    def __init__(self) -> None:
        self.inside = self.counted = False

    def compiled(self, work: Callable[..., Any], **options: object) -> Callable[..., Any]:
        """Stand in for `torch.compile`."""

        def run(*args: Any) -> Any:
            self.inside, self.counted = True, False
            try:
                return work(*args)
            finally:
                self.inside = False

        return run


_REGION = _Region()
"""Policies that one fake device compiled run on others too, so that it is none's own."""


class FakeCuda:
    """A context in which "cuda" is a fake device.

    Attributes:
        stages: stage -> what it started, by the laps of `timer`; "rest" after the last lap.
        graphs: name of recorded work -> what each repetition starts by one call, which is a kernel "graph" of a stage.
        repeated: sum of all repetitions.
        mode: the mode of its tensors.
    """

    def __init__(
        self, answers: Mapping[str, Answer] | None = None, device: str = "cuda", mode: FakeTensorMode | None = None
    ) -> None:
        """
        Args:
            answers: name of a function that reads a number -> the number, or a function that gives the next one. A bool
                that is not named is true, any other number 0.
            device: "cuda", or "meta" for a backward pass, whose threads torch starts on real devices only.
            mode: mode of another one, whose tensors are used here; a new one by default.
        """
        self._device = device
        self.stages: dict[str, Tally] = {}
        self.graphs: dict[str, Tally] = {}
        self.repeated = Tally()
        self._answers = answers or {}
        self._now = Tally()
        self._open = ExitStack()
        self.mode = mode or FakeTensorMode()

    def __enter__(self) -> Self:
        enter = self._open.enter_context
        enter(mock.patch.object(torch.cuda, "device_count", lambda: 1))
        enter(mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)))
        enter(mock.patch.object(torch.cuda, "current_stream", mock.MagicMock()))
        enter(mock.patch.object(torch, "compile", _REGION.compiled))
        for module in (block, chunk_regression):
            enter(mock.patch.object(module, "recorded", self._recorded))
        enter(self.mode)
        enter(_Operations(self._now, self._answer, self._device))
        enter(_Functions(self._now, self._device))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self.lap("rest")

    def timer(self) -> StageTimer:
        """Return a timer whose laps end the stages of this device."""
        return _Laps(self)

    def lap(self, name: str) -> None:
        """Count everything since the last stage as the stage `name`."""
        self.stages.setdefault(name, Tally()).add(self._now)
        self._now.__init__()

    def total(self, *without: str) -> Tally:
        """Return the sum of all stages but those named."""
        total = Tally()
        for name, tally in self.stages.items():
            if name not in without:
                total.add(tally)
        return total

    def move[M: nn.Module](self, model: M, dtype: torch.dtype | None = None) -> M:
        """Replace a real model's parameters and buffers by fake ones on the device, tied ones by one; return it."""
        moved: dict[int, Tensor] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        table[name] = moved.setdefault(id(tensor), self._fake(tensor, dtype))  # type: ignore[assignment]
        return model

    def _recorded(self, device: torch.device, works: Mapping[str, Work]) -> dict[str, Work]:
        return {name: self._graph(name, work) for name, work in works.items()}

    def _graph(self, name: str, work: Work) -> Work:
        before, graph = Tally(), Tally()
        before.add(self._now)
        self._now.__init__()
        work()
        graph.add(self._now)
        self._now.__init__()
        self._now.add(before)
        if graph.reads or graph.copies:
            raise RuntimeError(f"'{name}' cannot be recorded: it reads {graph.reads} and copies {graph.copies}")
        self.graphs[name] = graph

        def repeat() -> None:
            self._now.kernels["graph"] += 1
            self.repeated.add(graph)

        return repeat

    def _fake(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        made = torch.empty(tensor.shape, dtype=kind, device=self._device)
        return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

    def _answer(self, function: str, is_bool: bool) -> bool | int:
        answer = self._answers.get(function, True if is_bool else 0)
        return answer() if callable(answer) else answer


class _Laps(StageTimer):
    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self._gpu = gpu

    def lap(self, name: str) -> None:
        super().lap(name)
        self._gpu.lap(name)


class _Operations(TorchDispatchMode):
    """Counts operations, copies and reads."""

    def __init__(self, tally: Tally, answer: Callable[[str, bool], bool | int], device: str) -> None:
        super().__init__()
        self._tally = tally
        self._answer = answer
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        given = [*_tensors([*args, *kwargs.values()])]
        on_gpu = any(t.device.type == self._device for t in given)
        if given and name in READS:
            return self._read(name, args, on_gpu)
        if on_gpu and name == "index" and any(_is_mask(i) for i in args[1]):
            return self._masked(args)
        if name in ("_to_copy", "copy_"):
            self._copy(name, args, kwargs)
        elif (parts := self._parts(func, args, kwargs)) is not NotImplemented:
            return parts
        made = func(*args, **kwargs)
        if (
            func.namespace != "prim"
            and name not in FREE
            and (on_gpu or any(t.device.type == self._device for t in _tensors([made])))
        ):
            self._count(name)
        return made

    def _count(self, name: str) -> None:
        if not _REGION.inside:
            self._tally.kernels[name] += 1
        elif not _REGION.counted:
            _REGION.counted = True
            self._tally.kernels["fused"] += 1

    def _parts(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a composite operation by its parts; NotImplemented for one that is a kernel."""
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if func.namespace != "aten" or not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _read(self, name: str, args: Sequence[Any], on_gpu: bool) -> Any:
        place = _place()
        if on_gpu:
            self._tally.reads[" ".join(place)] += 1
        if name == "nonzero":
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        answer = self._answer(place[1], name != "_local_scalar_dense" or args[0].dtype == torch.bool)
        return float(answer) if name == "_local_scalar_dense" and args[0].is_floating_point() else answer

    def _masked(self, args: Sequence[Any]) -> Tensor:
        """Return `tensor[mask]` as if the mask were true everywhere; its size depends on numbers."""
        self._tally.reads[" ".join(_place())] += 1
        mask = next(i for i in args[1] if _is_mask(i))
        return args[0].new_empty((mask.numel(), *args[0].shape[mask.dim() :]))

    def _copy(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        source = args[0] if name == "_to_copy" else args[1]
        target = torch.device(kwargs.get("device") or args[0].device) if name == "_to_copy" else args[0].device
        if source.device.type != target.type:
            self._tally.copies[f"{source.device.type}->{target.type}"] += 1
            self._tally.uploaded_bytes += source.nbytes * (target.type == self._device)


class _Functions(TorchFunctionMode):
    """Stands in for attention, whose kernel torch chooses by the machine, and for what fake tensors cannot do."""

    def __init__(self, tally: Tally, device: str) -> None:
        super().__init__()
        self._tally = tally
        self._device = device

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].device.type == self._device:
            return self._attention(*args, **kwargs)
        if func in (torch.Tensor.pin_memory, torch.Tensor.is_pinned) and isinstance(args[0], FakeTensor):
            return args[0] if func is torch.Tensor.pin_memory else False
        if func is torch.Tensor.numpy and isinstance(args[0], FakeTensor):
            return _numbers(args[0])
        return func(*args, **kwargs)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **others: Any
    ) -> Tensor:
        for other in (k, v, attn_mask):
            if other is not None and other.device != q.device:
                raise RuntimeError(f"attention of a tensor on {q.device} with one on {other.device}")
        self._tally.masks["none" if attn_mask is None else str(attn_mask.dtype).removeprefix("torch.")] += 1
        if q.requires_grad or k.requires_grad:
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        self._tally.kernels["attention"] += 1
        if attn_mask is not None:
            self._tally.kernels["mask"] += 1  # converted to numbers that are added
        B, H, S, _hd = q.shape
        return q.new_empty((B, S, H, v.shape[-1])).transpose(1, 2)


def _numbers(tensor: Tensor) -> np.ndarray:
    if tensor.device.type != "cpu":
        raise TypeError("numpy() of a tensor on the device; copy it to main memory first")
    kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return np.zeros(tuple(tensor.shape), kind)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _place() -> tuple[str, str]:
    """Return file, relative to the package, and function that runs the present operation."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name
        frame = frame.f_back
    return "elsewhere", "elsewhere"
