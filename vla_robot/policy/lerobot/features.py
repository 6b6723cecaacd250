"""A policy's features by the names and units of an arm.

    observation.images.top    <-- camera "front"      by the recipe's [cameras], or by the same name; `resize` resizes
    observation.state         <-- (state - offset) / scale, in the order of the recipe's [state]
    action                    --> action * scale + offset

A folder says how many numbers it reads and gives, and not what they mean. Their names and units come from the recipe or
from the embodiment of the training; without both they are the arm's own, and then the ranges of the training data must
lie near the arm's: degrees on an arm that takes radians are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.embodiment import Dim, Embodiment, misfits
from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.image import resize
from vla_robot.core.messages import Image, Observation
from vla_robot.policy.lerobot.folder import ACTION, IMAGE, STATE, PolicyFolder
from vla_robot.policy.lerobot.processors import Range
from vla_robot.recipe.peer import LeRobotNumbersRecipe
from vla_robot.recipe.policy import LeRobotRecipe

MARGIN = 0.5
"""Share of a dimension's range by which the training data may exceed it; another unit exceeds it by far more."""


class Features:
    """Makes lerobot's batch from observations of one arm, and the arm's actions from the policy's."""

    def __init__(self, folder: PolicyFolder, recipe: LeRobotRecipe, arm: Embodiment, seen: Mapping[str, Range]) -> None:
        """
        Args:
            folder: the policy's features.
            recipe: names and units, where they differ from the arm's.
            arm: the arm whose observations come.
            seen: ranges of the training data, in the policy's units.

        Raises:
            ContractError: the policy does not fit the arm; the message lists every difference.
        """
        cameras = {name: recipe.cameras.get(_bare(name), _bare(name)) for name in self._sources(folder)}
        problems = [
            *_unused(recipe, [_bare(name) for name in cameras]),
            *_camera_problems(folder, cameras, arm, recipe.resize),
            *_rate_problems(recipe, arm),
            *_number_problems("state", folder.width(STATE), recipe.state, arm.state),
            *_number_problems("action", folder.width(ACTION), recipe.action, arm.action.dims),
            *_name_problems(folder, recipe, arm),
        ]
        if not problems:  # numbers that have no names have no units to compare
            self._state = _Numbers(recipe.state, arm.state)
            self._action = _Numbers(recipe.action, arm.action.dims)
            problems += self._state.strangers("state", seen.get(STATE))
            problems += self._action.strangers("action", seen.get(ACTION))
        if problems:
            raise ContractError(
                f"the policy of {folder.path} does not fit '{arm.name}': {'; '.join(problems)}. Names and units are "
                "given in a recipe of kind 'lerobot' (docs/lerobot.md)."
            )
        self._cameras = cameras
        self._sizes = dict(zip(cameras.values(), folder.image_sizes().values(), strict=True)) if recipe.resize else {}
        self._reads_state = folder.width(STATE) is not None
        self._history_steps = folder.earlier_steps
        self._shape = len(arm.state)

    def batch(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """Return lerobot's batch: images (B, 3, H, W) float32, 0 to 1; state (B, D) float32; task: B texts.

        A policy that reads several steps gets (B, S, ...), oldest first; an episode's first observation is repeated.

        Raises:
            ContractError: a camera or the state does not fit.
        """
        steps = [self._steps(observation) for observation in observations]
        batch: dict[str, Any] = {
            name: self._stacked([[self._frame(o, camera) for o in row] for row in steps])
            for name, camera in self._cameras.items()
        }
        if self._reads_state:
            batch[STATE] = self._stacked([[self._state_of(o) for o in row] for row in steps])
        return {**batch, "task": [o.instruction for o in observations]}

    def to_arm(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert (..., D) actions of the policy to the arm's order and units."""
        return self._action.to_arm(actions)

    def from_arm(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert (..., D) actions of the arm to the policy's order and units."""
        return self._action.from_arm(actions)

    @staticmethod
    def _sources(folder: PolicyFolder) -> list[str]:
        return [folder.renamed.get(name, name) for name in folder.image_sizes()]

    def _steps(self, observation: Observation) -> list[Observation]:
        """Return the S observations that the policy reads, oldest first."""
        row = [*observation.before[-self._history_steps or len(observation.before) :], observation]
        return [row[0]] * (1 + self._history_steps - len(row)) + row

    def _stacked(self, rows: Sequence[Sequence[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(list(row)) if self._history_steps else row[-1] for row in rows])

    def _frame(self, observation: Observation, camera: str) -> Tensor:
        if camera not in observation.images:
            raise ContractError(unknown("camera", camera, observation.images))
        image: Image = observation.images[camera]
        if camera in self._sizes:
            image = resize(image, *self._sizes[camera])
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(torch.float32) / 255

    def _state_of(self, observation: Observation) -> Tensor:
        state = observation.state
        if np.shape(state) != (self._shape,) or not np.isfinite(state).all():
            raise ContractError(f"the state must be {self._shape} finite numbers, got {np.shape(state)}: {state}.")
        return torch.from_numpy(self._state.from_arm(state).astype(np.float32))


class _Numbers:
    """The numbers of a feature: their places in the arm's vector, and the conversion of units."""

    def __init__(self, recipe: LeRobotNumbersRecipe | None, dims: Sequence[Dim]) -> None:
        names = [dim.name for dim in dims]
        self._index = [names.index(name) for name in recipe.names] if recipe else list(range(len(dims)))
        self._scale = np.array(recipe.scale if recipe and recipe.scale else 1.0)
        self._offset = np.array(recipe.offset if recipe and recipe.offset else 0.0)
        self._dims = [dims[k] for k in self._index]

    def from_arm(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values[..., self._index] - self._offset) / self._scale

    def to_arm(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.empty(values.shape)
        result[..., self._index] = values * self._scale + self._offset
        return result

    def strangers(self, what: str, seen: Range | None) -> Iterator[str]:
        """Yield the dimensions whose training data lie far outside of the arm's range."""
        if seen is None or len(seen[0]) != len(self._dims):
            return
        ends = np.sort([self._scale * seen[0] + self._offset, self._scale * seen[1] + self._offset], axis=0)
        for dim, low, high in zip(self._dims, *ends, strict=True):
            room = MARGIN * (dim.high - dim.low)
            if np.isfinite(room) and not dim.low - room <= low <= high <= dim.high + room:
                yield (
                    f"{what} '{dim.name}' went from {low:g} to {high:g} in the training, the arm's goes from "
                    f"{dim.low:g} to {dim.high:g} [{dim.unit}]: is it another unit?"
                )


def require_arm(wanted: Embodiment | None, offered: Embodiment | None, folder: PolicyFolder) -> Embodiment:
    """Return the arm whose observations the policy will get.

    Args:
        wanted: the arm of its training, if it is known.
        offered: the arm that it will control; None for a server.
        folder: the policy.

    Raises:
        ContractError: they differ, or neither is known.
    """
    if wanted is not None and offered is not None and (problems := misfits(wanted, offered)):
        raise ContractError(
            f"the policy of {folder.path} was made for '{wanted.name}' and does not fit '{offered.name}': "
            + "; ".join(problems)
            + "."
        )
    arm = wanted or offered
    if arm is None:
        raise ContractError(
            f"{folder.path} does not say what its numbers mean, and a server must tell its clients. Copy "
            'meta/embodiment.json of its dataset into it, or name that file in a recipe: embodiment = "FILE".'
        )
    return arm


def _bare(name: str) -> str:
    return name.removeprefix(IMAGE).removeprefix("observation.")


def _unused(recipe: LeRobotRecipe, images: Sequence[str]) -> Iterator[str]:
    for name in recipe.cameras:
        if name not in images:
            yield unknown("image of the policy", name, images).rstrip(".")


def _camera_problems(
    folder: PolicyFolder, cameras: Mapping[str, str], arm: Embodiment, may_resize: bool
) -> Iterator[str]:
    sizes = {camera.name: (camera.height, camera.width) for camera in arm.cameras}
    for (name, camera), size in zip(cameras.items(), folder.image_sizes().values(), strict=True):
        if camera not in sizes:
            yield f"{name}: {unknown('camera', camera, sizes)}".rstrip(".")
        elif size != sizes[camera] and not (may_resize or folder.family.resizes):
            seen = f"{sizes[camera][0]} x {sizes[camera][1]}"
            yield (
                f"{name} was {size[0]} x {size[1]} pixels in the training, camera '{camera}' has {seen} "
                "(a recipe with resize = true resizes them)"
            )


def _rate_problems(recipe: LeRobotRecipe, arm: Embodiment) -> Iterator[str]:
    if recipe.rate_hz is not None and recipe.rate_hz != arm.rate_hz:
        yield f"rate: the policy was trained at {recipe.rate_hz:g} Hz, the arm runs at {arm.rate_hz:g} Hz"


def _number_problems(
    what: str, width: int | None, recipe: LeRobotNumbersRecipe | None, dims: Sequence[Dim]
) -> Iterator[str]:
    names = [dim.name for dim in dims]
    if recipe is None:
        if width is not None and width != len(dims):
            yield f"{what}: the policy has {width} numbers, the arm {len(dims)}: {', '.join(names)}"
        return
    if width != len(recipe.names):
        yield f"{what}: the policy has {width or 'no'} numbers, the recipe names {len(recipe.names)}"
    yield from (unknown(f"{what} dimension", name, names).rstrip(".") for name in recipe.names if name not in names)
    if what == "action":
        yield from (f"nothing gives '{name}' of the action" for name in names if name not in recipe.names)


def _name_problems(folder: PolicyFolder, recipe: LeRobotRecipe, arm: Embodiment) -> Iterator[str]:
    """Yield that the names which some folders give to their actions are not the arm's, unless the recipe maps them."""
    named = folder.config.get("action_feature_names")
    if recipe.action is None and named and list(named) != list(arm.action.names):
        yield f"the policy's actions are called {', '.join(map(str, named))}, the arm's {', '.join(arm.action.names)}"
