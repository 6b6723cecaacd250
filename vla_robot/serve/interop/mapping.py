"""Maps observations and actions to another project's names and units, as a recipe's table [peer] says.

Observation --images, state, prompt--> request        answer --chunk--> ActionChunk
   front             "observation/image", 224 px         "actions" * scale + offset -> dx, dy, .., gripper
   x, y, z, ..       "observation/state"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, PolicyError, unknown
from vla_robot.core.geometry import half_space_rotvec, multiply, quat_from_rotvec
from vla_robot.core.image import turned
from vla_robot.core.messages import ActionChunk, Image, Observation, Vector
from vla_robot.recipe.peer import PeerImageRecipe, PeerNumbersRecipe, PeerRecipe

ROTATION = ("rx", "ry", "rz")
"""Dimensions of a state that are the tool's rotation, axis times angle [rad]."""


@dataclass(frozen=True)
class Timeouts:
    """Time limits of a server.

    Attributes:
        connect_s: limit of answers that need no model [s].
        answer_s: limit of the answer to an observation [s].
    """

    connect_s: float = 10.0
    answer_s: float = 10.0


class PeerMapping:
    """Mapping between one server and one arm."""

    def __init__(self, peer: PeerRecipe, arm: Embodiment) -> None:
        """
        Args:
            peer: the server's names and units.
            arm: the arm's embodiment.

        Raises:
            ContractError: the arm lacks a camera, state or action, or has another rate; the message lists them all.
        """
        problems = differences(peer, arm)
        if problems:
            raise ContractError(
                f"the recipe's table [peer] does not fit the world's '{arm.name}': " + "; ".join(problems) + "."
            )
        self._images = peer.images
        self._tool = ToolTurn(peer.tool_turn_deg, arm)
        self._state = [Numbers(entry, [d.name for d in arm.state]) for entry in peer.state]
        self._action = [Numbers(entry, arm.action.names) for entry in peer.action]
        self._dims = len(arm.action)

    @property
    def sent_keys(self) -> tuple[str, ...]:
        """Keys of a request, without the instruction's."""
        return (*(entry.key for entry in self._images), *(numbers.key for numbers in self._state))

    @property
    def action_keys(self) -> tuple[str, ...]:
        """Keys that an answer must have."""
        return tuple(numbers.key for numbers in self._action)

    def images(self, observation: Observation) -> dict[str, NDArray[np.uint8]]:
        """Return the server's key -> (H, W, 3) or (3, H, W) uint8, as the recipe says."""
        return {entry.key: _frame(observation.images[entry.camera], entry) for entry in self._images}

    def state(self, observation: Observation) -> dict[str, Vector]:
        """Return the server's key -> (N,) float64 in its units."""
        state = self._tool.there(observation.state)
        return {numbers.key: numbers.of(state[numbers.index]) for numbers in self._state}

    def chunk(self, answer: Mapping[str, Any], observation: Observation, stages_ms: Mapping[str, float]) -> ActionChunk:
        """Convert an answer to a chunk of the arm's actions.

        Args:
            answer: key -> (T, N) numbers in the server's units; (T,) if N is 1, (N,) for a single action.
            observation: the observation that was sent.
            stages_ms: time of each stage [ms].

        Raises:
            PolicyError: a key is missing, or numbers have another shape or are not finite.
        """
        columns = [numbers.of(_rows_of(answer, numbers.key, len(numbers.index))) for numbers in self._action]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1 or 0 in lengths:
            raise PolicyError(f"the server's answer holds {' and '.join(map(str, sorted(lengths)))} actions.")
        actions = np.empty((lengths.pop(), self._dims))
        for numbers, column in zip(self._action, columns, strict=True):
            actions[:, numbers.index] = column
        if not np.isfinite(actions).all():
            raise PolicyError("the server sent an action that is not finite.")
        return ActionChunk(actions, observation.stamp_ns, observation.step, stages_ms)


class Numbers:
    """One key's numbers: their indices in our vector, and the linear map between the units."""

    def __init__(self, entry: PeerNumbersRecipe, ours: Sequence[str]) -> None:
        self.key = entry.key
        self.index = [ours.index(name) for name in entry.names]
        self._scale = np.array(entry.scale or 1.0)
        self._offset = np.array(entry.offset or 0.0)

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply scale and offset to (..., N): the arm's state to the server's, or the server's action to the arm's."""
        return values * self._scale + self._offset

    def back(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Invert `of`."""
        return (values - self._offset) / self._scale


