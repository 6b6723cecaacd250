"""Dataset statistics of a checkpoint: which numbers turn normalised actions into units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.normalise import Q99, Bounds, QuantileStats

Keys = Sequence[str | None]
"""The dataset whose statistics each row of a batch uses; None for the policy's own."""


@dataclass(frozen=True)
class Statistics:
    """Statistics that turn normalised actions into units.

    Attributes:
        datasets: dataset name -> its block in dataset_statistics.json.
        key: the dataset to use, or None for the only one.
        bounds: the two rows of a block that are -1 and +1.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    key: str | None = None
    bounds: Bounds = Q99

    def resolve(self, key: str | None) -> str:
        """Return `key`, or for None the only dataset's name.

        Raises:
            ContractError: the key is unknown, or None although there are several datasets.
        """
        if key is None:
            if len(self.datasets) == 1:
                return next(iter(self.datasets))
            raise ContractError(
                f"the checkpoint holds statistics of {len(self.datasets)} datasets; name one with statistics_key: "
                f"{', '.join(sorted(self.datasets)) or 'none are there'}."
            )
        if key not in self.datasets:
            raise ContractError(unknown("statistics key", key, self.datasets))
        return key

    def of(self, what: str, key: str | None = None) -> QuantileStats:
        """Return the bounds of "action" or "proprio" of a dataset, by default of this object's own.

        Raises:
            ContractError: the dataset is unknown, or its block lacks these statistics.
        """
        name = self.resolve(key or self.key)
        block = self.datasets[name]
        if not isinstance(block, Mapping) or not isinstance(block.get(what, {}), Mapping):
            raise ContractError(f"the statistics of '{name}' must be a table with '{what}', got {block!r:.80}.")
        if what not in block:
            raise ContractError(f"the statistics of '{name}' have no '{what}', only: {', '.join(sorted(block))}.")
        return QuantileStats.from_dict(block[what], self.bounds)

    def rows(self, what: str, count: int, keys: Keys | None) -> list[QuantileStats]:
        """Return `of` for each of `count` rows of a batch; without keys, this object's own dataset for all."""
        if keys is None:
            return [self.of(what)] * count
        if len(keys) != count:
            raise ContractError(f"a batch needs one statistics key per observation, got {len(keys)} for {count}.")
        return [self.of(what, key) for key in keys]


def require_dimension(stats: Sequence[QuantileStats], dimension: int, given: str) -> None:
    """Raise ContractError unless statistics un-normalise actions of so many numbers.

    Args:
        stats: of each row.
        dimension: D, numbers of an action.
        given: who gives so many, for the message: "the head gives 7 numbers per action".
    """
    if other := [len(each) for each in stats if len(each) != dimension]:
        raise ContractError(f"{given}, but the statistics have {other[0]}.")


def require_statistics(statistics: Statistics) -> None:
    """Raise ContractError unless the named dataset, or without a name every dataset, can un-normalise actions."""
    names = [statistics.key] if statistics.key is not None else list(statistics.datasets)
    if not names:
        raise ContractError("the checkpoint holds statistics of no dataset, so its actions have no units.")
    for name in names:
        statistics.of("action", name)
