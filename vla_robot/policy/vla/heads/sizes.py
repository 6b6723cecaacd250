"""What a folder says of its action head: the block "head" of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vla_robot.core.errors import CheckpointError, unknown
from vla_robot.policy.vla.json_files import whole
from vla_robot.policy.vla.small_files import table_of
from vla_robot.recipe.finetune import HeadRecipe

KEY = "head"
"""Key of our block of config.json."""


@dataclass(frozen=True)
class HeadSizes:
    """A head as config.json describes it; the number of actions is that of the folder.

    Attributes:
        kind: "l1".
        dimension: D, numbers of an action.
    """

    kind: str
    dimension: int

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says."""
        return asdict(self)


def head_of(source: str, block: Mapping[str, Any]) -> HeadSizes | None:
    """Return the head that our block of a config.json describes; None for a policy that says actions in tokens.

    Raises:
        CheckpointError: there is no such kind, or a number is impossible.
    """
    if KEY not in block:
        return None
    table = table_of(source, block, KEY)
    kind = str(table.get("kind"))
    if kind not in KINDS:
        raise CheckpointError(f"{source}: {unknown('head', kind, KINDS)}")
    return HeadSizes(kind, whole(source, "dimension", table.get("dimension"), 1000))


def head_block(head: HeadSizes | None) -> dict[str, Any]:
    """Return what our block of a config.json says of a head."""
    return {} if head is None else {KEY: head.to_dict()}


def planned_head(recipe: HeadRecipe | None, dimension: int) -> HeadSizes | None:
    """Return the head of a new policy whose actions have `dimension` numbers; None without one."""
    return None if recipe is None else HeadSizes(recipe.kind, dimension)


KINDS = ("l1",)
"""Kinds of heads."""
