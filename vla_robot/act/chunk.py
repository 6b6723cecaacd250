"""Plays a chunk row by row: each row at the step it was meant for, or never.

step              10  11  12  13  14
chunk of step 10  r0  r1  r2  r3             arrives at step 12: r0 and r1 are late, r2 plays
"""

from __future__ import annotations

from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import ActionChunk, Vector


class ChunkPlayer:
    """Holds the newest chunk.

    Attributes:
        late_rows: rows that were never played because their step had passed when they arrived.
    """

    def __init__(self) -> None:
        self.late_rows = 0
        self._chunk: ActionChunk | None = None

    def load(self, chunk: ActionChunk, step: int) -> None:
        """Replace the chunk.

        Args:
            chunk: the policy's answer.
            step: control step that comes next; rows meant for earlier ones are late.
        """
        self.late_rows += min(max(step - chunk.step, 0), len(chunk.actions))
        self._chunk = chunk

    def has_action(self, step: int) -> bool:
        """Whether the chunk has a row for this control step; if not, a new chunk is needed."""
        return self._chunk is not None and 0 <= step - self._chunk.step < len(self._chunk.actions)

    def action(self, step: int) -> Vector:
        """(D,) row for this control step.

        Raises:
            PolicyError: there is none. No other row stands in for it.
        """
        if self._chunk is None or not self.has_action(step):
            raise PolicyError(f"there is no action for step {step}: {self._held()}.")
        return self._chunk.actions[step - self._chunk.step]

    def clear(self) -> None:
        """Forget the chunk and the count, as at the start of an episode."""
        self.late_rows = 0
        self._chunk = None

    def _held(self) -> str:
        if self._chunk is None:
            return "no chunk has come yet"
        return f"the chunk holds steps {self._chunk.step} to {self._chunk.step + len(self._chunk.actions) - 1}"
