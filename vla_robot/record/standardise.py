"""A dataset's episodes -> standard trajectories, as its recipe says.

raw steps      0   1   2   3   4   5        the frames stay where they are; `first` says where they begin
skip_first = 1     1   2   3   4   5
parts              operations see these, so that the one that looks ahead still sees step 5
skip_last = 1      1   2   3   4            = steps 0 to 3 of the trajectory, first = 1
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, unknown
from vla_robot.recipe.oxe import Columns, Constant, Operation, Part, SourceRecipe
from vla_robot.record.operations import Rows, apply, codes_to_text, inflate
from vla_robot.record.source import Episode


@dataclass(frozen=True)
class Trajectory:
    """T standard steps of one episode.

    Attributes:
        actions: (T, D) float32, in the dataset's units; the gripper 1 = open, 0 = closed.
        state: (T, P) float32; P is 0 for a dataset without a state.
        instructions: T texts.
        first: the raw step that is step 0; frames are found by it.
    """

    actions: NDArray[np.float32]
    state: NDArray[np.float32]
    instructions: tuple[str, ...]
    first: int

    def __len__(self) -> int:
        return len(self.actions)


def fields_of(recipe: SourceRecipe) -> tuple[str, ...]:
    """What must be parsed of an episode: everything that is used, but no frame."""
    parts = (*recipe.action_parts(), *recipe.state_parts())
    names = [part.field for part in parts if isinstance(part, Columns)]
    return tuple(dict.fromkeys([*names, recipe.instruction_field()[0]]))


def require_fit(recipe: SourceRecipe, fields: Collection[str], where: str) -> None:
    """Raise DataError unless every field and camera of the recipe exists; all that are missing are named."""
    wanted = dict.fromkeys(fields_of(recipe), "field")
    wanted |= dict.fromkeys(recipe.cameras.by_role().values(), "camera")
    missing = [unknown(what, name, fields) for name, what in wanted.items() if name not in fields]
    if missing:
        problems = [text.partition(" Available:")[0].rstrip(".") for text in missing]
        raise DataError(
            f"{where} does not fit its recipe: {'; '.join(problems)}. Available: {', '.join(sorted(fields))}."
        )


def standardise(recipe: SourceRecipe, episode: Episode) -> Trajectory:
    """One episode in standard form; without steps when it is too short for `skip_first` and `skip_last`.

    Raises:
        DataError: a field is absent or of the wrong kind, the action has another number of dimensions than its
            encoding, or a number is not finite.
    """
    first, stop = recipe.skip_first, len(episode) - recipe.skip_last
    if stop <= first:
        return Trajectory(np.empty((0, recipe.action_dim), np.float32), np.empty((0, 0), np.float32), (), first)
    actions = _beside(recipe.action_parts(), episode, first, stop)
    if actions.shape[1] != recipe.action_dim:
        raise DataError(
            f"{episode.where}: the recipe's action has {actions.shape[1]} dimensions, but '{recipe.action_encoding}' "
            f"has {recipe.action_dim}."
        )
    state = _beside(recipe.state_parts(), episode, first, stop)
    for name, values in (("action", actions), ("state", state)):
        _require_finite(name, values, episode, first)
    return Trajectory(actions, state, _instructions(recipe, episode)[first:stop], first)


def _beside(parts: Sequence[Part], episode: Episode, first: int, stop: int) -> Rows:
    """(stop - first, columns of all parts)."""
    nothing = np.empty((stop - first, 0), dtype=np.float32)  # so that no parts make no columns
    return np.concatenate([nothing, *(_rows(part, episode, first)[: stop - first] for part in parts)], axis=1)


def _rows(part: Part, episode: Episode, first: int) -> Rows:
    """The rows of a part from raw step `first` on."""
    if isinstance(part, Constant):
        return np.full((len(episode) - first, part.width), part.value, dtype=np.float32)
    try:
        rows, operations = _numbers(part, episode)
        return apply(operations, rows[first:, part.start : part.stop])
    except DataError as error:
        if str(error).startswith(episode.where):
            raise
        raise DataError(f"{episode.where}: field '{part.field}': {error}.") from error


def _numbers(part: Columns, episode: Episode) -> tuple[Rows, Sequence[Operation]]:
    """(T, n) float32 of a field, and the operations that are left to do."""
    if part.operations and part.operations[0].name == "inflate":
        values = episode.steps.get(part.field, ())
        compressed = [value for value in values if isinstance(value, bytes)] if isinstance(values, tuple) else []
        if len(compressed) != len(episode):
            raise DataError("it holds no compressed bytes")
        return inflate(compressed, *part.operations[0].numbers), part.operations[1:]
    values = episode.numbers(part.field).astype(np.float32)
    return values.reshape(len(values), -1), part.operations


def _instructions(recipe: SourceRecipe, episode: Episode) -> tuple[str, ...]:
    name, is_codes = recipe.instruction_field()
    if not is_codes:
        return episode.texts(name)
    return tuple(codes_to_text(codes) for codes in episode.numbers(name))


def _require_finite(name: str, values: Rows, episode: Episode, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"{episode.where}: the {name} of step {first + int(bad[0])} is not finite "
            f"({np.array2string(values[bad[0]], precision=3)}), and {len(bad) - 1} more. Remove the episode."
        )
