"""The arm driven by keys of a terminal, which never tells that a key was let go of.

    key      w                              w w w w w w w         (held: the computer waits about half a second,
    ticks    | | |                          | | | | | | | | | |     then repeats some thirty times a second)
    moves    ####                           #############

Each press is a nudge of NUDGE_S, the same number of ticks whatever the network does; a repeat makes it last that long
from then on. A key that is held therefore nudges once, pauses while the computer waits, and then goes on until at most
NUDGE_S after it is let go of. When the connection breaks, so do the repeats, and the arm stops by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation
from vla_robot.core.teleop_device import AXES, action_of, is_closed, require_drivable
from vla_robot.teleop.motion import MotionCommand

NUDGE_S = 0.2
"""Longer than the slowest repeats, 92 ms on the Linux console, and their jitter over a network."""

GRIP_S = 1.0
"""For so long the world goes on after a word to the gripper: it takes about that to close."""

SLOW = 0.3
"""Of the speed, with shift."""

FIRST_SPEED = 5
FULL_SPEED = 9
"""Keys 1 to 9: how many ninths of the largest step."""

SPEEDS = tuple("123456789")

MOVES: dict[str, tuple[int, float]] = {
    "w": (0, 1.0),
    "s": (0, -1.0),
    "a": (1, 1.0),
    "d": (1, -1.0),
    "e": (2, 1.0),
    "q": (2, -1.0),
    ".": (3, 1.0),
    ",": (3, -1.0),
    "up": (4, 1.0),
    "down": (4, -1.0),
    "left": (5, 1.0),
    "right": (5, -1.0),
}
"""Key -> axis of the hand, and which way; the same as on the page."""

SHIFTED = {":": ".", ";": ",", ">": ".", "<": ","}
"""What shift makes of a key that has no capital, on common layouts."""


@dataclass(frozen=True)
class Jog:
    """A nudge that is going on.

    Attributes:
        share: of the largest step, -1 to 1.
        ticks: left.
    """

    share: float
    ticks: int


class KeyMotion:
    """The TeleopDevice port over the terminal's own keys."""

    help = (
        ("w s", "forward, back"),
        ("a d", "left, right"),
        ("e q", "up, down"),
        ("← →", "turn"),
        ("↑ ↓", "tilt"),
        (", .", "roll"),
        ("shift", "slowly"),
        ("1 … 9", "speed"),
        ("space", "gripper"),
        ("h", "go on for a second without moving"),
    )

    def __init__(self, embodiment: Embodiment) -> None:
        """Raises ContractError when a hand cannot drive this arm."""
        require_drivable(embodiment.action)
        self._space = embodiment.action
        self._nudge = max(1, round(NUDGE_S * embodiment.rate_hz))
        self._linger = max(1, round(GRIP_S * embodiment.rate_hz))
        self._speed = FIRST_SPEED
        self._jogs: dict[int, Jog] = {}
        self._closed = False
        self._goes_on = 0

    @property
    def standing(self) -> str:
        return f"speed {self._speed} of {FULL_SPEED}, gripper {'closed' if self._closed else 'open'}"

    def press(self, key: str) -> bool:
        plain = SHIFTED.get(key, key.lower())
        if plain in MOVES:
            axis, way = MOVES[plain]
            share = way * self._speed / FULL_SPEED * (SLOW if plain != key else 1.0)
            self._jogs[axis] = Jog(share, self._nudge)
        elif key in SPEEDS:
            self._speed = int(key)
        elif key == "space":
            self._closed, self._goes_on = not self._closed, self._linger
        elif plain == "h":
            self._goes_on = self._linger
        else:
            return False
        return True

    def see(self, observation: Observation) -> None:
        if observation.step == 0:
            self._closed = False  # a new episode begins with an open gripper, as on the page

    def move(self) -> MotionCommand:
        if not self._jogs and not self._goes_on:
            return MotionCommand(None)
        axes = [self._jogs[k].share if k in self._jogs else 0.0 for k in range(len(AXES))]
        self._jogs = {k: Jog(jog.share, jog.ticks - 1) for k, jog in self._jogs.items() if jog.ticks > 1}
        self._goes_on = max(self._goes_on - 1, 0)
        return MotionCommand(action_of(self._space, axes, self._closed))

    def rest(self) -> None:
        self._jogs.clear()
        self._goes_on = 0

    def wake(self) -> None: ...

    def grip(self, opening: float) -> None:
        self._closed = is_closed(opening)

    def close(self) -> None:
        self.rest()
