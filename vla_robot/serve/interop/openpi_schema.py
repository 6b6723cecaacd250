"""Requests and answers of openpi's clients, with the keys of openpi's examples or of a recipe.

    request, a map --read--> Observation --the policy--> ActionChunk --write--> a map

A recipe's table [peer] is the one that would control our arm with the client's own server, read in reverse.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, TransportError, unknown
from vla_robot.core.image import check_image, turned_back
from vla_robot.core.messages import ActionChunk, Image, Observation, Vector
from vla_robot.recipe.peer import PeerImageRecipe, PeerRecipe
from vla_robot.serve.interop.mapping import ROTATION, Numbers, ToolTurn, differences


class Words(Protocol):
    """Converts a client's requests and the policy's chunks."""

    def describe(self) -> dict[str, Any]:
        """Return the metadata for a new client; the protocol prescribes none."""
        ...

    def read(self, request: Mapping[str, Any]) -> Observation:
        """
        Raises:
            TransportError: an entry is missing, or of the wrong type.
            ContractError: an image has another shape or type.
        """
        ...

    def write(self, chunk: ActionChunk) -> dict[str, NDArray[np.float64]]:
        """Return the client's key -> (T, N)."""
        ...


@dataclass(frozen=True)
class Family:
    """Keys of one family of openpi's robots.

    Attributes:
        images: the scene camera, then the wrist cameras; "images.cam_high" is an entry of a map.
        state: keys of the parts of the state, in order.
    """

    images: tuple[str, ...]
    state: tuple[str, ...]


LIBERO = Family(("observation/image", "observation/wrist_image"), ("observation/state",))
DROID = Family(
    ("observation/exterior_image_1_left", "observation/wrist_image_left"),
    ("observation/joint_position", "observation/gripper_position"),
)
ALOHA = Family(("images.cam_high", "images.cam_left_wrist", "images.cam_right_wrist", "images.cam_low"), ("state",))
UR5 = Family(("base_rgb", "wrist_rgb"), ("joints", "gripper"))
JOINTS = ("observation/joint_position", "joints")
GRIPPERS = ("observation/gripper_position", "gripper")
"""Parts of a state with a known meaning; the others are taken for the policy's own numbers."""

FAMILIES = (LIBERO, DROID, ALOHA, UR5)
PROMPT = "prompt"


class ExampleWords:
    """Keys of any of openpi's examples, recognised by the images' keys; numbers have the policy's own meaning."""

    def __init__(self, cameras: Sequence[str], embodiment: Embodiment | None, mirror: bool = False) -> None:
        """
        Args:
            cameras: the policy's cameras, in its order; empty for a published checkpoint, which names none and has one.
            embodiment: the policy's embodiment, which clients are told; None if unknown.
            mirror: whether the policy's recipe mirrors frames. LIBERO's clients send mirrored ones already.
        """
        self._mirror = mirror
        self._cameras = cameras or ("image",)
        self._embodiment = embodiment

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"cameras": list(self._cameras)}
        if self._embodiment is not None:
            told["rate_hz"] = self._embodiment.rate_hz
            told["action"] = [{"name": d.name, "unit": d.unit} for d in self._embodiment.action.dims]
            told["state"] = [{"name": d.name, "unit": d.unit} for d in self._embodiment.state]
        return told

    def read(self, request: Mapping[str, Any]) -> Observation:
        flat = _flat(request)
        family = self._family(flat)
        if len(family.images) < len(self._cameras):
            raise TransportError(
                f"the policy has {len(self._cameras)} cameras, and this kind of robot only {len(family.images)}. Send "
                f"them by their own names: {', '.join(self._cameras)}."
            )
        mirror = self._mirror and family is LIBERO
        images = {
            camera: turned_back(_image(flat, key, camera), 0, mirror)
            for key, camera in zip(family.images, self._cameras, strict=False)
        }
        parts = {key: _numbers(flat, key) for key in family.state if key in flat}
        self._require_meant(parts)
        return _observation(images, np.concatenate([*parts.values(), np.zeros(0)]), flat, PROMPT)

    def write(self, chunk: ActionChunk) -> dict[str, NDArray[np.float64]]:
        return {"actions": chunk.actions}

    def _require_meant(self, parts: Mapping[str, Vector]) -> None:
        """Raise TransportError for numbers of another meaning than the policy's state: six joints and a gripper
        are as many numbers as a position, a rotation and a gripper."""
        if self._embodiment is None or not parts:
            return
        dims = list(self._embodiment.state)
        problem = "" if sum(map(len, parts.values())) == len(dims) else f"{sum(map(len, parts.values()))} numbers"
        rest = iter(dims)
        for key, numbers in parts.items():
            meant = list(itertools.islice(rest, len(numbers)))
            if key in JOINTS and not all(dim.unit == "rad" and dim.name not in ROTATION for dim in meant):
                problem = f"{len(numbers)} joints as '{key}'"
            elif key in GRIPPERS and not all("gripper" in dim.name for dim in meant):
                problem = f"a gripper as '{key}'"
            if problem:
                ours = ", ".join(f"{dim.name} [{dim.unit}]" for dim in dims) or "no numbers at all"
                raise TransportError(
                    f"the client sends {problem}, and the policy's state is {ours}. Send those as "
                    f"'{'state' if key in (*JOINTS, *GRIPPERS) else key}', with the images by the policy's own names "
                    f"({', '.join(self._cameras)}); or say with --openpi-words RECIPE how the client's numbers become "
                    "the policy's."
                )

    def _family(self, flat: Mapping[str, Any]) -> Family:
        families = (Family(tuple(self._cameras), ("state",)), *FAMILIES)
        for family in families:
            if any(key in flat for key in family.images):
                return family
        expected = [family.images[0] for family in families]
        came = sorted(key for key in flat if key != PROMPT)
        raise TransportError(f"there is no image. {unknown('key', came[0] if came else '', expected)}")


