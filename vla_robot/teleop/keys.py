"""Moves the tool by keys of a terminal, which does not report the release of a key.

    key      w                              w w w w w w w         (held: the computer waits about half a second,
    ticks    | | |                          | | | | | | | | | |     then repeats the key about thirty times a second)
    moves    ####                           #############

Each press moves the tool for NUDGE_S, the same number of ticks whatever the network does; a repeated key restarts that
time. A held key therefore moves the tool once, pauses while the computer waits, and then moves it until at most NUDGE_S
after its release. When the connection breaks, no repeats arrive and the arm stops.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop_device import AXES, action_of, is_closed, require_drivable
from vla_robot.teleop.motion import MotionCommand

NUDGE_S = 0.2
"""Time that one press moves the tool: above the slowest period of repeats, 92 ms on the Linux console, plus jitter."""

GRIP_S = 1.0
"""Time for which actions are sent after a gripper command; a gripper takes about that long to close."""

SLOW = 0.3
"""Factor of the speed with shift."""

FIRST_SPEED = 5
FULL_SPEED = 9
"""Keys 1 to 9 set the speed in ninths of the largest step."""

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
"""Key -> (index in AXES, sign); the browser's page uses the same keys."""

SHIFTED = {":": ".", ";": ",", ">": ".", "<": ","}
"""Character of a key with shift -> the key, on common layouts, for keys without a capital letter."""


@dataclass(frozen=True)
class Jog:
    """The motion of one axis after a press.

    Attributes:
        share: share of the largest step, -1 to 1.
        ticks: number of ticks that are left.
    """

    share: float
    ticks: int


class HandMotion:
    """The base of KeyMotion and StickMotion: a speed, and a gripper that is open or closed."""

    def __init__(self, embodiment: Embodiment) -> None:
        """
        Raises:
            ContractError: the arm's actions are no motions of its tool.
        """
        require_drivable(embodiment.action)
        self._space = embodiment.action
        self._grip_ticks = max(1, round(GRIP_S * embodiment.rate_hz))
        self._speed = FIRST_SPEED
        self._closed = False
        self._goes_on = 0

    @property
    def standing(self) -> str:
        return f"speed {self._speed} of {FULL_SPEED}, gripper {'closed' if self._closed else 'open'}"

    def press(self, key: str) -> bool:
        if key in SPEEDS:
            self._speed = int(key)
        elif key == "space":
            self._toggle()
        else:
            return False
        return True

    def see(self, observation: Observation) -> None:
        if observation.step == 0:
            self._closed = False  # a new episode begins with an open gripper, as on the page

    def wake(self) -> None: ...

    def grip(self, executed: Vector) -> None:
        self._closed = is_closed(float(executed[-1]))

    def _toggle(self) -> None:
        self._closed, self._goes_on = not self._closed, self._grip_ticks


class KeyMotion(HandMotion):
    """The port TeleopDevice for the keys of a terminal."""

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
        """See `HandMotion`."""
        super().__init__(embodiment)
        self._nudge = max(1, round(NUDGE_S * embodiment.rate_hz))
        self._jogs: dict[int, Jog] = {}

    def press(self, key: str) -> bool:
        plain = SHIFTED.get(key, key.lower())
        if plain in MOVES:
            axis, way = MOVES[plain]
            share = way * self._speed / FULL_SPEED * (SLOW if plain != key else 1.0)
            self._jogs[axis] = Jog(share, self._nudge)
        elif plain == "h":
            self._goes_on = self._grip_ticks
        else:
            return super().press(key)
        return True

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

    def close(self) -> None:
        self.rest()
