"""A flow-matching head: a small transformer, the action expert, attends to the backbone's keys and values, as pi0's.

    backbone     [images][state][text][end]       layer 1 .. L: keys and values, read once for each answer
                        |  |  |
    expert       [a1 a2 ... aK] noised actions    layer 1 .. L: attends to them and to all of itself --> velocities
                  time of each action

Training noises an action a with e to x = t e + (1 - t) a, and the expert learns the velocity e - a from x, t and the
prompt. An answer integrates from noise (t = 1) to actions (t = 0) by Euler's method. The first actions of a training
chunk may be given clean (t = 0), which the head then takes as given when it acts (`rtc`).

Sources: K. Black et al., "pi0: A Vision-Language-Action Flow Model" (arXiv 2410.24164); openpi's choice of times, the
Beta distribution (1.5, 1) scaled to [0.001, 1], and of the periods of a time's embedding, 0.004 to 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from vla_robot.core.errors import CheckpointError
from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.heads.noise import draw, generators_of
from vla_robot.policy.vla.heads.prompted import KeysValues, Prompted, require_shape
from vla_robot.policy.vla.heads.rtc import guided, integrate, soft_mask
from vla_robot.policy.vla.inputs.upload import upload
from vla_robot.recipe.policy import FlowRecipe

SHORTEST, LONGEST = 4e-3, 4.0
"""Periods of a time's embedding."""
BETA = 1.5
EARLIEST = 0.001

GUIDANCE, PREFIX = "guidance", "prefix"
"""Ways of real-time chunking."""


