r"""Offset between the clocks of two computers, with a guaranteed bound, from four stamps per exchange.

    here     sent ------\                        /----> returned       this computer's clock
                         \                      /
    there                 `--> received .. answered                    the peer's clock

Nothing arrives before it is sent, so for any two travel times the offset (there - here) lies between
`answered - returned` and `received - sent`. An older exchange bounds it less, since the clocks may drift; the present
offset lies where the intervals of all exchanges in the window overlap. A fast exchange makes the overlap narrow, a slow
one does no harm. If there is no overlap, a clock jumped, and earlier exchanges are discarded.

The estimate within the overlap follows a line through the fastest exchanges, whose slope is the drift.

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
"""Number of exchanges that are kept."""

_PPB_PER_PPM = 1_000
_BILLION = 1_000_000_000
_ROUNDING_NS = 1  # a stamp is a whole number of nanoseconds


@dataclass(frozen=True)
class ClockSample:
    """Stamps of one exchange.

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
        """Travel time there and back, without the peer's time to answer."""
        return (self.returned_ns - self.sent_ns) - (self.answered_ns - self.received_ns)


@dataclass(frozen=True)
class Offset:
    """Estimate of the other clock's offset at one moment.

    Attributes:
        offset_ns: estimate of the clock there minus the clock here.
        bound_ns: largest distance of the true offset from the estimate.
        drift_ppm: how much faster the clock there is; 0 until two exchanges are known.
    """

    offset_ns: int
    bound_ns: int
    drift_ppm: float


class ClockSync:
    """Estimates the offset of one peer's clock. It uses no sockets: the caller provides the stamps."""

    def __init__(self, max_drift_ppm: int = MAX_DRIFT_PPM, window: int = WINDOW) -> None:
        """
        Args:
            max_drift_ppm: largest drift for which the bound is valid.
            window: number of exchanges that are kept.
        """
        self._max_drift_ppb = max_drift_ppm * _PPB_PER_PPM
        self._samples: deque[ClockSample] = deque(maxlen=window)
        self._line = (0, 0.0, 0.0)
        self.jumps = 0
        """Number of jumps of either clock that were detected."""

    @property
    def ready(self) -> bool:
        """Whether an offset is known."""
        return bool(self._samples)

    def add(self, sample: ClockSample) -> bool:
        """Add an exchange; return False if a clock jumped and earlier exchanges were discarded."""
        if sample.answered_ns < sample.received_ns or not self._overlap([sample], sample.returned_ns):
            self._samples.clear()  # the jump lies between its stamps, so this exchange is invalid too
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
        """Return the offset at a time on the clock here; the further from the last exchange, the wider the bound.

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
        """Return the age of an event there.

        Args:
            stamp_ns: time of the event, on the clock there.
            now_ns: present time, on the clock here.

        Returns:
            The age and its largest error [ns].

        Raises:
            TransportError: no exchange was made yet.
        """
        offset = self.offset(now_ns)
        age_ns = now_ns - stamp_ns + offset.offset_ns
        # The offset was different then: it drifted for at most the stamp's age.
        unsure_ns = abs(age_ns) + offset.bound_ns
        drifted_ns = -(-unsure_ns * self._max_drift_ppb // (_BILLION - self._max_drift_ppb))
        return age_ns, offset.bound_ns + drifted_ns

    def _overlap(self, samples: list[ClockSample] | deque[ClockSample], at_ns: int) -> tuple[int, int] | None:
        """Return the interval of the true offset at a time here; None if the samples contradict each other."""
        low = max(s.answered_ns - s.returned_ns - self._drift_ns(s, at_ns) for s in samples)
        high = min(s.received_ns - s.sent_ns + self._drift_ns(s, at_ns) for s in samples)
        return (low, high) if low <= high else None

    def _drift_ns(self, sample: ClockSample, at_ns: int) -> int:
        """Return how much the offset may have changed between the exchange and a time [ns]."""
        away_ns = max(abs(at_ns - sample.sent_ns), abs(at_ns - sample.returned_ns))
        return -(-away_ns * self._max_drift_ppb // _BILLION) + _ROUNDING_NS

    def _fit(self) -> tuple[int, float, float]:
        """Fit a line through the faster half of the samples: time here, offset then, and slope."""
        quick = sorted(self._samples, key=lambda s: s.travel_ns)[: (len(self._samples) + 1) // 2 + 1]
        origin_ns, base_ns = quick[0].returned_ns, quick[0].received_ns - quick[0].sent_ns
        moments = np.array([(s.sent_ns + s.returned_ns) / 2 - origin_ns for s in quick])
        # Differences to the first one: float64 cannot represent nanoseconds since boot exactly.
        offsets = np.array([(s.received_ns - s.sent_ns + s.answered_ns - s.returned_ns) / 2 - base_ns for s in quick])
        centre, level = float(moments.mean()), float(offsets.mean())
        spread = float(((moments - centre) ** 2).sum())
        slope = float(((moments - centre) * (offsets - level)).sum()) / spread if spread else 0.0
        limit = self._max_drift_ppb / _BILLION
        slope = min(max(slope, -limit), limit)
        return origin_ns, base_ns + level - slope * centre, slope
