"""Limits the requests of one client, so that a runaway script cannot block the server for others or for its arm.

It is a token bucket per client: `burst` requests at once, `rate_hz` on average. A stop is never limited. The number of
waiting messages is limited separately, per connection, by `sockets.QUEUED_MESSAGES`.

>>> from vla_robot.core.clock import FakeClock
>>> limit = RateLimit(rate_hz=10.0, burst=2, clock=FakeClock())
>>> for kind in ("chunk", "chunk", "stop", "chunk"): limit.admit("desk", kind)
Traceback (most recent call last):
vla_robot.core.errors.TransportError: client 'desk' asks for more than 10 requests a second ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from vla_robot.core.clock import NS_PER_S, Clock
from vla_robot.core.errors import TransportError

MAX_CLIENTS = 256
"""Most clients whose rate is kept; the one that was silent longest is forgotten first."""

STOP = "stop"


@dataclass
class _Bucket:
    tokens: float
    filled_ns: int


class RateLimit:
    """Rate limit for each client of a server."""

    def __init__(self, rate_hz: float, burst: int, clock: Clock, exempt: Collection[str] = (STOP,)) -> None:
        """
        Args:
            rate_hz: average requests per second.
            burst: requests that may come at once after a silence, 1 or more.
            clock: clock that fills the buckets.
            exempt: kinds of request that are always admitted.

        Raises:
            TransportError: the limit would let no request through.
        """
        if not rate_hz > 0 or burst < 1:
            raise TransportError(f"a limit of {rate_hz:g} requests a second and bursts of {burst} lets none through.")
        self._rate_hz = rate_hz
        self._burst = burst
        self._clock = clock
        self._exempt = frozenset(exempt)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self.refused = 0
        """Number of requests refused so far."""

    def admit(self, client: str, kind: str) -> None:
        """Return if the request may be served.

        Args:
            client: its name on the allow-list, or of the connection without keys.
            kind: kind of request.

        Raises:
            TransportError: the client sends too many requests.
        """
        if kind in self._exempt:
            return
        bucket = self._filled(client)
        if bucket.tokens < 1.0:
            self.refused += 1
            raise TransportError(
                f"client '{client}' asks for more than {self._rate_hz:g} requests a second; '{kind}' was refused. "
                f"A loop may run without its clock. {STOP.capitalize()} always works."
            )
        bucket.tokens -= 1.0

    def _filled(self, client: str) -> _Bucket:
        """Return the client's bucket, filled up to now."""
        now_ns = self._clock.now_ns()
        bucket = self._buckets.setdefault(client, _Bucket(self._burst, now_ns))
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        # A clock that steps back must not drain the bucket.
        gained = max(now_ns - bucket.filled_ns, 0) / NS_PER_S * self._rate_hz
        bucket.tokens, bucket.filled_ns = min(bucket.tokens + gained, self._burst), now_ns
        return bucket
