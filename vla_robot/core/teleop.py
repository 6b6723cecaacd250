"""Types of the port `Teleoperator`: a person's commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.messages import Vector

Button = Literal["start", "stop", "success", "discard", "rerecord", "estop", "takeover", "giveback"]
"""start: begin an episode; stop: end it and keep it; success: end it as a success; discard: end it and delete it;
rerecord: discard it and begin it again; estop: stop the arm; takeover: take control from the policy; giveback: return
control to the policy."""

Driver = Literal["policy", "person"]
"""Who is in control of an arm that a policy and a person share."""


@dataclass(frozen=True)
class TeleopCommand:
    """A person's command at one moment.

    Attributes:
        action: (D,) float64 in the units of the embodiment's action space; None if the device gives none, or has been
            silent too long. Then the arm holds.
        buttons: buttons pressed since the last call; one that is held counts once.
        instruction: newly typed instruction; None if there is none.
    """

    action: Vector | None
    buttons: frozenset[Button] = frozenset()
    instruction: str | None = None
