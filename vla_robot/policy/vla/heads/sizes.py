"""What a folder says of its action head: the block "head" of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, unknown
from vla_robot.policy.vla.json_files import whole
from vla_robot.policy.vla.small_files import table_of
from vla_robot.recipe.finetune import HeadRecipe
from vla_robot.recipe.policy import FlowRecipe

L1, FLOW = "l1", "flow"
KINDS = (L1, FLOW)
"""Kinds of heads."""

KEY = "head"
"""Key of our block of config.json."""


@dataclass(frozen=True)
class HeadSizes:
    """A head as config.json describes it; the number of actions is that of the folder.

    Attributes:
        kind: "l1" or "flow".
        dimension: D, numbers of an action.
        width: of flow: width of the expert.
        ff_dim: of flow: width of its gated MLPs.
        prefix: of flow: most first actions that training gave clean.
    """

    kind: str
    dimension: int
    width: int = 0
    ff_dim: int = 0
    prefix: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says."""
        said = asdict(self)
        return said if self.kind == FLOW else {key: said[key] for key in ("kind", "dimension")}


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
    dimension = whole(source, "dimension", table.get("dimension"), 1000)
    if kind != FLOW:
        return HeadSizes(kind, dimension)
    width, ff_dim = (whole(source, key, table.get(key), 65_536, 2) for key in ("width", "ff_dim"))
    if width % 2:
        raise CheckpointError(f"{source}: width is {width}; expected an even number.")
    return HeadSizes(kind, dimension, width, ff_dim, whole(source, "prefix", table.get("prefix"), 999, 0))


def head_block(head: HeadSizes | None) -> dict[str, Any]:
    """Return what our block of a config.json says of a head."""
    return {} if head is None else {KEY: head.to_dict()}


def planned_head(recipe: HeadRecipe | None, dimension: int) -> HeadSizes | None:
    """Return the head of a new policy whose actions have `dimension` numbers; None without one."""
    if recipe is None:
        return None
    flow = (recipe.width, recipe.ff_dim, recipe.prefix) if recipe.kind == FLOW else ()
    return HeadSizes(recipe.kind, dimension, *flow)


def block_with_head(
    recipe: HeadRecipe, embodiment: Embodiment, chunk: int, proprio_dim: int | None
) -> tuple[dict[str, Any], HeadSizes | None]:
    """Return what our block of a config.json says of a policy that gets a head, and the head.

    Args:
        recipe: the head.
        embodiment: the arm of the data; its cameras are read, and its state if the recipe says so.
        chunk: actions of an answer.
        proprio_dim: numbers of the state that the policy reads already; None if it reads none.
    """
    if proprio_dim is None and recipe.state:
        proprio_dim = len(embodiment.state)
    head = planned_head(recipe, len(embodiment.action))
    sizes = {"num_images": len(embodiment.cameras), "proprio_dim": proprio_dim, "chunk": chunk}
    return {**sizes, **head_block(head)}, head


def require_flow(flow: FlowRecipe | None, head: HeadSizes | None) -> None:
    """Raise CheckpointError if a recipe's table [flow] is for another policy than one with a flow-matching head."""
    if flow is not None and (head is None or head.kind != FLOW):
        has = "says its actions in tokens" if head is None else f'has the head "{head.kind}"'
        raise CheckpointError(
            f"the recipe's table [flow] is for a flow-matching head, and the folder {has}: delete it."
        )