class ToolTurn:
    """Two frames of one tool; the second is rotated about the tool's z axis."""

    def __init__(self, turn_deg: float, arm: Embodiment) -> None:
        """
        Args:
            turn_deg: rotation of the second frame against the first [deg].
            arm: its state contains rx, ry, rz, unless the rotation is 0.
        """
        self._turn_rad = np.deg2rad(turn_deg)
        self._index = [k for k, dim in enumerate(arm.state) if dim.name in ROTATION]

    def there(self, state: Vector) -> Vector:
        """Convert a (S,) state from the first frame to the second."""
        return self._turned(state, self._turn_rad)

    def back(self, state: Vector) -> Vector:
        """Invert `there`."""
        return self._turned(state, -self._turn_rad)

    def _turned(self, state: Vector, angle_rad: float) -> Vector:
        if angle_rad == 0:
            return state
        result = state.copy()
        result[self._index] = turned_about_z(state[self._index], angle_rad)
        return result


def turned_about_z(rotvec: Vector, angle_rad: float) -> Vector:
    """Rotate a (3,) axis times angle [rad] about the body's own z; the axis' largest component is positive.

    This is the form of rotations in our worlds, and in robosuite while the tool points down.
    """
    return half_space_rotvec(multiply(quat_from_rotvec(rotvec), quat_from_rotvec(np.array([0.0, 0.0, angle_rad]))))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn keys with a dot into maps in maps, two levels deep.

    >>> nested({"images.cam_high": 1, "language.annotation.human.task": 2, "state": 3})
    {'images': {'cam_high': 1}, 'language': {'annotation.human.task': 2}, 'state': 3}
    """
    result: dict[str, Any] = {}
    for key, value in flat.items():
        outer, dot, inner = key.partition(".")
        if dot:
            result.setdefault(outer, {})[inner] = value
        else:
            result[key] = value
    return result


def resize_with_pad(image: Image, edge_px: int) -> Image:
    """Resize an image (bilinear) to fit into a black square, with its proportions kept.

    Args:
        image: (H, W, 3) uint8.
        edge_px: edge of the square [px].

    Returns:
        (edge_px, edge_px, 3) uint8.

    Source: openpi @15a9616, packages/openpi-client/src/openpi_client/image_tools.py, to the bit.
    """
    import PIL.Image

    height, width = image.shape[:2]
    if height == width == edge_px:
        return image
    ratio = max(height, width) / edge_px
    size = max(int(width / ratio), 1), max(int(height / ratio), 1)
    small = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR))
    top, left = (edge_px - size[1]) // 2, (edge_px - size[0]) // 2
    square = np.zeros((edge_px, edge_px, 3), np.uint8)
    square[top : top + size[1], left : left + size[0]] = small
    return square


def _frame(image: Image, entry: PeerImageRecipe) -> NDArray[np.uint8]:
    shown = turned(image, entry.turn_deg, entry.mirror)
    fitted = shown if entry.size_px is None else resize_with_pad(shown, entry.size_px)
    return fitted.transpose(2, 0, 1) if entry.channels == "first" else fitted


def _rows_of(answer: Mapping[str, Any], key: str, width: int) -> NDArray[np.float64]:
    """Return a key's (T, width) float64."""
    if key not in answer:
        named = [str(name)[:40] for name in answer]
        raise PolicyError(f"the server's answer has no '{key}'. {unknown('key', key, named)}")
    array = answer[key]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise PolicyError(f"'{key}' of the server's answer is not an array of numbers.")
    rows = array[:, None] if array.ndim == 1 and width == 1 else np.atleast_2d(array)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise PolicyError(
            f"'{key}' of the server's answer has shape {list(array.shape)}, but the recipe names {width} numbers for "
            "each action."
        )
    return rows.astype(np.float64)


def differences(peer: PeerRecipe, arm: Embodiment) -> list[str]:
    """Return the differences between a recipe's [peer] and an arm, one phrase each."""
    problems: list[str] = []
    if peer.rate_hz != arm.rate_hz:
        problems.append(f"rate: the server's actions are for {peer.rate_hz:g} Hz, the world runs at {arm.rate_hz:g} Hz")
    cameras = [camera.name for camera in arm.cameras]
    problems += [unknown("camera", e.camera, cameras).rstrip(".") for e in peer.images if e.camera not in cameras]
    if peer.tool_turn_deg and not set(ROTATION) <= {d.name for d in arm.state}:
        problems.append("tool_turn_deg turns rx, ry and rz, and the arm's state has none")
    problems += _unknown_names("state", peer.state, [d.name for d in arm.state])
    problems += _unknown_names("action dimension", peer.action, arm.action.names)
    given = {name for entry in peer.action for name in entry.names}
    problems += [f"nothing gives '{name}' of the action" for name in arm.action.names if name not in given]
    return problems


def _unknown_names(what: str, entries: Sequence[PeerNumbersRecipe], ours: Sequence[str]) -> list[str]:
    named = (name for entry in entries for name in entry.names)
    return [unknown(what, name, ours).rstrip(".") for name in named if name not in ours]
