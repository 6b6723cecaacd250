"""The plan of an arm as an action head continues it, from observations and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.core.ports import ActionHead
from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.heads.prompted import Prompted

type Rows = tuple[NDArray[np.float64], int]
"""(n, D) actions in [-1, 1] of a plan, and how many of them the arm has committed to."""


def plan_of(observation: Observation, stats: QuantileStats, head: ActionHead[Prompted, Tensor]) -> Rows | None:
    """Return the plan that an answer continues; None for an arm that waits, and for a head that continues none.

    At least one action stays the policy's choice.

    Raises:
        ContractError: the actions have another number of dimensions, or are not finite.
    """
    if observation.committed is None or not head.continues:
        return None
    committed = observation.committed[: head.chunk - 1]
    parts = [committed] if observation.planned is None else [committed, observation.planned]
    if any(part.shape[1] != head.dimension or not np.isfinite(part).all() for part in parts):
        raise ContractError(
            f"the arm's plan has actions that are not finite, or of another number of numbers than {head.dimension}."
        )
    rows = np.concatenate(parts)[: head.chunk] if len(committed) == len(observation.committed) else committed
    return normalise(rows, stats).clip(-1.0, 1.0), len(committed)


def joined(
    plans: Sequence[Rows | None], head: ActionHead[Prompted, Tensor], device: torch.device
) -> Plan[Tensor] | None:
    """Return the plans of a batch's rows on a device; a row without one has no action of it. None if no row has one."""
    if all(plan is None for plan in plans):
        return None
    actions = np.zeros((len(plans), head.chunk, head.dimension), dtype=np.float32)
    counts = np.zeros((2, len(plans)), dtype=np.int64)
    for row, plan in enumerate(plans):
        if plan is not None:
            actions[row, : len(plan[0])] = plan[0]
            counts[:, row] = plan[1], len(plan[0])
    committed, planned = torch.from_numpy(counts).to(device)
    return Plan(torch.from_numpy(actions).to(device), committed, planned)


def begun_by(observation: Observation, rows: NDArray[np.float64], plan: Rows | None) -> NDArray[np.float64]:
    """Return (K, D) rows in units, the committed actions, which the arm executes unchanged, in place of the first."""
    if observation.committed is None or plan is None:
        return rows
    return np.concatenate([observation.committed[: plan[1]], rows[plan[1] :]])
