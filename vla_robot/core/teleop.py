"""What a person at the controls says: the nouns of the port `Teleoperator`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.messages import Vector

Button = Literal["start", "stop", "success", "discard", "rerecord", "estop", "takeover", "giveback"]
"""start: begin an episode; stop: end it, and keep it; success: the same, as a success; discard: end it, and forget it;
rerecord: the same, and begin it again; estop: let nothing move; takeover: drive in the policy's place; giveback: let it
drive again."""

Driver = Literal["policy", "person"]
"""Who drives, where a policy and a person share an arm."""


@dataclass(frozen=True)
class TeleopCommand:
    """What a person says at one moment.

    Attributes:
        action: (D,) float64 in the units of the embodiment's action space; None when no person is there, or was
            heard of too long ago. Then the arm holds.
        buttons: pressed since the last time; one that is held counts once.
        instruction: what the person newly typed; None when nothing.
    """

    action: Vector | None
    buttons: frozenset[Button] = frozenset()
    instruction: str | None = None
