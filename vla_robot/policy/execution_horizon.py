"""Sets the execution horizon of another policy: how many actions of an answer are used before it is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.core.ports.wrapped_policy import WrappedPolicy


class ExecutionHorizon(WrappedPolicy):
    """Policy that marks the chunks of another with `ActionChunk.rows`; the loops read it.

    The chunk keeps its other actions: in real time the arm executes them while the next answer is computed.
    """

    def __init__(self, policy: Policy, rows: int) -> None:
        """
        Args:
            policy: the wrapped policy.
            rows: actions that are used before it is asked again, at least 1.

        Raises:
            ContractError: `rows` is below 1.
        """
        if rows < 1:
            raise ContractError(f"rows must be at least 1, got {rows}.")
        super().__init__(policy)
        self._rows = rows

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return the policy's chunks.

        Raises:
            PolicyError: a chunk has fewer actions than `rows`.
        """
        return [with_rows(chunk, self._rows) for chunk in self._policy.act(observations)]


def with_rows(chunk: ActionChunk, rows: int) -> ActionChunk:
    """Return the chunk with an execution horizon. Raises PolicyError if it has fewer actions."""
    if len(chunk.actions) < rows:
        raise PolicyError(
            f"rows is {rows}, but an answer of the policy has {len(chunk.actions)} action(s). Give at most that many, "
            "or leave it out."
        )
    return replace(chunk, rows=rows)
