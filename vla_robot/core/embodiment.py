"""The embodiment contract: what an arm's actions, state and cameras mean.

It is data: written in the recipe, sent in the handshake, and stored in every episode and checkpoint, so that a policy
made for one arm is refused by another instead of moving it wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.untrusted import malformed

GRIPPER_OPEN = 1.0
GRIPPER_CLOSED = 0.0
"""Convention of Open-X-Embodiment: a gripper's action dimension is 1 for open and 0 for closed."""

GRIP_UNIT = "1"
"""Unit of a gripper's opening; no other dimension of an action has it."""


ActionKind = Literal["eef_delta", "joint_position"]
ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 1e5
"""Allowed control rates in a file or message [Hz]."""


@dataclass(frozen=True)
class Dim:
    """One dimension of an action or a state.

    Attributes:
        name: e.g. "dx" or "joint_1".
        unit: "m", "rad", "m/s", "rad/s" or "1" (a pure number, such as a gripper's opening).
        low: smallest allowed value, in the unit.
        high: largest allowed value, in the unit.
    """

    name: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class ActionSpace:
    """Meaning of the numbers of an action.

    Attributes:
        kind: "eef_delta" moves the tool relative to its pose, "joint_position" gives absolute joint angles.
        frame: coordinate frame of the tool motion ("base"), or "joint".
        dims: one entry per dimension, in order. A gripper has the unit "1", 1 = open, 0 = closed; the gripper of a
            single arm is last, and a pair of arms has the first one's before the joints of the second.
    """

    kind: ActionKind
    frame: str
    dims: tuple[Dim, ...]

    @property
    def low(self) -> Vector:
        return np.array([d.low for d in self.dims])

    @property
    def high(self) -> Vector:
        return np.array([d.high for d in self.dims])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dims)

    @property
    def is_grip(self) -> NDArray[np.bool_]:
        """(D,) whether each dimension is the opening of a gripper."""
        return np.array([d.unit == GRIP_UNIT for d in self.dims], dtype=np.bool_)

    @property
    def is_step(self) -> NDArray[np.bool_]:
        """(D,) whether each number is a motion from the present position; the others are positions."""
        return ~self.is_grip if self.kind == "eef_delta" else np.zeros(len(self), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.dims)


@dataclass(frozen=True)
class CameraSpec:
    """One camera of an embodiment.

    Attributes:
        name: role for the policy, e.g. "front" or "wrist".
        height: frame height [px].
        width: frame width [px].
    """

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Embodiment:
    """Contract of one robot and its cameras.

    Attributes:
        name: e.g. "panda".
        action: meaning of an action.
        state: meaning of `Observation.state`.
        cameras: cameras in `Observation.images`.
        rate_hz: control steps per second.
    """

    name: str
    action: ActionSpace
    state: tuple[Dim, ...]
    cameras: tuple[CameraSpec, ...]
    rate_hz: float

    def check(self, observation: Observation) -> None:
        """Raise ContractError unless the observation has exactly these cameras and this state."""
        expected = {c.name: (c.height, c.width, 3) for c in self.cameras}
        seen = {name: image.shape for name, image in observation.images.items()}
        if seen != expected:
            raise ContractError(f"cameras are {seen}, but the embodiment '{self.name}' has {expected}.")
        for name, image in observation.images.items():
            if image.dtype != np.uint8:
                raise ContractError(f"camera '{name}' gave {image.dtype}, expected uint8 RGB.")
        self.check_state(observation)

    def check_state(self, observation: Observation) -> None:
        """Raise ContractError unless the observation has exactly this state."""
        if observation.state.shape != (len(self.state),):
            raise ContractError(
                f"state has shape {observation.state.shape}, but '{self.name}' has {len(self.state)} dimensions."
            )

    def with_cameras(self, cameras: Sequence[str]) -> Embodiment:
        """Return the embodiment with these cameras alone, in this order.

        Raises:
            ContractError: it has no camera of such a name, or a name comes twice.
        """
        if len(set(cameras)) < len(cameras):
            raise ContractError(f"cameras are {', '.join(cameras)}; give each once.")
        own = {camera.name: camera for camera in self.cameras}
        for name in cameras:
            if name not in own:
                raise ContractError(unknown("camera", name, own))
        return dataclasses.replace(self, cameras=tuple(own[name] for name in cameras))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, ready for JSON or msgpack."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Embodiment:
        """Make an embodiment from `to_dict`'s data. Raises ContractError if a field is missing or of the wrong type."""
        with malformed("not an embodiment", ContractError):
            action = data["action"]
            if action["kind"] not in ACTION_KINDS:
                raise ContractError(
                    f"not an embodiment: {unknown('kind of action', str(action['kind']), ACTION_KINDS)}"
                )
            return cls(
                name=str(data["name"]),
                action=ActionSpace(
                    kind=action["kind"], frame=str(action["frame"]), dims=tuple(_dim(d) for d in action["dims"])
                ),
                state=tuple(_dim(d) for d in data["state"]),
                cameras=tuple(
                    CameraSpec(name=str(c["name"]), height=int(c["height"]), width=int(c["width"]))
                    for c in data["cameras"]
                ),
                rate_hz=_rate_hz(data["rate_hz"]),
            )


