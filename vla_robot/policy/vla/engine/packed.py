"""The frame of a tensor that holds packed numbers in the place of a linear layer's plain weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional


class PackedMatrix(Tensor):
    """(N, K) weights of a linear map. It supports products, and queries of shape, dtype and device."""

    PARTS: ClassVar[tuple[str, ...]]
    """Names of the plain tensors that it consists of."""
    BITS: ClassVar[str]
    """Bits of a number, in words."""

    @classmethod
    def like(cls, matrix: Tensor) -> Any:
        """Return one with the shape, dtype and device of a plain matrix, and without its parts yet."""
        return Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, matrix.shape, dtype=matrix.dtype, device=matrix.device
        )

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (..., N) of (..., K) activations."""
        raise NotImplementedError

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Return the names of the plain tensors it consists of, as torch requires."""
        return list(self.PARTS), None

    def __repr__(self, *, tensor_contents: None = None) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"a matrix of {cls.BITS} bits cannot do {func}")


def _linear(x: Tensor, weight: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    return weight.product(x, bias)
