"""CPU cores of replicas: each gets its own, so that their threads do not compete.

>>> core_sets([0, 1, 2, 3, 4], 2)
[(0, 1), (2, 3)]
>>> core_sets([0, 1], 3)
[(0,), (1,), (0,)]
"""

from __future__ import annotations

from collections.abc import Sequence


def core_sets(cores: Sequence[int], replicas: int) -> list[tuple[int, ...]]:
    """Return the cores of each replica: equally many, since sums of other numbers of threads may round differently.

    Args:
        cores: cores that the server may use.
        replicas: number of replicas; if there are more than cores, some share one.
    """
    each = len(cores) // replicas
    if each == 0:
        return [(cores[number % len(cores)],) for number in range(replicas)]
    return [tuple(cores[number * each : (number + 1) * each]) for number in range(replicas)]
