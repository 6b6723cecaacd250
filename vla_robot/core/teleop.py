"""The port of a person's hands: keys, a page in the browser, a leader arm.

    loop  --show(observation, counters)-->  Teleop      the person sees
          <------- command() -----------                what the hands and the buttons say now

Nothing here waits: a loop asks at its own rate, and gets the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vla_robot.core.messages import Observation, Vector

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


class Teleop(Protocol):
    """A person, or a device that a person holds."""

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        """Let the person see this; returns at once.

        Args:
            observation: the newest.
            counters: name -> text to be shown beside it, such as {"episode": "3 of 50"}.
        """
        ...

    def command(self) -> TeleopCommand:
        """What is asked for now; returns at once."""
        ...

    def close(self) -> None:
        """Let go of the device. May be called twice."""
        ...


@runtime_checkable
class SharesControl(Protocol):
    """A teleoperator beside a policy: it is told which of the two drives, shows that, and follows the arm's grip."""

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        """Returns at once.

        Args:
            driver: which of the two drives now.
            executed: (D,) the newest action of the arm; None before the first.
        """
        ...
