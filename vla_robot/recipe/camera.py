"""CameraRecipe: one camera of a world, as data."""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.errors import RecipeError


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
        rate_hz: frames per second of a simulated camera that is slower than the control; a real one has its own.
    """

    name: str
    source: str | None = None
    pos: tuple[float, float, float] | None = None
    target: tuple[float, float, float] | None = None
    fovy_deg: float = 45.0
    height: int = 224
    width: int = 224
    rate_hz: float | None = None

    def __post_init__(self) -> None:
        placed = self.pos is not None and self.target is not None
        if placed == (self.source is not None):
            raise RecipeError(f"camera '{self.name}' needs either source, or pos and target")
        if not (16 <= self.height <= 480 and 16 <= self.width <= 640):
            raise RecipeError(f"camera '{self.name}' is {self.width}x{self.height}, allowed are 16x16 to 640x480")
        if not 1 <= self.fovy_deg <= 120:
            raise RecipeError(f"camera '{self.name}' has fovy_deg {self.fovy_deg:g}, allowed is 1 to 120")
