"""A page in the browser as a Teleoperator: camera view, keys, two pads for mouse or finger, a gamepad.

    page  --POST /act/drive, 20 Hz-->  BrowserTeleop  --command()-->  loop
          <------ /next -------------                 <---show()----

One page has control at a time. A page that is closed, hidden or cut off sends no more messages, and the arm holds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, cast, get_args

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import GRIPPER_OPEN, Embodiment
from vla_robot.core.errors import TransportError, unknown
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.teleop import Button, Driver, TeleopCommand
from vla_robot.core.teleop_device import AXES, action_of, require_drivable
from vla_robot.web.latest_frame import LatestFrameBuffer
from vla_robot.web.server import Access, Listen, WebServer
from vla_robot.web.view import about

SILENT_AFTER_S = 0.4
"""A page sends a message every 50 ms; after this long without one, it gives no action [s]."""

SEAT_S = 1.5
"""After this long without a message, another page may take control [s]."""

MAX_INSTRUCTION_CHARS = 200


class BrowserTeleop:
    """Teleoperator that is served as a web page."""

    def __init__(
        self,
        embodiment: Embodiment,
        instruction: str,
        listen: Listen | None = None,
        access: Access | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            embodiment: the arm's embodiment.
            instruction: instruction to show until another one is typed.
            listen: address of the page; by default any free port of this computer.
            access: its tokens; by default new ones.
            clock: measures the page's silence.

        Raises:
            ContractError: six axes and a gripper cannot control this arm.
            TransportError: the port is taken.
        """
        require_drivable(embodiment.action)
        self._embodiment = embodiment
        self._instruction = instruction
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._seat = ""
        self._heard_ns: int | None = None
        self._action = action_of(embodiment.action, [0.0] * len(AXES), closed=False)
        self._buttons: set[Button] = set()
        self._typed: str | None = None
        self._stopped = False
        self._shown = 0
        self._driver: Driver | None = None
        self._executed: Vector | None = None
        self._board = LatestFrameBuffer()
        listen, access = listen or Listen(), access or Access()
        self._web = WebServer(self._board, self._about, {"drive": self._drive, "stop": self._stop}, access, listen)

    @property
    def url(self) -> str:
        """Address of the page with controls."""
        return self._web.operator_url or self._web.url

    @property
    def watcher_url(self) -> str:
        """Address of the page without controls."""
        return self._web.watcher_url

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        """Show an observation on the page; return at once."""
        self._shown += 1
        with self._lock:
            mode, reason = self._standing()
            facts = {
                "tick": self._shown,
                "step": observation.step,
                "mode": mode,
                "reason": reason,
                "running": True,
                "instruction": observation.instruction or self._instruction,
                "state": observation.state,
                "executed": self._action,
                "counters": dict(counters),
                **self._shared(),
            }
        self._board.post(facts, observation.images)

    def command(self) -> TeleopCommand:
        """Return the page's newest action, and the buttons and text since the last call."""
        with self._lock:
            buttons, self._buttons = frozenset(self._buttons), set()
            typed, self._typed = self._typed, None
            alive = self._is_heard(SILENT_AFTER_S) and not self._stopped
            return TeleopCommand(self._action.copy() if alive else None, buttons, typed)

    def tell_driver(self, driver: Driver, executed: Vector | None) -> None:
        """Show who is in control, and make the page's gripper follow the arm's meanwhile."""
        with self._lock:
            self._driver, self._executed = driver, executed

    def close(self) -> None:
        """Close the page. May be called twice."""
        self._web.close()

    def _about(self) -> Mapping[str, Any]:
        return about(self._embodiment.name, self._embodiment, kind="drive")

    def _drive(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Handle one message of a page: its axes, buttons and text.

        Raises:
            TransportError: it is malformed, or another page has control.
        """
        seat, axes, closed, buttons, typed = _read(body)
        with self._lock:
            if seat != self._seat and self._is_heard(SEAT_S):
                raise TransportError("another page has control already; close that one, or wait until it is silent.")
            self._seat, self._heard_ns = seat, self._clock.now_ns()
            self._action = action_of(self._embodiment.action, axes, closed)
            self._buttons |= buttons
            self._typed = typed if typed is not None else self._typed
            if buttons & {"start", "takeover"}:
                self._stopped = False
        return {}

    def _stop(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._lock:
            self._stopped = True
            self._buttons.add("estop")
        return {"stopped": True}

    def _shared(self) -> dict[str, Any]:
        """Return the facts that the page gets if a policy shares control."""
        if self._driver is None:
            return {}
        executed = self._action if self._executed is None else self._executed
        return {"driver": self._driver, "executed": executed, "closed": bool(executed[-1] < GRIPPER_OPEN / 2)}

    def _standing(self) -> tuple[str, str]:
        if self._stopped:
            return "stopped", "stopped on this page" + ("; Start goes on" if self._driver is None else "")
        if self._driver == "policy":
            return "run", "the policy drives"
        if not self._is_heard(SILENT_AFTER_S):
            return "hold", "no person is at the controls"
        return "run", ""

    def _is_heard(self, within_s: float) -> bool:
        return self._heard_ns is not None and self._clock.now_ns() - self._heard_ns < within_s * NS_PER_S


def _read(body: Mapping[str, Any]) -> tuple[str, list[float], bool, set[Button], str | None]:
    seat, axes, closed = body.get("seat"), body.get("axes"), body.get("closed")
    buttons, typed = body.get("buttons"), body.get("instruction")
    if not isinstance(seat, str) or not 0 < len(seat) <= 64:
        raise TransportError("'seat' must be a short text that identifies the page.")
    if not isinstance(closed, bool):
        raise TransportError("'closed' must be true or false.")
    if typed is not None and not (isinstance(typed, str) and len(typed) <= MAX_INSTRUCTION_CHARS):
        raise TransportError(f"'instruction' must be text of at most {MAX_INSTRUCTION_CHARS} characters.")
    return seat, _axes(axes), closed, _pressed(buttons), typed


def _axes(value: Any) -> list[float]:
    axes = cast("list[Any]", value) if isinstance(value, list) else []
    if len(axes) != len(AXES) or not all(type(a) in (int, float) and math.isfinite(a) and -1 <= a <= 1 for a in axes):
        raise TransportError(f"'axes' must be {len(AXES)} numbers from -1 to 1, for {', '.join(AXES)}.")
    return [float(a) for a in axes]


def _pressed(value: Any) -> set[Button]:
    names = cast("list[Any]", value) if isinstance(value, list) else [value]
    for name in names:
        if name not in get_args(Button):
            raise TransportError(unknown("button", str(name)[:40], get_args(Button)))
    return set(cast("list[Button]", names))