@dataclass(frozen=True)
class Attention:
    """What an expert's attention has in common with its backbone's.

    Attributes:
        layers: L.
        heads: heads of queries.
        kv_heads: heads of keys and values.
        head_dim: numbers of a head.
        theta: base of the rotary positions.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float


@dataclass
class Sampling:
    """How a flow head answers; the recipe of a policy may change it.

    Attributes:
        steps: integration steps.
        rtc: "guidance", "prefix", or None, which ignores plans.
        largest: most that an error counts in guidance.
        jacobian: see `rtc.guided`.
    """

    steps: int = 10
    rtc: str | None = GUIDANCE
    largest: float = 10.0
    jacobian: bool = False


class FlowHead(nn.Module):
    """See `ActionHead`.

    Attributes:
        chunk: K, actions of an answer.
        dimension: D, numbers of an action.
        longest_prefix: most first actions that training gave clean; 0 for none.
        sampling: how it answers.
    """

    kind = "flow"

    def __init__(
        self, attention: Attention, width: int, ff_dim: int, chunk: int, dimension: int, longest_prefix: int = 0
    ) -> None:
        """
        Args:
            attention: as the backbone's.
            width: W, of the expert.
            ff_dim: width of its gated MLPs.
            chunk: K.
            dimension: D.
            longest_prefix: most actions at the beginning that training gives clean, less than K.
        """
        super().__init__()
        self.chunk, self.dimension, self.longest_prefix = chunk, dimension, longest_prefix
        self.sampling = Sampling(rtc=PREFIX if longest_prefix else GUIDANCE)
        self._attention, self._width = attention, width
        self.enter = nn.Linear(dimension, width)
        self.join_1 = nn.Linear(2 * width, width)
        self.join_2 = nn.Linear(width, width)
        self.layers = nn.ModuleList(_Layer(attention, width, ff_dim) for _ in range(attention.layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.leave = nn.Linear(width, dimension)

    @property
    def continues(self) -> bool:
        """See `ActionHead`."""
        return self.sampling.rtc is not None

    def sample_as(self, recipe: FlowRecipe) -> None:
        """Answer as a policy's recipe says. Raises CheckpointError for a prefix that was not trained."""
        rtc = recipe.rtc or self.sampling.rtc
        if rtc == PREFIX and not self.longest_prefix:
            raise CheckpointError('the head was trained without a prefix: set rtc = "guidance" in [flow], or "none".')
        rtc = None if rtc == "none" else rtc
        self.sampling = Sampling(recipe.steps, rtc, recipe.max_guidance, recipe.jacobian)

    def loss(self, prompts: Prompted, actions: Tensor, seeds: NDArray[np.int64]) -> Tensor:
        """Return the mean squared error of the velocities, those of clean actions left out; see `ActionHead`.

        The sum is divided by the number of noised actions that rows have on average over all draws, and not by that of
        this batch: means of a step's parts then are the mean of the step, however it is divided.
        """
        require_shape(actions, self.chunk, self.dimension)
        device = actions.device
        with unset_fake_temporarily():
            drawn = _drawn(seeds, (self.chunk, self.dimension), self.longest_prefix)
        noise, time, given = (upload(torch.from_numpy(each), device) for each in drawn)
        is_given = torch.arange(self.chunk, device=device) < given[:, None]  # (B, K)
        times = time[:, None].masked_fill(is_given, 0.0)
        clean = actions.float()
        x = times[..., None] * noise + (1 - times[..., None]) * clean
        wrong = (self.velocity(self._seen(prompts), x, times).float() - (noise - clean)) ** 2
        noised = self.chunk - self.longest_prefix / 2  # of a row, on average
        of_noised = wrong.masked_fill(is_given[..., None], 0.0)  # no shape depends on a number that was drawn
        return of_noised.sum() / (len(wrong) * noised * self.dimension)

    def answer(self, prompts: Prompted, seeds: NDArray[np.int64], plan: Plan[Tensor] | None = None) -> Tensor:
        """See `ActionHead`. With a prefix, its rows are the plan's committed ones, as far as training gave as many."""
        seen, s = self._seen(prompts), self.sampling
        device = prompts.rows.embeds.device
        noise = draw(generators_of(seeds.tolist()), (self.chunk, self.dimension)).to(device)
        if plan is None or s.rtc is None:
            actions = integrate(lambda x, time: self._at(seen, x, time), noise, s.steps)
        elif s.rtc == GUIDANCE:
            actions = self._guided(seen, noise, plan)
        else:
            actions = self._by_prefix(seen, noise, plan)
        return actions.clamp(-1.0, 1.0)

    def _guided(self, seen: _Seen, noise: Tensor, plan: Plan[Tensor]) -> Tensor:
        s = self.sampling
        weights = soft_mask(plan.committed, plan.planned, self.chunk)

        def velocity(x: Tensor, time: float) -> Tensor:
            return guided(lambda y, at: self._at(seen, y, at), x, time, plan.actions, weights, s.largest, s.jacobian)

        return integrate(velocity, noise, s.steps)

    def _by_prefix(self, seen: _Seen, noise: Tensor, plan: Plan[Tensor]) -> Tensor:
        """Answer behind the committed actions; guide the rows that have more of them than any of the training."""
        is_beyond = plan.committed > self.longest_prefix
        if is_beyond.all():
            return self._guided(seen, noise, plan)
        actions = self._behind_prefix(seen, noise, plan)
        if not is_beyond.any():
            return actions
        return torch.where(is_beyond[:, None, None], self._guided(seen, noise, plan), actions)

    def _behind_prefix(self, seen: _Seen, noise: Tensor, plan: Plan[Tensor]) -> Tensor:
        is_given = torch.arange(self.chunk, device=noise.device) < plan.committed[:, None]
        given = is_given[..., None]

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full(x.shape[:2], time, device=x.device).masked_fill(is_given, 0.0)
            return self.velocity(seen, x, times).float().masked_fill(given, 0.0)

        return integrate(velocity, torch.where(given, plan.actions, noise), self.sampling.steps)

    def _at(self, seen: _Seen, x: Tensor, time: float) -> Tensor:
        return self.velocity(seen, x, torch.full(x.shape[:2], time, device=x.device)).float()

    def velocity(self, seen: _Seen, x: Tensor, times: Tensor) -> Tensor:
        """Return the (B, K, D) velocity of (B, K, D) actions, each noised as its (B, K) time says."""
        dtype = self.enter.weight.dtype
        y = torch.cat([self.enter(x.to(dtype)), embedded(times, self._width).to(dtype)], dim=-1)
        y = self.join_2(silu(self.join_1(y)))
        for layer, (keys, values) in zip(self.layers, seen.memory, strict=True):
            y = layer(y, keys, values, seen)
        return self.leave(_normed(y, self.norm))

    def _seen(self, prompts: Prompted) -> _Seen:
        """Read prompts once: keys, values, and what of them each action attends to."""
        rows, K = prompts.rows, self.chunk
        device, S = rows.embeds.device, rows.embeds.shape[1]
        is_real = torch.arange(S, device=device) < rows.lengths.to(device)[:, None]
        visible = torch.cat([is_real, torch.ones(len(is_real), K, dtype=torch.bool, device=device)], dim=1)
        positions = prompts.next_positions()[:, None] + torch.arange(K, device=device)
        cos, sin = rotary(positions, self._attention.head_dim, self._attention.theta)
        return _Seen(prompts.memory(rows), visible[:, None, None], cos[:, None], sin[:, None])


