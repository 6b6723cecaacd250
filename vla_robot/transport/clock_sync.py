r"""Two computers, two clocks: how far apart they are, with a bound that holds, from four stamps per exchange.

    here     sent ------\                        /----> returned       this computer's clock
                         \                      /
    there                 `--> received .. answered                    the peer's clock

Nothing arrives before it is sent, so however unequal the two ways are, the offset (there - here) lies between
`answered - returned` and `received - sent`. An exchange says less with age, as the clocks may drift apart; what holds
now is where the intervals of all exchanges in the window overlap. A quick exchange makes the overlap narrow, a slow one
does no harm. No overlap at all means that a clock jumped, and everything known before is void.

The best guess within the overlap follows a line through the quickest exchanges, whose slope is the drift.

>>> sync = ClockSync()
>>> sync.add(ClockSample(sent_ns=0, received_ns=5_000_100, answered_ns=5_000_200, returned_ns=300))
True
>>> sync.offset(300).offset_ns, sync.offset(300).bound_ns
(5000000, 102)

Source: the four stamps are those of NTP (RFC 5905, section 8); the intersection of intervals is Marzullo's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_robot.core.errors import TransportError

MAX_DRIFT_PPM = 500
"""Linux slews a clock by 500 ppm at most; the crystals of two computers differ by less than 100."""

WINDOW = 64
"""Exchanges that are remembered."""

_PPB_PER_PPM = 1_000
_BILLION = 1_000_000_000
_ROUNDING_NS = 1  # a stamp is a whole number of nanoseconds


@dataclass(frozen=True)
class ClockSample:
    """One exchange.

    Attributes:
        sent_ns: request sent, on the clock here.
        received_ns: request received, on the clock there.
        answered_ns: answer sent, on the clock there.
        returned_ns: answer received, on the clock here.
    """

    sent_ns: int
    received_ns: int
    answered_ns: int
    returned_ns: int

    @property
    def travel_ns(self) -> int:
        """Time on the way, there and back; what the peer took to answer does not count."""
        return (self.returned_ns - self.sent_ns) - (self.answered_ns - self.received_ns)


@dataclass(frozen=True)
class Offset:
    """What is known about the other clock at one moment.

    Attributes:
        offset_ns: clock there minus clock here, best guess.
        bound_ns: the true offset is no further from the guess than this.
        drift_ppm: by how much the clock there is faster; 0 until two exchanges are known.
    """

    offset_ns: int
    bound_ns: int
    drift_ppm: float


class ClockSync:
    """The offset of one peer's clock. Pure: the owner of the sockets brings the stamps."""

    def __init__(self, max_drift_ppm: int = MAX_DRIFT_PPM, window: int = WINDOW) -> None:
        """
        Args:
            max_drift_ppm: the bound holds as long as the clocks drift apart no faster.
            window: exchanges that are remembered.
        """
        self._max_drift_ppb = max_drift_ppm * _PPB_PER_PPM
        self._samples: deque[ClockSample] = deque(maxlen=window)
        self._line = (0, 0.0, 0.0)
        self.jumps = 0
        """How often a clock, here or there, was seen to jump."""

    @property
    def ready(self) -> bool:
        """Whether an offset is known."""
        return bool(self._samples)

    def add(self, sample: ClockSample) -> bool:
        """Learn from one exchange; False when a clock jumped, and what was known before has been forgotten."""
        if sample.answered_ns < sample.received_ns or not self._overlap([sample], sample.returned_ns):
            self._samples.clear()  # the jump fell between its stamps: this exchange is void as well
            self.jumps += 1
            return False
        consistent = self._overlap([*self._samples, sample], sample.returned_ns) is not None
        if not consistent:
            self._samples.clear()
            self.jumps += 1
        self._samples.append(sample)
        self._line = self._fit()
        return consistent

    def offset(self, at_ns: int) -> Offset:
        """The offset at a moment on the clock here; the further from the last exchange, the wider the bound.

        Raises:
            TransportError: no exchange was made yet.
        """
        overlap = self._overlap(self._samples, at_ns) if self._samples else None
        if overlap is None:
            raise TransportError("the other computer's clock is not known yet: no stamps were exchanged with it.")
        low, high = overlap
        origin_ns, offset_ns, slope = self._line
        guess = min(max(round(offset_ns + slope * (at_ns - origin_ns)), low), high)
        return Offset(guess, max(guess - low, high - guess), slope * 1e6)

    def age_ns(self, stamp_ns: int, now_ns: int) -> tuple[int, int]:
        """How long ago something happened there.

        Args:
            stamp_ns: when, on the clock there.
            now_ns: the clock here.

        Returns:
            The age, and how far the true one may be from it, in nanoseconds.

        Raises:
            TransportError: no exchange was made yet.
        """
        offset = self.offset(now_ns)
        age_ns = now_ns - stamp_ns + offset.offset_ns
        # The offset was another one then: it drifted for as long as the stamp is old, at most.
        unsure_ns = abs(age_ns) + offset.bound_ns
        drifted_ns = -(-unsure_ns * self._max_drift_ppb // (_BILLION - self._max_drift_ppb))
        return age_ns, offset.bound_ns + drifted_ns

    def _overlap(self, samples: list[ClockSample] | deque[ClockSample], at_ns: int) -> tuple[int, int] | None:
        """Where the true offset must lie at a moment here; None when the samples contradict each other."""
        low = max(s.answered_ns - s.returned_ns - self._drift_ns(s, at_ns) for s in samples)
        high = min(s.received_ns - s.sent_ns + self._drift_ns(s, at_ns) for s in samples)
        return (low, high) if low <= high else None

    def _drift_ns(self, sample: ClockSample, at_ns: int) -> int:
        """By how much the offset may have changed since, or until, the exchange."""
        away_ns = max(abs(at_ns - sample.sent_ns), abs(at_ns - sample.returned_ns))
        return -(-away_ns * self._max_drift_ppb // _BILLION) + _ROUNDING_NS

    def _fit(self) -> tuple[int, float, float]:
        """A line through the quicker half of the samples: moment here, offset then, and slope."""
        quick = sorted(self._samples, key=lambda s: s.travel_ns)[: (len(self._samples) + 1) // 2 + 1]
        origin_ns, base_ns = quick[0].returned_ns, quick[0].received_ns - quick[0].sent_ns
        moments = np.array([(s.sent_ns + s.returned_ns) / 2 - origin_ns for s in quick])
        # Differences to the first one, as float64 does not hold nanoseconds since boot exactly.
        offsets = np.array([(s.received_ns - s.sent_ns + s.answered_ns - s.returned_ns) / 2 - base_ns for s in quick])
        centre, level = float(moments.mean()), float(offsets.mean())
        spread = float(((moments - centre) ** 2).sum())
        slope = float(((moments - centre) * (offsets - level)).sum()) / spread if spread else 0.0
        limit = self._max_drift_ppb / _BILLION
        slope = min(max(slope, -limit), limit)
        return origin_ns, base_ns + level - slope * centre, slope
