"""A part of the episodes of a dataset that has no splits of its own, named as RLDS names parts: "train[:95%]"."""

from __future__ import annotations

from vla_robot.record.rlds.splits import Split, parse_parts


def episodes_of(expression: str, splits: dict[str, list[int]], where: str) -> list[int]:
    """The episodes that an expression names, in its order.

    Args:
        expression: "train", "train[:95%]", "train[10:20]", "train+val" or "all".
        splits: split -> its episodes.
        where: the dataset's path, for error messages.

    Raises:
        DataError: it is no such expression, or names a split that does not exist.
    """
    known = {name: Split(name, (), (len(episodes),)) for name, episodes in splits.items()}
    parts = parse_parts(expression, known, where)
    return [episode for part in parts for episode in splits[part.split][part.start : part.stop]]