class RecipeWords:
    """Keys and units of one recipe."""

    def __init__(self, peer: PeerRecipe, embodiment: Embodiment) -> None:
        """
        Raises:
            ContractError: the policy was trained with another camera, state, action or rate than the recipe names.
        """
        cameras, state = [c.name for c in embodiment.cameras], [d.name for d in embodiment.state]
        seen, felt = {e.camera for e in peer.images}, {name for e in peer.state for name in e.names}
        problems = differences(peer, embodiment)
        problems += [f"nothing is sent as camera '{camera}'" for camera in cameras if camera not in seen]
        problems += [f"nothing is sent as state '{name}'" for name in state if name not in felt]
        if problems:
            raise ContractError(f"the recipe's table [peer] does not fit the policy: {'; '.join(problems)}.")
        self._peer = peer
        self._dims = len(state)
        self._tool = ToolTurn(peer.tool_turn_deg, embodiment)
        self._state = [Numbers(entry, state) for entry in peer.state]
        self._action = [Numbers(entry, embodiment.action.names) for entry in peer.action]

    def describe(self) -> dict[str, Any]:
        return {"images": [e.key for e in self._peer.images], "rate_hz": self._peer.rate_hz}

    def read(self, request: Mapping[str, Any]) -> Observation:
        flat = _flat(request)
        images = {entry.camera: _upright(flat, entry) for entry in self._peer.images}
        state = np.empty(self._dims)
        for numbers in self._state:
            theirs = _numbers(flat, numbers.key)
            if theirs.shape != (len(numbers.index),):
                raise TransportError(f"'{numbers.key}' must be {len(numbers.index)} numbers, got {len(theirs)}.")
            state[numbers.index] = numbers.back(theirs)
        return _observation(images, self._tool.back(state), flat, self._peer.prompt)

    def write(self, chunk: ActionChunk) -> dict[str, NDArray[np.float64]]:
        return {numbers.key: numbers.back(chunk.actions[:, numbers.index]) for numbers in self._action}


def _upright(flat: Mapping[str, Any], entry: PeerImageRecipe) -> Image:
    """Return a client's frame as our worlds show it: the recipe's turn is undone."""
    return turned_back(_image(flat, entry.key, entry.camera), entry.turn_deg, entry.mirror)


def _observation(images: Mapping[str, Image], state: Vector, flat: Mapping[str, Any], prompt: str) -> Observation:
    instruction = flat.get(prompt)
    if not isinstance(instruction, str):
        raise TransportError(f"'{prompt}' is missing or is not text; it is the instruction.")
    return Observation(images, state, instruction, stamp_ns=time.monotonic_ns(), step=0)


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten {"images": {"cam_high": x}} to {"images.cam_high": x}, one level deep."""
    flat: dict[str, Any] = {}
    for key, value in request.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{key}.{name}" if name else str(key): below for name, below in inner}
    return flat


def _image(flat: Mapping[str, Any], key: str, camera: str) -> Image:
    """Return (H, W, 3) uint8 from any of the protocol's four forms."""
    if key not in flat:
        raise TransportError(f"the policy needs camera '{camera}', but there is no '{key}'.")
    value = flat[key]
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        raise ContractError(f"'{key}' must be an image of shape (H, W, 3) or (3, H, W).")
    image = value.transpose(1, 2, 0) if value.shape[0] == 3 and value.shape[2] != 3 else value
    if image.dtype.kind == "f":
        if not ((image >= 0) & (image <= 1)).all():
            raise ContractError(f"'{key}' is an image of {image.dtype}, whose values must be from 0 to 1.")
        image = (255 * image).astype(np.uint8)
    check_image(image, f"'{key}'")
    return np.ascontiguousarray(image)


def _numbers(flat: Mapping[str, Any], key: str) -> Vector:
    if key not in flat:
        raise TransportError(f"'{key}' is missing.")
    value = flat[key]
    if isinstance(value, int | float):
        value = np.array([value])
    if not isinstance(value, np.ndarray) or value.ndim > 1 or value.dtype.kind not in "fiu":
        raise TransportError(f"'{key}' must be a row of numbers.")
    numbers: NDArray[np.float64] = np.atleast_1d(value).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise TransportError(f"'{key}' holds a number that is not finite.")
    return numbers
