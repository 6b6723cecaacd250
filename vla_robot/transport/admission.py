"""Selects which connections of a server to close, so that a new one always has room. It uses no sockets.

    enter --> rank 0: has sent nothing --promote, hear--> rank 1, 2, ..: as the server trusts it
                 |                                          |
                 +-- past its deadline, or above the room of its rank: `surplus`, oldest first

A flood from one address loses its own connections first: above the room of a rank, the address with the most
connections of that rank loses the one that was silent longest. A connection that is being answered (`busy`) is
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
"""Rank of a connection that has sent nothing yet."""


@dataclass
class _Connection:
    address: str
    heard_ns: int
    deadline_ns: int | None
    rank: int = NEWCOMER
    busy: bool = False


class Admission:
    """Open connections of one server, each with its rank. Not thread-safe."""

    def __init__(self, room: Sequence[int]) -> None:
        """
        Args:
            room: most open connections of each rank, from rank 0 on.
        """
        self._room = tuple(room)
        self._open: dict[Hashable, _Connection] = {}
        self.closed = 0
        """Number of connections that `surplus` has returned so far."""

    def enter(self, key: Hashable, address: str, now_ns: int, deadline_ns: int | None = None) -> None:
        """Add an accepted connection.

        Args:
            key: name of the connection.
            address: the peer's address, without the port.
            now_ns: present time on the caller's clock [ns].
            deadline_ns: time at which it is closed unless `hear` extends it [ns]; None: never.
        """
        self._open[key] = _Connection(address, now_ns, deadline_ns)

    def hear(
        self, key: Hashable, now_ns: int, rank: int | None = None, deadline_ns: int | None = None, busy: bool = False
    ) -> None:
        """Note that a complete message arrived, or that the next one is awaited. A closed connection stays closed.

        Args:
            key: name of the connection.
            now_ns: present time on the caller's clock [ns].
            rank: new rank; None keeps it. A rank never falls.
            deadline_ns: time at which it is closed unless `hear` is called again [ns]; None: never.
            busy: whether it is being answered.
        """
        connection = self._open.get(key)
        if connection is None:
            return
        connection.heard_ns, connection.deadline_ns, connection.busy = now_ns, deadline_ns, busy
        connection.rank = max(connection.rank, rank or NEWCOMER)

    def promote(self, key: Hashable, rank: int) -> None:
        """Raise the rank of a connection that has begun to send; its deadline stays."""
        if key in self._open:
            self._open[key].rank = max(self._open[key].rank, rank)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._open

    def rename(self, key: Hashable, to: Hashable) -> None:
        """Give a connection another key."""
        if key in self._open:
            self._open[to] = self._open.pop(key)

    def leave(self, keys: Iterable[Hashable]) -> None:
        """Forget connections that are closed."""
        for key in keys:
            self._open.pop(key, None)

    def open_keys(self) -> list[Hashable]:
        return list(self._open)

    def surplus(self, now_ns: int) -> list[Hashable]:
        """Return the connections to close now, and forget them."""
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
    """Return the idle ones that were silent longest, each of the address with the most; then the newest busy ones.

    Args:
        members: the connections of one rank.
        count: number of connections to return, at most all.
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
