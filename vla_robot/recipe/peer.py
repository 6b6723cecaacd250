"""PeerRecipe: keys and units of another project's policy server, and of a policy that lerobot trained.

openpi's and GR00T's servers report little or nothing about the robot that they were trained on. The recipe defines the
meaning of an answer's numbers, so that it can be compared with the arm before anything moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError


@dataclass(frozen=True)
class PeerImageRecipe:
    """One frame of a request.

    Attributes:
        key: the server's key, e.g. "observation/image"; "images.cam_high" is an entry of a map.
        camera: the world's camera.
        size_px: edge of the square into which it is fitted with black bars [px]; without it, frames are sent unchanged.
        channels: "last" for (H, W, 3), "first" for (3, H, W).
        turn_deg: rotation of the frame, clockwise [degrees].
        mirror: exchange left and right of the frame, after the turn. LIBERO's policies were trained on such frames.
    """

    key: str
    camera: str
    size_px: int | None = None
    channels: Literal["last", "first"] = "last"
    turn_deg: Literal[0, 90, 180, 270] = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.size_px is not None and not 16 <= self.size_px <= 1024:
            raise RecipeError(f"'{self.key}': size_px {self.size_px} is outside 16 to 1024")

    @property
    def preparation(self) -> str:
        """What becomes of the camera's frame, in words."""
        done = [f"turned by {self.turn_deg} degrees"] * bool(self.turn_deg) + ["mirrored"] * self.mirror
        done += [f"fitted into {self.size_px} px with black bars"] if self.size_px else []
        return ", ".join(done) or "as the world shows it"


MAX_FACTOR = 1e6
"""Largest factor between two units of an arm."""


@dataclass(frozen=True)
class PeerNumbersRecipe:
    """One key's numbers and their conversion: `to = from * scale + offset`.

    Attributes:
        key: the server's key, e.g. "observation/state" or "actions".
        names: the arm's dimensions, in the server's order.
        scale: one for each dimension; 1 by default.
        offset: one for each dimension; 0 by default.
    """

    key: str
    names: tuple[str, ...]
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_linear(f"'{self.key}'", self.names, self.scale, self.offset)


@dataclass(frozen=True)
class LeRobotNumbersRecipe:
    """The numbers of one feature and their conversion: `arm = policy * scale + offset`.

    Attributes:
        names: the arm's dimensions, in the policy's order.
        scale: one for each dimension; 1 by default. From degrees to radians: 0.017453292519943295.
        offset: one for each dimension; 0 by default.
    """

    names: tuple[str, ...]
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise RecipeError(f"names holds a dimension twice: {', '.join(self.names)}")
        require_linear("it", self.names, self.scale, self.offset)


@dataclass(frozen=True)
class PeerRecipe:
    """Mapping between a world and another project's policy server.

    Attributes:
        rate_hz: control rate of the server's actions, which must be the world's.
        images: the frames of a request.
        action: the answer's numbers, with each dimension of the arm once. `from` is the server's number.
        state: the numbers of a request. `from` is the arm's number.
        tool_turn_deg: rotation of the server's tool about its own z against the arm's [degrees]; it changes rx, ry and
            rz of the state. Use 90 if the server's tool is robosuite's hand: ours is its grip site.
        prompt: the server's key of the instruction.
        rows: the former place of the policy's own key `rows`, read for one more release.
        answer_timeout_s: time limit of an answer. A server that compiles its model at the first one takes longer.
        token: a file whose one line is the server's token, relative to this recipe; openpi sends it as an API key.
    """

    rate_hz: float
    images: tuple[PeerImageRecipe, ...]
    action: tuple[PeerNumbersRecipe, ...]
    state: tuple[PeerNumbersRecipe, ...] = field(default_factory=tuple[PeerNumbersRecipe, ...])
    tool_turn_deg: float = 0.0
    prompt: str = "prompt"
    rows: int | None = None
    answer_timeout_s: float = 10.0
    token: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rate_hz <= 100:
            raise RecipeError(f"rate_hz {self.rate_hz:g} is outside 1 to 100")
        if not -180 <= self.tool_turn_deg <= 180:
            raise RecipeError(f"tool_turn_deg {self.tool_turn_deg:g} is outside -180 to 180")
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"rows must be at least 1, got {self.rows}")
        if not 0 < self.answer_timeout_s <= 600:
            raise RecipeError(f"answer_timeout_s {self.answer_timeout_s:g} is outside 0 to 600")
        if not self.images or not self.action:
            raise RecipeError("images and action need at least one entry each")
        sent = [*(entry.key for entry in (*self.images, *self.state)), self.prompt]
        _refuse_repeats("key", sent)
        _refuse_repeats("key", [*{key.partition(".")[0] for key in sent if "." in key}, *sent])
        _refuse_repeats("key", (entry.key for entry in self.action))
        _refuse_repeats("action dimension", (name for entry in self.action for name in entry.names))


@dataclass(frozen=True, kw_only=True)
class GrootPeerRecipe(PeerRecipe):
    """Mapping between a world and a server of GR00T.

    Attributes:
        generation: "n1.5" takes flat keys; "n1.6" maps, and arrays as NumPy files; "n1.7" maps, and arrays as
            msgpack-numpy writes them. Older checkouts of N1.7 read "n1.6" only.
    """

    generation: Literal["n1.5", "n1.6", "n1.7"]


def require_linear(what: str, names: Sequence[str], scale: Sequence[float], offset: Sequence[float]) -> None:
    """Raise RecipeError unless there are names, and scale and offset are absent or one usable number for each name."""
    if not names:
        raise RecipeError(f"{what} has no names")
    for name, values in (("scale", scale), ("offset", offset)):
        if values and len(values) != len(names):
            raise RecipeError(f"{what} has {len(names)} names and {len(values)} numbers of {name}")
    if 0 in scale:
        raise RecipeError(f"{what} has a scale of 0, which loses the number")
    for value in (*scale, *offset):
        if not (abs(value) <= MAX_FACTOR and (value == 0 or abs(value) >= 1 / MAX_FACTOR)):
            raise RecipeError(
                f"{what} has a scale or offset of {value:g}; its size must be 0 or lie between "
                f"{1 / MAX_FACTOR:g} and {MAX_FACTOR:g}"
            )


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise RecipeError(f"{what} {', '.join(twice)} is there more than once")
