"""Which connections of a server are closed, so that a new one always finds room. Pure: it knows no sockets.

    enter --> rank 0: has said nothing --promote, hear--> rank 1, 2, ..: as the server trusts it
                 |                                          |
                 +-- past its deadline, or above the room of its rank: `surplus`, oldest first

A flood from one address loses its own connections first: above the room of a rank, the address that has most
connections of that rank loses the one that was heard longest ago. A connection that is being answered (`busy`) is
kept as long as an idle one can be closed instead.

>>> admission = Admission(room=(2, 8))
>>> for key in range(3): admission.enter(key, "10.0.0.9", now_ns=key)
>>> admission.hear(0, now_ns=3, rank=1)
>>> admission.enter(3, "10.0.0.1", now_ns=4)
>>> admission.surplus(now_ns=5)
[1]
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

NEWCOMER = 0
"""The rank of a connection that has said nothing yet."""


@dataclass
class _Connection:
    address: str
    heard_ns: int
    deadline_ns: int | None
    rank: int = NEWCOMER
    busy: bool = False


class Admission:
    """The open connections of one server, each with its rank. Not thread-safe."""

    def __init__(self, room: Sequence[int]) -> None:
        """
        Args:
            room: how many connections of each rank may be open, from rank 0 on.
        """
        self._room = tuple(room)
        self._open: dict[Hashable, _Connection] = {}
        self.closed = 0
        """Connections that `surplus` has named so far."""

    def enter(self, key: Hashable, address: str, now_ns: int, deadline_ns: int | None = None) -> None:
        """A connection was accepted.

        Args:
            key: names the connection from now on.
            address: of the peer, without its port.
            now_ns: the time of the caller's clock.
            deadline_ns: when it is closed unless `hear` says otherwise; None: never.
        """
        self._open[key] = _Connection(address, now_ns, deadline_ns)

    def hear(
        self, key: Hashable, now_ns: int, rank: int | None = None, deadline_ns: int | None = None, busy: bool = False
    ) -> None:
        """Something complete arrived, or the connection begins to wait for more. One that was closed stays closed.

        Args:
            key: of the connection.
            now_ns: the time of the caller's clock.
            rank: from now on; None leaves it. A rank never falls.
            deadline_ns: when it is closed unless `hear` is called again; None: never.
            busy: it is being answered.
        """
        connection = self._open.get(key)
        if connection is None:
            return
        connection.heard_ns, connection.deadline_ns, connection.busy = now_ns, deadline_ns, busy
        connection.rank = max(connection.rank, rank or NEWCOMER)

    def promote(self, key: Hashable, rank: int) -> None:
        """The connection has begun to speak; its deadline stays."""
        if key in self._open:
            self._open[key].rank = max(self._open[key].rank, rank)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._open

    def rename(self, key: Hashable, to: Hashable) -> None:
        """The connection has another key from now on."""
        if key in self._open:
            self._open[to] = self._open.pop(key)

    def leave(self, keys: Iterable[Hashable]) -> None:
        """The connections are closed."""
        for key in keys:
            self._open.pop(key, None)

    def open_keys(self) -> list[Hashable]:
        return list(self._open)

    def surplus(self, now_ns: int) -> list[Hashable]:
        """The connections to close now. They are forgotten here."""
        late = [k for k, c in self._open.items() if c.deadline_ns is not None and c.deadline_ns <= now_ns]
        self.leave(late)
        counts = Counter(c.rank for c in self._open.values())
        for rank, room in enumerate(self._room):
            if counts[rank] > room:
                members = {key: c for key, c in self._open.items() if c.rank == rank}
                chosen = _first_to_go(members, len(members) - room)
                self.leave(chosen)
                late += chosen
        self.closed += len(late)
        return late


def _first_to_go(members: Mapping[Hashable, _Connection], count: int) -> list[Hashable]:
    """The idle ones that were heard longest ago, of the address that has most at each turn; then the newest busy ones.

    Args:
        members: the connections of one rank.
        count: how many go; at most all.
    """
    shares = Counter(c.address for c in members.values())
    idle: dict[str, list[Hashable]] = {}
    for key in sorted((k for k, c in members.items() if not c.busy), key=lambda k: -members[k].heard_ns):
        idle.setdefault(members[key].address, []).append(key)  # the oldest last
    heap = [(-shares[address], members[keys[-1]].heard_ns, address) for address, keys in idle.items()]
    heapq.heapify(heap)
    chosen: list[Hashable] = []
    while heap and len(chosen) < count:
        share, _, address = heapq.heappop(heap)
        chosen.append(idle[address].pop())
        if idle[address]:
            heapq.heappush(heap, (share + 1, members[idle[address][-1]].heard_ns, address))
    busy = sorted((k for k, c in members.items() if c.busy), key=lambda k: -members[k].heard_ns)
    return chosen + busy[: count - len(chosen)]
