"""Implements the port Teleoperator in a terminal: keys begin and end episodes, and a TeleopDevice moves the tool.

    terminal --keys--> buttons, instruction ---.
                  '--> TeleopDevice: keys, sticks, a leader arm --> TeleopCommand

It works over SSH and without a display. Keys are read when the loop asks, at its rate; there is no thread and no wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button, Driver, TeleopCommand
from vla_robot.teleop.motion import TeleopDevice
from vla_robot.teleop.panel import Panel, Status
from vla_robot.teleop.terminal import Terminal

BUTTONS: dict[str, Button] = {
    "enter": "start",
    "y": "success",
    "f1": "success",
    "n": "stop",
    "f2": "stop",
    "x": "discard",
    "f3": "discard",
    "r": "rerecord",
    "f4": "rerecord",
    "escape": "estop",
    "t": "takeover",
    "g": "giveback",
}
"""The keys of the browser's page, and letters beside F1 to F4, which some terminals do not pass on."""

HELP = (
    ("any other key", "rest: nothing moves"),
    ("enter", "start"),
    ("y", "success"),
    ("n", "end, keep"),
    ("x", "discard"),
    ("r", "again"),
    ("i", "new instruction"),
    ("esc", "E-STOP"),
    ("ctrl-c", "end"),
)
SHARING_HELP = (("t", "take over"), ("g", "give back"))

STALE_NS = 500 * NS_PER_MS
"""When the terminal was not read for this long, as during a reset, the keys typed meanwhile move nothing."""

DRAW_EVERY_NS = NS_PER_S // 8
SHOWN_KEYS = 8
MAX_INSTRUCTION_CHARS = 200
STOPPED = "stopped: nothing moves until you press enter"


class TerminalTeleop:
    """The port Teleoperator for a person at a terminal."""

    def __init__(
        self,
        motion: TeleopDevice,
        instruction: str,
        terminal: Terminal,
        panel: Panel | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            motion: device that moves the tool; `close` closes it.
            instruction: instruction to show until another one is typed.
            terminal: terminal to read keys from; `close` closes it.
            panel: panel to draw the status on; None where another display is drawn on that terminal.
            clock: measures the age of keys; the monotonic clock when None.
        """
        self._motion = motion
        self._instruction = instruction
        self._terminal = terminal
        self._panel = panel
        self._clock = clock or MonotonicClock()
        self._looked_ns: int | None = None
        self._drawn_ns: int | None = None
        self._drawn: Status | None = None
        self._editing: str | None = None
        self._typed: str | None = None
        self._stopped = False
        self._driver: Driver | None = None
        self._keys: deque[str] = deque(maxlen=SHOWN_KEYS)
        self._buttons: set[Button] = set()

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        """Draw the status when it has changed, at most every DRAW_EVERY_NS, without waiting."""
        self._motion.see(observation)
        now_ns = self._clock.now_ns()
        if self._panel is None or (self._drawn_ns is not None and now_ns - self._drawn_ns < DRAW_EVERY_NS):
            return
        status = self._status(observation, counters)
        if status != self._drawn:  # do not send the same lines twice over a slow connection
            self._drawn_ns, self._drawn = now_ns, status
            self._panel.draw(status)

    def command(self) -> TeleopCommand:
        """Return the buttons and the instruction typed since the last call, and the tool's motion.

        Raises:
            TeleopError: the terminal or the device is gone.
        """
        now_ns = self._clock.now_ns()
        fresh = self._looked_ns is None or now_ns - self._looked_ns < STALE_NS
        self._looked_ns = now_ns
        for key in self._terminal.typed():
            self._press(key, fresh)
        moved = self._motion.move()
        buttons, self._buttons = frozenset(self._buttons | moved.buttons), set()
        typed, self._typed = self._typed, None
        self._heed(buttons)
        rests = self._stopped or self._editing is not None
        return TeleopCommand(None if rests else moved.action, buttons, typed)

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        """Note whether policy or person is in control, and the policy's action: the person keeps its grip."""
        if driver != self._driver:
            self._motion.rest()
        if driver == "person" != self._driver:
            self._motion.wake()
        self._driver = driver
        if driver == "policy" and executed is not None:
            self._motion.grip(executed)

    def close(self) -> None:
        """Release the device and restore the terminal. May be called twice."""
        try:
            self._motion.close()
        finally:
            try:
                if self._panel is not None:
                    self._panel.close()
            finally:
                self._terminal.close()

    def _heed(self, buttons: frozenset[Button]) -> None:
        """Apply the buttons: an e-stop lasts until the person starts or takes over, and each start is from rest."""
        if "estop" in buttons:
            self._stopped = True
        elif buttons & {"start", "takeover"}:
            self._stopped = False
        if buttons:
            self._motion.rest()
        if buttons & {"start", "takeover"}:
            self._motion.wake()

    def _press(self, key: str, fresh: bool) -> None:
        self._keys.append(key)
        if self._editing is not None:
            self._edit(self._editing, key)
        elif key in BUTTONS:
            self._buttons.add(BUTTONS[key])
        elif key == "i":
            self._editing = ""
            self._motion.rest()
        elif not fresh or not self._motion.press(key):
            self._motion.rest()

    def _edit(self, text: str, key: str) -> None:
        """Apply a key to the typed instruction. Escape discards it, and still stops an arm that a policy moves."""
        if key == "escape" and self._driver == "policy":
            self._buttons.add("estop")
        if key in ("enter", "escape"):
            self._editing = None
            if key == "enter" and text.strip():
                self._typed = self._instruction = text.strip()
        elif key == "backspace":
            self._editing = text[:-1]
        elif key == "space" or len(key) == 1:
            self._editing = (text + (" " if key == "space" else key))[:MAX_INSTRUCTION_CHARS]

    def _status(self, observation: Observation, counters: Mapping[str, str]) -> Status:
        driver = {} if self._driver is None else {"drives": "you" if self._driver == "person" else "the policy"}
        return Status(
            instruction=observation.instruction or self._instruction,
            counters={**counters, **driver},
            standing=self._motion.standing,
            last_keys=tuple(self._keys),
            editing=self._editing,
            note=STOPPED if self._stopped else "",
            help=(*self._motion.help, *HELP, *(SHARING_HELP if self._driver else ())),
        )
