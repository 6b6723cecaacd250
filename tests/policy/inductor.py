"""What torch's compiler makes for an H100, asked on a machine without a GPU and without triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import scheduler
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

H100 = DeviceProperties("cuda", 0, 132, 90, 9, 65536, 2048, 1024, 32)


def tell_of_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler believe that it compiles for one."""
    monkeypatch.setattr(DeviceProperties, "create", lambda device: H100)
    monkeypatch.setattr(scheduler, "has_triton", lambda *_: True)
    monkeypatch.setattr(CudaInterface, "get_device_properties", lambda *_: mock.Mock(major=9, minor=0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def kernels_of(work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    """The kernels that torch's compiler makes of a function of tensors in bfloat16 on CUDA."""
    with FakeTensorMode() as mode:
        given = [_on_cuda(a) if isinstance(a, Tensor) else a for a in arguments]
        tensors = [a for a in given if isinstance(a, Tensor)]

        def call(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            return work(*(next(rest) if isinstance(a, Tensor) else a for a in given))

        graph = GraphLowering(make_fx(call, decomposition_table=select_decomp_table())(*tensors))
        with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(mock.MagicMock()):
            graph.run(*tensors)
            graph._update_scheduler()
            return list(graph.scheduler.nodes)


def _on_cuda(tensor: Tensor) -> Tensor:
    made = torch.empty(tensor.shape, dtype=torch.bfloat16 if tensor.dim() > 1 else tensor.dtype, device="cuda")
    return made.as_strided(tensor.shape, tensor.stride())