@dataclass(frozen=True)
class _Seen:
    """What the expert gets of a batch of prompts.

    Attributes:
        memory: keys and values of each layer, (B, Hkv, S, hd).
        visible: (B, 1, 1, S + K) bool: which keys are attended to.
        cos, sin: (B, 1, K, hd) of the actions' positions.
    """

    memory: KeysValues
    visible: Tensor
    cos: Tensor
    sin: Tensor


class _Layer(nn.Module):
    """Attention over the backbone's keys and the expert's own, then a gated MLP."""

    def __init__(self, a: Attention, width: int, ff_dim: int) -> None:
        super().__init__()
        self._shape = a
        self.norm_attention = nn.Parameter(torch.ones(width))
        self.norm_mlp = nn.Parameter(torch.ones(width))
        self.q_proj = nn.Linear(width, a.heads * a.head_dim, bias=False)
        self.k_proj = nn.Linear(width, a.kv_heads * a.head_dim, bias=False)
        self.v_proj = nn.Linear(width, a.kv_heads * a.head_dim, bias=False)
        self.o_proj = nn.Linear(a.heads * a.head_dim, width, bias=False)
        self.gate_proj = nn.Linear(width, ff_dim, bias=False)
        self.up_proj = nn.Linear(width, ff_dim, bias=False)
        self.down_proj = nn.Linear(ff_dim, width, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, seen: _Seen) -> Tensor:
        """Map (B, K, W) to (B, K, W), given the backbone's keys and values of this layer."""
        normed = _normed(x, self.norm_attention)
        q, k, v = (
            project(normed).unflatten(2, (-1, self._shape.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = torch.cat([keys.to(k.dtype), rotated(k, seen.cos, seen.sin)], dim=2)
        v = torch.cat([values.to(v.dtype), v], dim=2)
        is_grouped = self._shape.heads != self._shape.kv_heads
        q = rotated(q, seen.cos, seen.sin)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen.visible, enable_gqa=is_grouped)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        normed = _normed(x, self.norm_mlp)
        return x + self.down_proj(silu(self.gate_proj(normed)) * self.up_proj(normed))


def embedded(times: Tensor, width: int) -> Tensor:
    """Return (..., W) sines and cosines of (...) times in [0, 1]."""
    share = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float32, device=times.device)
    period = SHORTEST * (LONGEST / SHORTEST) ** share
    angle = 2 * math.pi * times.float()[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return (..., hd) cosines and sines of (...) positions, in the order of transformers' Llama."""
    share = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions.float()[..., None] / theta**share
    return torch.cat([angle, angle], dim=-1).cos(), torch.cat([angle, angle], dim=-1).sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, K, hd) by (B, 1, K, hd) cosines and sines."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight.shape, weight.to(x.dtype), 1e-6)


def _drawn(
    seeds: NDArray[np.int64], shape: tuple[int, int], longest_prefix: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return each row's (B, K, D) noise, (B,) time and (B,) number of clean actions."""
    generators = generators_of(seeds.tolist())
    noise = draw(generators, shape)
    uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    given = torch.cat([torch.randint(longest_prefix + 1, (1,), generator=generator) for generator in generators])
    time = uniform ** (1 / BETA) * (1 - EARLIEST) + EARLIEST  # Beta(1.5, 1) by its inverse
    return noise.numpy(), time.numpy(), given.numpy()
