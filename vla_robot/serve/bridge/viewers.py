"""Viewers of a bridge, which send no commands: each gets the newest tick as fast as it takes it.

    viewer  --view {seen}-->  bridge     newest tick received; ten times a second, or as soon as a tick came
            <----- tick ----

At most one tick is on its way to a viewer, so that a slow one gets fewer of them and delays no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vla_robot.core.clock import NS_PER_S, Clock
from vla_robot.core.errors import TransportError
from vla_robot.core.messages import Clamp
from vla_robot.core.robot import Tick

MOST_VIEWERS = 8
"""Largest number of viewers: each costs the control thread a fraction of a millisecond per tick."""

MOST_HZ = 20.0
"""Highest rate of ticks to a viewer [Hz]; a policy that needs every tick connects as a controller."""

SILENT_S = 2.0
"""A viewer that is silent for this long is forgotten [s]."""

RESEND_S = 0.5
"""A tick that is not acknowledged for this long was lost [s]."""


@dataclass
class _Viewer:
    heard_ns: int
    seen: int = 0
    sent: int = 0
    sent_ns: int = 0


@dataclass(frozen=True)
class _Cut:
    """Number of times a limit changed a dimension, and the last clamp."""

    times: int
    last: Clamp


class Viewers:
    """The viewers of a bridge, and the newest tick that each has."""

    def __init__(self, clock: Clock) -> None:
        """
        Args:
            clock: the bridge's clock.
        """
        self._clock = clock
        self._of: dict[bytes, _Viewer] = {}
        self.number = 0
        """Number of the newest tick; it only grows, over all controllers."""
        self.newest: Tick | None = None
        self._cuts: dict[tuple[str, str], _Cut] = {}

    def __len__(self) -> int:
        return len(self._of)

    def push(self, tick: Tick) -> None:
        self.number, self.newest = self.number + 1, tick
        for clamp in tick.result.clamps:
            key = clamp.dim, clamp.cause
            before = self._cuts.get(key, _Cut(0, clamp))
            self._cuts[key] = replace(before, times=before.times + 1, last=clamp)

    def cuts(self) -> list[Mapping[str, Any]]:
        """Return what limits changed since the bridge began, the most frequent first: viewers miss ticks."""
        rows = sorted(self._cuts.values(), key=lambda cut: -cut.times)
        return [
            {
                "dim": cut.last.dim,
                "cause": cut.last.cause,
                "times": cut.times,
                "wanted": float(cut.last.wanted),
                "allowed": float(cut.last.allowed),
            }
            for cut in rows
        ]

    def acknowledge(self, peer: bytes, seen: int) -> None:
        """Note the newest tick that a viewer has.

        Args:
            peer: the viewer's connection.
            seen: number of the newest tick it has; 0 for none.

        Raises:
            TransportError: there are too many viewers.
        """
        now_ns = self._clock.now_ns()
        self._forget_silent(now_ns)
        if peer not in self._of and len(self._of) >= MOST_VIEWERS:
            raise TransportError(
                f"{len(self._of)} viewers watch this bridge already; {MOST_VIEWERS} are allowed. Close one of them."
            )
        viewer = self._of.setdefault(peer, _Viewer(now_ns))
        viewer.heard_ns, viewer.seen = now_ns, min(max(viewer.seen, seen), viewer.sent)

    def due(self) -> list[bytes]:
        """Return the viewers to send the newest tick to now, and note it as sent."""
        now_ns = self._clock.now_ns()
        self._forget_silent(now_ns)
        chosen = [peer for peer, viewer in self._of.items() if self._wants(viewer, now_ns)]
        for peer in chosen:
            self._of[peer].sent, self._of[peer].sent_ns = self.number, now_ns
        return chosen

    def drop(self, peer: bytes) -> None:
        """Forget a viewer whose connection is gone."""
        self._of.pop(peer, None)

    def _wants(self, viewer: _Viewer, now_ns: int) -> bool:
        since_s = (now_ns - viewer.sent_ns) / NS_PER_S
        if viewer.seen < viewer.sent:
            return since_s >= RESEND_S
        return viewer.sent < self.number and (not viewer.sent or since_s >= 1 / MOST_HZ)

    def _forget_silent(self, now_ns: int) -> None:
        silent = [peer for peer, viewer in self._of.items() if now_ns - viewer.heard_ns > SILENT_S * NS_PER_S]
        for peer in silent:
            del self._of[peer]
