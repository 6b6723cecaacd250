"""Parts of a world's recipe: cameras, success test, random places of objects, variants of the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.language.placeholders import TARGET, placeholders


@dataclass(frozen=True)
class CameraRecipe:
    """One camera, by the world's name for it or by a pose.

    Attributes:
        name: role for the policy, e.g. "front" or "wrist".
        source: name of the world's camera, e.g. "robot0_eye_in_hand"; without it, pos and target place a camera.
        pos: position of the placed camera in the world frame [m].
        target: point that the placed camera looks at, in the world frame [m].
        fovy_deg: vertical field of view of the placed camera [degrees].
        height: frame height [px].
        width: frame width [px].
        turn_deg: rotation of a simulated camera's picture, clockwise [degrees]; height and width are the result's.
        mirror: exchange left and right of a simulated camera's picture, after the turn.
        rate_hz: frames per second of a simulated camera that is slower than the control; a real one has its own.
    """

    name: str
    source: str | None = None
    pos: tuple[float, float, float] | None = None
    target: tuple[float, float, float] | None = None
    fovy_deg: float = 45.0
    height: int = 224
    width: int = 224
    turn_deg: Literal[0, 90, 180, 270] = 0
    mirror: bool = False
    rate_hz: float | None = None

    def __post_init__(self) -> None:
        placed = self.pos is not None and self.target is not None
        if placed == (self.source is not None):
            raise RecipeError(f"camera '{self.name}' needs either source, or pos and target")
        if not (16 <= self.height <= 480 and 16 <= self.width <= 640):
            raise RecipeError(f"camera '{self.name}' is {self.width}x{self.height}, allowed are 16x16 to 640x480")
        if not 1 <= self.fovy_deg <= 120:
            raise RecipeError(f"camera '{self.name}' has fovy_deg {self.fovy_deg:g}, allowed is 1 to 120")


@dataclass(frozen=True)
class SuccessRecipe:
    """A success test by name, for worlds without one of their own.

    Attributes:
        test: name of the test; see vla_robot/world/sim/success.py.
        body: the tested object.
        other: the second object, for every test but "lifted".
        threshold: distance or height of the test [m].
    """

    test: Literal["lifted", "near", "on_top", "inside"]
    body: str
    other: str | None = None
    threshold: float = 0.04

    def __post_init__(self) -> None:
        if (self.other is None) != (self.test == "lifted"):
            needed = "takes no" if self.other else "needs an"
            raise RecipeError(f"success test '{self.test}' {needed} object 'other'")


@dataclass(frozen=True)
class PlacementRecipe:
    """Uniformly random pose of an object at the start of an episode; its height is the scene's.

    Attributes:
        body: a body of the scene with a free joint.
        x: smallest and largest x in the world frame [m].
        y: smallest and largest y in the world frame [m].
        yaw_deg: smallest and largest rotation about the vertical [degrees].
    """

    body: str
    x: tuple[float, float]
    y: tuple[float, float]
    yaw_deg: tuple[float, float] = (-180.0, 180.0)

    def __post_init__(self) -> None:
        for name in ("x", "y", "yaw_deg"):
            low, high = getattr(self, name)
            if low > high:
                raise RecipeError(f"placement of '{self.body}' has {name} from {low:g} down to {high:g}")


@dataclass(frozen=True)
class LanguageRecipe:
    """Variants of the instruction, for `vla eval --language`.

    Attributes:
        paraphrases: the instruction in other words, with {target} where the instruction has it.
        targets: values of {target}; with them an instruction can name a wrong object.
        synonyms: value of {target} -> other words for it, for paraphrases that do not even name the object by its word.
        neutral: sentence used for "no instruction", since a policy refuses an empty one.
    """

    paraphrases: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    neutral: str = "do something"

    def __post_init__(self) -> None:
        if len(set(self.targets)) != len(self.targets) or len(self.targets) == 1:
            raise RecipeError(f"language.targets must be different words, two or more, not {list(self.targets)}")
        if not self.neutral.strip():
            raise RecipeError("language.neutral is empty, which policies refuse; leave it out, or say 'do something'")
        if self.synonyms and (set(self.synonyms) != set(self.targets) or not all(self.synonyms.values())):
            raise RecipeError(f"language.synonyms must have other words for each of the targets {list(self.targets)}")

    def require_fit(self, instruction: str) -> None:
        """Raise RecipeError unless these variants fit the instruction."""
        wanted = placeholders(instruction)
        if self.targets and wanted != {TARGET}:
            raise RecipeError(f"language.targets needs {{{TARGET}}} in the instruction, which is '{instruction}'")
        for paraphrase in self.paraphrases:
            if paraphrase == instruction or placeholders(paraphrase) != wanted:
                raise RecipeError(
                    f"language.paraphrases: '{paraphrase}' must say '{instruction}' in other words, "
                    f"with the same words in braces"
                )