def _dim(data: Mapping[str, Any]) -> Dim:
    return Dim(name=str(data["name"]), unit=str(data["unit"]), low=float(data["low"]), high=float(data["high"]))


def _rate_hz(value: Any) -> float:
    rate_hz = float(value)
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise ContractError(f"not an embodiment: rate_hz {rate_hz:g} is outside {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}.")
    return rate_hz


def require_fit(wanted: Embodiment, offered: Embodiment) -> None:
    """Raise ContractError with every difference unless a policy made for `wanted` may control `offered`."""
    if problems := misfits(wanted, offered):
        raise ContractError(
            f"the policy was made for '{wanted.name}' and does not fit the world's '{offered.name}': "
            + "; ".join(problems)
            + ". Choose another policy (`vla list policies`) or fine-tune this one on data of that world."
        )


def misfits(wanted: Embodiment, offered: Embodiment, who: str = "the world") -> list[str]:
    """Return why a policy made for `wanted` does not fit `offered`, one entry per field; empty if it fits.

    Action names, units, kind, frame and rate must be equal; cameras and state that the policy uses must exist with

    Args:
        wanted: embodiment of the policy.
        offered: embodiment of the other side.
        who: name of the other side, for the messages.
    """
    problems: list[str] = []
    for field in ("kind", "frame"):
        ours, theirs = getattr(wanted.action, field), getattr(offered.action, field)
        if ours != theirs:
            problems.append(f"action {field}: the policy gives '{ours}', {who} takes '{theirs}'")
    ours = [(d.name, d.unit) for d in wanted.action.dims]
    theirs = [(d.name, d.unit) for d in offered.action.dims]
    if ours != theirs:
        problems.append(f"action dimensions: the policy gives {_dims(ours)}, {who} takes {_dims(theirs)}")
    if wanted.rate_hz != offered.rate_hz:
        problems.append(f"rate: the policy was trained at {wanted.rate_hz:g} Hz, {who} runs at {offered.rate_hz:g} Hz")
    problems += _camera_problems(wanted, offered)
    offered_state = {d.name: d.unit for d in offered.state}
    for dim in wanted.state:
        if offered_state.get(dim.name) != dim.unit:
            problems.append(unknown(f"state [{dim.unit}]", dim.name, offered_state))
    return problems


def differences(before: Embodiment, now: Embodiment) -> list[str]:
    """Return all changes, one entry per number or name; empty if both are equal."""
    old, new = _flat(before.to_dict()), _flat(now.to_dict())
    return [
        f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]


def contract_differences(there: Embodiment, here: Embodiment) -> list[str]:
    """Return every field that differs; empty if the same policy and the same dataset serve both.

    The limits of the state may differ, since they are estimates by which nothing is scaled: tasks of one suite put the
    same arm in other places.
    """
    theirs, ours = _contract(there), _contract(here)
    return [f"{name} is {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]


def _contract(embodiment: Embodiment) -> dict[str, Any]:
    return {**embodiment.to_dict(), "state": [f"{dim.name} [{dim.unit}]" for dim in embodiment.state]}


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    """Flatten nested plain data to paths; entries of lists are named by their "name" or their index."""
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [(_named(entry, place), entry) for place, entry in enumerate(cast(Sequence[Any], value))]
    else:
        return {at: value}
    flat: dict[str, Any] = {}
    for key, entry in items:
        flat |= _flat(entry, f"{at}.{key}".lstrip("."))
    return flat


def _named(entry: Any, place: int) -> str:
    return str(cast(Mapping[str, Any], entry)["name"]) if isinstance(entry, Mapping) else str(place)


def _camera_problems(wanted: Embodiment, offered: Embodiment) -> list[str]:
    sizes = {c.name: (c.height, c.width) for c in offered.cameras}
    problems: list[str] = []
    for camera in wanted.cameras:
        if camera.name not in sizes:
            problems.append(unknown("camera", camera.name, sizes).rstrip("."))
    return problems


def _dims(dims: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} [{unit}]" for name, unit in dims)
