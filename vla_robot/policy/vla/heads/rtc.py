"""Real-time chunking of a flow-matching head: its answer continues the plan that the arm is executing.

    step of the plan     0  1  2 | 3  4  5  6 | 7 ...
    guidance weight      1  1  1 | falls to 0 | 0        committed rows, rows that both plans have, new rows

By guidance, any flow head is drawn towards the plan in each integration step, most where the arm is committed. By
prefix, a head that was trained so gets the committed rows themselves, without noise.

Sources: K. Black et al., "Real-Time Execution of Action Chunking Flow Policies" (arXiv 2506.07339), equations 2 to 5;
lerobot 0.6.1, policies/rtc/modeling_rtc.py, which takes the model's Jacobian for the identity; K. Black et al.,
"Training-Time Action Conditioning for Efficient Real-Time Chunking" (arXiv 2512.05964).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

type Velocity = Callable[[Tensor, float], Tensor]
"""Maps (B, K, D) noised actions and the time, 1 for noise and 0 for actions, to their (B, K, D) velocity."""


def soft_mask(committed: Tensor, planned: Tensor, chunk: int) -> Tensor:
    """Return (B, K) weights of the plan: 1 for committed rows, then falling, 0 behind the plan.

    Args:
        committed: (B,) int64 rows that will be executed anyway.
        planned: (B,) int64 rows in all, at least as many.
        chunk: K.

    Source: equation 5: c (e^c - 1) / (e - 1) with c = (H - s - i) / (H - s - d + 1).
    """
    row = torch.arange(chunk, device=committed.device)
    d, end = committed[:, None], planned[:, None]
    c = ((end - row) / (end - d + 1)).clamp(0.0, 1.0)
    falling = c * torch.expm1(c) / (math.e - 1)
    return torch.where(row < d, 1.0, torch.where(row < end, falling, 0.0))


def guidance_weight(time: float, largest: float) -> float:
    """Return how much an error counts at a time, 1 for noise and 0 for actions; at most `largest`."""
    if not 0 < time < 1:
        return largest
    done = 1.0 - time
    inverse_variance = (time**2 + done**2) / time**2
    return min(time / done * inverse_variance, largest)


def guided(
    velocity: Velocity, x: Tensor, time: float, plan: Tensor, weights: Tensor, largest: float, jacobian: bool = False
) -> Tensor:
    """Return the (B, K, D) velocity of noised actions, guided towards a plan.

    Args:
        velocity: the head's own velocity.
        x: (B, K, D) noised actions.
        time: 1 for noise, 0 for actions.
        plan: (B, K, D) actions to continue.
        weights: (B, K) of the plan's rows.
        largest: most that an error counts.
        jacobian: compute how the finished actions depend on the noised ones, as the paper does, which costs a backward
            pass; False takes the identity, as lerobot does.
    """
    if not jacobian:
        v = velocity(x, time)
        correction = (plan - (x - time * v)) * weights[..., None]
    else:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, time)
            finished = x - time * v
            error = ((plan - finished) * weights[..., None]).detach()
            (correction,) = torch.autograd.grad(finished, x, error)
        v = v.detach()
    return v - guidance_weight(time, largest) * correction


def integrate(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Return the (B, K, D) actions that Euler's method reaches from noise in a number of steps."""
    x = noise
    for step in range(steps):
        x = x - velocity(x, 1.0 - step / steps) / steps
    return x
