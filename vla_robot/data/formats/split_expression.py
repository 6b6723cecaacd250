"""Reads split expressions of RLDS, such as "train[:95%]", for datasets of other formats."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vla_robot.data.formats.rlds.splits import ALL, Split, parse_parts

NOTHING: Mapping[str, list[int]] = MappingProxyType({})


def episodes_of(
    expression: str, splits: Mapping[str, list[int]], where: str, subsets: Mapping[str, list[int]] = NOTHING
) -> list[int]:
    """Return the episodes that an expression names, in its order, each once.

    Args:
        expression: "train", "train[:95%]", "train[10:20]", "train+val" or "all".
        splits: split -> its episodes.
        where: the dataset's path, for error messages.
        subsets: other part -> its episodes, which "all" does not include.

    Raises:
        DataError: the expression is malformed, or names a split that does not exist.
    """
    known = {**splits, **subsets}
    episodes: list[int] = []
    for text in expression.split("+"):
        named = splits if text.strip().partition("[")[0] == ALL else known
        sizes = {name: Split(name, (), (len(of),)) for name, of in named.items()}
        for part in parse_parts(text, sizes, where):
            episodes += known[part.split][part.start : part.stop]
    return list(dict.fromkeys(episodes))
