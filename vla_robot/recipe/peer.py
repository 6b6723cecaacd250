"""PeerRecipe: what a policy server of another project calls things, and in which units.

openpi's and GR00T's servers say little or nothing about the robot that they were trained on. What an answer's numbers
mean stands here, so that it can be read, compared with the arm and refused before anything moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError


@dataclass(frozen=True)
class PeerImageRecipe:
    """One frame that is sent.

    Attributes:
        key: what the server calls it, e.g. "observation/image"; "images.cam_high" is an entry of a map.
        camera: the world's camera.
        size_px: edge of a square into which it is fitted, with black beside it; without it, frames go as they are.
        channels: "last" for (H, W, 3), "first" for (3, H, W).
    """

    key: str
    camera: str
    size_px: int | None = None
    channels: Literal["last", "first"] = "last"

    def __post_init__(self) -> None:
        if self.size_px is not None and not 16 <= self.size_px <= 1024:
            raise RecipeError(f"'{self.key}': size_px {self.size_px} is outside 16 to 1024")


MAX_FACTOR = 1e6
"""Of a number that is converted; no unit of an arm is further from another."""


@dataclass(frozen=True)
class PeerNumbersRecipe:
    """One row of numbers, and what each is to the arm: `to = from * scale + offset`.

    Attributes:
        key: what the server calls it, e.g. "observation/state" or "actions".
        names: the arm's dimensions, in the server's order.
        scale: one for each; 1 where it is left out.
        offset: one for each; 0 where it is left out.
    """

    key: str
    names: tuple[str, ...]
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise RecipeError(f"'{self.key}' has no names")
        for name, values in (("scale", self.scale), ("offset", self.offset)):
            if values and len(values) != len(self.names):
                raise RecipeError(f"'{self.key}' has {len(self.names)} names and {len(values)} numbers of {name}")
        if 0 in self.scale:
            raise RecipeError(f"'{self.key}' has a scale of 0, which says nothing")
        for value in (*self.scale, *self.offset):
            if not (abs(value) <= MAX_FACTOR and (value == 0 or abs(value) >= 1 / MAX_FACTOR)):
                raise RecipeError(
                    f"'{self.key}' has a scale or offset of {value:g}; its size must be 0 or lie between "
                    f"{1 / MAX_FACTOR:g} and {MAX_FACTOR:g}"
                )


@dataclass(frozen=True)
class PeerRecipe:
    """The words between a world and another project's policy server.

    Attributes:
        rate_hz: control steps per second that the server's actions are meant for; the world must run at it.
        images: the frames that are sent.
        action: where the answer's numbers go; each dimension of the arm once. Here `from` is the server's number.
        state: the numbers that are sent. Here `from` is the arm's number.
        tool_turn_deg: how far the server's tool is turned about its own z, against the arm's [degrees]; it changes rx,
            ry and rz of the state. 90 where robosuite's hand is meant: ours is its grip site.
        prompt: what the server calls the instruction.
        rows: actions of an answer that are used before the next is asked for; without it, all.
        answer_timeout_s: how long an answer may take. A server that compiles its model at the first one takes longer.
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
    """The words between a world and a server of GR00T.

    Attributes:
        generation: "n1.5" takes flat keys; "n1.6" maps, and arrays as NumPy files; "n1.7" maps, and arrays as
            msgpack-numpy writes them. Older checkouts of N1.7 read "n1.6" only.
    """

    generation: Literal["n1.5", "n1.6", "n1.7"]


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise RecipeError(f"{what} {', '.join(twice)} stands there more than once")
