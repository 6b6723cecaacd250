"""Memory layout of matrices, and order of bias and product, for a CPU that acts in fp32.

torch stores a matrix (out, in) row by row and multiplies with its transpose. MKL then gathers each row of the transpose
from all over memory; if the matrix is stored column by column, the row is contiguous: 0.8 of the time for 80 rows
of input, 0.4 for six (one core of a Xeon with AVX-512, 128 columns). Nothing else changes, the shapes included.

torch also copies a bias into the output before it multiplies. Added afterwards, a compiled graph adds it at no cost in
the kernel that follows: an inference of the shipped policy takes 0.93 of the time.

Do not use it for training: optimisers and FSDP need matrices row by row. Nor for CUDA, whose products take both in one
kernel.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def is_for(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether this layout is faster for a precision and a device."""
    return device.type == "cpu" and dtype == torch.float32


def matrices(model: nn.Module, head: nn.Module) -> frozenset[str]:
    """Return names of the matrices that a product reads whole: all but the head's, of which rows are taken."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return frozenset(f"{name}.weight" for name, module in layers if module is not head)


def store_by_columns(model: nn.Module, head: nn.Module) -> None:
    """Store a loaded model's matrices column by column, one after the other, and add its biases after the products."""
    for name in matrices(model, head):
        parameter = model.get_parameter(name)
        by_columns = empty_by_columns(tuple(parameter.shape), dtype=parameter.dtype, device=parameter.device)
        parameter.data = by_columns.copy_(parameter.data)
    add_biases_afterwards(model)


def empty_by_columns(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `torch.empty` of shape (rows, ...), stored column by column."""
    rows, *rest = shape
    return torch.empty(math.prod(rest), rows, dtype=dtype, device=device).t().view(shape)


def add_biases_afterwards(model: nn.Module) -> None:
    """Make the model's linear layers add their biases after the product; the results stay the same."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is not None:
            module.__class__ = _ProductThenBias


def as_torch_has_it[M: nn.Module](module: M) -> M:
    """Return the module in torch's layout: itself, or a copy if a matrix is stored by columns or a bias comes later."""
    if not _fast(module) and all(parameter.is_contiguous() for parameter in module.parameters()):
        return module
    plain = deepcopy(module)
    for parameter in plain.parameters():
        parameter.data = parameter.data.contiguous()
    for layer in _fast(plain):
        layer.__class__ = nn.Linear
    return plain


def _fast(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _ProductThenBias)]


class _ProductThenBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight).add_(self.bias)
