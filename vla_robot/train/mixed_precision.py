"""Matrix products in bfloat16, with weights, gradients and moments in float32."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@contextmanager
def mixed_precision(device: torch.device, is_on: bool) -> Generator[None]:
    """Return a context in which a model's forward pass computes matrix products in bfloat16, if `is_on`.

    On a CPU attention stays in float32: its backward pass in bfloat16 takes several times as long there.
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=is_on):
        if is_on and device.type == "cpu":
            with _AttentionInFloat32():
                yield
        else:
            yield


class _AttentionInFloat32(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` in float32, and returns the type of its queries."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            wide = [_wide(value) for value in args]
            return func(*wide, **{name: _wide(value) for name, value in (kwargs or {}).items()}).to(args[0].dtype)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
