"""Converts a dataset's episodes to standard trajectories by its recipe.

raw steps      0   1   2   3   4   5        frames keep the numbers of raw steps; `first` is the number of step 0
skip_first = 1     1   2   3   4   5
parts              the operations get these steps, so that `change_to_next` still has step 5
skip_last = 1      1   2   3   4            = steps 0 to 3 of the trajectory, first = 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Episode, Field
from vla_robot.core.errors import DataError, unknown
from vla_robot.data.pipeline.operations import Rows, apply, inflate
from vla_robot.recipe.oxe import Columns, Constant, Operation, Part, SourceRecipe


@dataclass(frozen=True)
class Trajectory:
    """T standard steps of one episode.

    Attributes:
        actions: (T, D) float32, in the dataset's units; the gripper 1 = open, 0 = closed.
        state: (T, P) float32; P is 0 for a dataset without a state.
        instructions: T texts.
        first: number of the raw step that is step 0, by which frames are found.
    """

    actions: NDArray[np.float32]
    state: NDArray[np.float32]
    instructions: tuple[str, ...]
    first: int

    def __len__(self) -> int:
        return len(self.actions)


def fields_of(recipe: SourceRecipe) -> tuple[str, ...]:
    """Return the fields of an episode that `standardise` reads; frames are not among them."""
    parts = (*recipe.action_parts(), *recipe.state_parts())
    names = [part.field for part in parts if isinstance(part, Columns)]
    return tuple(dict.fromkeys([*names, recipe.instruction_field()[0]]))


def require_fit(recipe: SourceRecipe, fields: Mapping[str, Field], where: str) -> None:
    """Raise DataError unless the dataset has what the recipe needs; the message names all that is missing."""
    problems = misfits(recipe, fields)
    if problems:
        raise DataError(
            f"{where} does not fit its recipe: {'; '.join(problems)}. Available: {', '.join(sorted(fields))}."
        )


def misfits(recipe: SourceRecipe, fields: Mapping[str, Field]) -> list[str]:
    """Return the fields, cameras and columns of the action that the recipe needs and the dataset lacks, in words."""
    problems = [problem for name, kind in _needs(recipe) if (problem := _misfit(name, kind, fields))]
    if not problems:
        widths = [_width(part, fields) for part in recipe.action_parts()]
        if sum(widths) != recipe.action_dim:
            problems.append(
                f"the action has {sum(widths)} dimensions, but '{recipe.action_encoding}' has {recipe.action_dim}"
            )
    return problems


def _needs(recipe: SourceRecipe) -> list[tuple[str, str]]:
    """Return (field, kind of its values) for each field that the recipe names."""
    parts = [part for part in (*recipe.action_parts(), *recipe.state_parts()) if isinstance(part, Columns)]
    needs = {part.field: "compressed numbers" if _is_compressed(part) else "numbers" for part in parts}
    name, is_codes = recipe.instruction_field()
    needs |= {name: "numbers" if is_codes else "text"}
    needs |= dict.fromkeys(recipe.camera_fields.values(), "colour frames")
    return list(needs.items())


def _misfit(name: str, kind: str, fields: Mapping[str, Field]) -> str:
    """Return what is wrong with a field that must hold something of a kind; "" when nothing is."""
    if name not in fields:
        what = "camera" if kind == "colour frames" else "field"
        return unknown(what, name, fields).partition(" Available:")[0].rstrip(".")
    field = fields[name]
    holds = {
        "numbers": field.kind == "number" and not field.is_ragged,
        "compressed numbers": field.kind == "text" or (field.kind == "number" and not field.is_ragged),
        "text": field.kind == "text" and not field.shape,
        "colour frames": field.is_colour,
    }
    return "" if holds[kind] else f"field '{name}' holds {field}, not {kind}"


def _width(part: Part, fields: Mapping[str, Field]) -> int:
    """Return the number of columns of a part."""
    if isinstance(part, Constant):
        return part.width
    if _is_compressed(part):
        return part.operations[0].numbers[0]
    columns = len(range(math.prod(size or 0 for size in fields[part.field].shape))[part.start : part.stop])
    return 3 if any(operation.name == "quaternion_to_euler" for operation in part.operations) else columns


def _is_compressed(part: Columns) -> bool:
    return bool(part.operations) and part.operations[0].name == "inflate"


def standardise(recipe: SourceRecipe, episode: Episode) -> Trajectory:
    """Convert one episode to standard form; it has no steps when it is too short for `skip_first` and `skip_last`.

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
    """Return the columns of all parts side by side, (stop - first, n)."""
    nothing = np.empty((stop - first, 0), dtype=np.float32)  # for a recipe without parts
    return np.concatenate([nothing, *(_rows(part, episode, first)[: stop - first] for part in parts)], axis=1)


def _rows(part: Part, episode: Episode, first: int) -> Rows:
    """Return the rows of a part from raw step `first` on."""
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
    """Return the numbers of a field, (T, n) float32, and the operations that are still to be applied."""
    values = episode.steps.get(part.field, ())
    if not _is_compressed(part):
        rows = episode.numbers(part.field).astype(np.float32)
        return rows.reshape(len(rows), -1), part.operations
    (width,), rest = part.operations[0].numbers, part.operations[1:]
    if isinstance(values, np.ndarray):  # features.json says that it is compressed, so the reader has decompressed it
        rows = values.astype(np.float32).reshape(len(values), -1)
        if rows.shape[1] != width:
            raise DataError(f"it holds {rows.shape[1]} numbers a step, not {width}")
        return rows, rest
    entries = [_as_bytes(value) for value in values] if isinstance(values, tuple) else []
    if len(entries) != len(episode):
        raise DataError("it holds no compressed bytes")
    return inflate(entries, width), rest


def _as_bytes(value: Any) -> bytes:
    """Return a compressed entry as bytes; the reader returns bytes that are valid UTF-8 as str."""
    if not isinstance(value, (bytes, str)):
        raise DataError("it holds no compressed bytes")
    return value.encode() if isinstance(value, str) else value


def _instructions(recipe: SourceRecipe, episode: Episode) -> tuple[str, ...]:
    name, is_codes = recipe.instruction_field()
    return episode.told_in(name) if is_codes else episode.texts(name)


def _require_finite(name: str, values: Rows, episode: Episode, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"{episode.where}: the {name} of step {first + int(bad[0])} is not finite "
            f"({np.array2string(values[bad[0]], precision=3, threshold=16)}), and {len(bad) - 1} more. Remove the "
            "episode; `vla data convert --skip-corrupt` writes the dataset without it."
        )
