"""The optimisers of a training: AdamW for all, or Muon for the matrices of hidden layers and AdamW for the rest.

A vocabulary, positions, biases, norms and the convolution that reads patches are AdamW's with either choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import batched
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.recipe.finetune import FinetuneRecipe

WARMUP = "warmup_steps"
"""Key of a parameter group: steps over which its rate rises from nothing, beside the rate of all."""

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAMW_RMS = 0.2
"""Muon as published by K. Jordan (2024), kellerjordan.github.io/posts/muon: Nesterov momentum, coefficients and number
of the Newton-Schulz iterations. The root mean square of an update is about that of AdamW's, as in arXiv 2502.16982, so
that both have one learning rate."""


AT_ONCE = 2**24
"""Numbers that are copied for one product: 64 MB, where all matrices of one shape of a large model are gigabytes."""


class Muon(torch.optim.Optimizer):
    """Momentum with all singular values near 1, for matrices: every direction of the gradient is followed alike.

    `torch.optim.Muon` gives the same in bfloat16, matrix by matrix, which on a CPU without products of bfloat16 takes
    more than ten times as long. This one computes in float32, and matrices of one shape together.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. There is no closure in this package."""
        del closure
        for group in self.param_groups:
            for alike in _alike(p for p in group["params"] if p.grad is not None):
                directions = orthogonal(torch.stack([self._momentum(p) for p in alike]))
                for p, direction in zip(alike, directions, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction, alpha=-group["lr"] * ADAMW_RMS * math.sqrt(max(p.shape)))

    def _momentum(self, p: Tensor) -> Tensor:
        """Return the gradient after Nesterov's momentum, and keep the momentum."""
        assert p.grad is not None
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        kept = self.state[p]["momentum_buffer"]
        kept.lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(kept, MOMENTUM)


MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}
"""Names of an optimiser's tensors beside each parameter."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Return (N, R, C) matrices with the same singular vectors and singular values between about 0.7 and 1.2."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if is_tall else matrices.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _alike(parameters: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Return the parameters by shape, as many at once as the room for their copies allows."""
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for p in parameters:
        shapes[p.shape].append(p)
    for shape, alike in shapes.items():
        yield from batched(alike, max(1, AT_ONCE // shape.numel()))


class Optimizers:
    """The optimisers of a run as one, and what they remember of the gradients, which a checkpoint stores."""

    def __init__(self, model: AnyVLAModel, learning: Mapping[str, nn.Parameter], recipe: FinetuneRecipe) -> None:
        """
        Args:
            model: the model on its device; this rank's part of it if it is sharded.
            learning: the parameters that are trained, by name.
            recipe: how to train.
        """
        matrices = _hidden_matrices(model) if recipe.optimizer == "muon" else set()
        by_muon = {name: p for name, p in learning.items() if p in matrices}
        by_adamw = {name: p for name, p in learning.items() if p not in matrices}
        rate = recipe.learning_rate
        self._all: list[torch.optim.Optimizer] = []
        self._of: dict[nn.Parameter, torch.optim.Optimizer] = {}
        if by_adamw:
            self._add(torch.optim.AdamW(_groups(model, by_adamw, recipe), lr=rate, fused=True), by_adamw)
        if by_muon:
            self._add(Muon(_groups(model, by_muon, recipe), {"lr": rate}), by_muon)

    def _add(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._all.append(optimizer)
        self._of |= dict.fromkeys(parameters.values(), optimizer)

    def step(self, rate: float, done: int) -> None:
        """Take a step and forget the gradients.

        Args:
            rate: the learning rate.
            done: steps taken before, from which the rate of a group that warms up on its own follows.
        """
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (done + 1) / max(1, group[WARMUP]))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def moments(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Return what is remembered of a parameter's gradients, by name; nothing of one that never had any."""
        optimizer = self._of[p]
        state = optimizer.state.get(p, {})
        return {name: state[name] for name in MOMENTS[type(optimizer)] if name in state}

    def remember(self, p: nn.Parameter, moments: Mapping[str, Tensor], done: int) -> None:
        """Set the moments of a parameter, by name, after `done` steps."""
        optimizer = self._of[p]
        counted = {} if isinstance(optimizer, Muon) else {"step": torch.tensor(float(done), device=p.device)}
        optimizer.state[p] = counted | dict(moments)

    def moment_names(self, p: nn.Parameter) -> tuple[str, ...]:
        """Return the names of the moments of a parameter."""
        return MOMENTS[type(self._of[p])]


def _hidden_matrices(model: AnyVLAModel) -> set[Tensor]:
    """Return the weights of all linear layers but the one that gives the logits."""
    layers = {module for module in model.modules() if isinstance(module, nn.Linear)}
    return {layer.weight for layer in layers} - {model.get_submodule(model.HEAD).weight}


def _groups(model: AnyVLAModel, parameters: Mapping[str, nn.Parameter], recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Return the groups of an optimiser: matrices decay; biases, norms and positions do not. A tower that warms up on
    its own has groups of its own."""
    slow = recipe.vision_warmup_steps
    in_tower = model.PARTS["vision"] if slow else ()
    kinds: dict[tuple[float, int], list[Tensor]] = {}
    for name, p in parameters.items():
        decay = recipe.weight_decay if p.ndim >= 2 and 1 not in p.shape else 0.0
        kinds.setdefault((decay, slow if in_tower and name.startswith(in_tower) else 0), []).append(p)
    return [{"params": alike, "weight_decay": decay, WARMUP: warmup} for (decay, warmup), alike in kinds.items()]
