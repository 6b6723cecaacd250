"""EnvRecipe: one world as data, which is exchanged in the handshake and stored in every episode."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.recipe.camera import CameraRecipe as CameraRecipe
from vla_robot.recipe.language import LanguageRecipe
from vla_robot.recipe.limits import LimitsRecipe, require_ranges
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.robot import RobotRecipe

MAX_HORIZON = 1_000_000
"""Control steps: 28 hours at 10 Hz."""


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


@dataclass(frozen=True, kw_only=True)
class EnvRecipe:
    """A task in a world. These keys are common to all kinds; `kind` chooses the dataclass.

    Attributes:
        kind: kind of world or robot.
        instruction: the task as text, as the policy gets it.
        description: one line for `vla list`.
        language: variants of the instruction, for `vla eval --language`.
        arm: robosuite's name of the robot, e.g. "Panda"; for other kinds a name of your choice.
        rate_hz: control steps per second.
        horizon: control steps after which an episode ends.
        success_hold: consecutive steps of success after which the episode ends.
        max_step_m: largest translation of the tool in one step, per axis [m].
        max_step_rad: largest rotation of the tool in one step, per axis [rad].
        limits: further limits of actions; see vla_robot/recipe/limits.py.
        cameras: the policy's cameras.
    """

    kinds: ClassVar[Kinds[EnvRecipe]]

    kind: str
    instruction: str
    description: str = ""
    language: LanguageRecipe | None = None
    arm: str = "Panda"
    rate_hz: float = 10.0
    horizon: int = 100
    success_hold: int = 3
    max_step_m: float = 0.05
    max_step_rad: float = 0.5
    limits: LimitsRecipe = field(default_factory=LimitsRecipe)
    cameras: tuple[CameraRecipe, ...] = field(default_factory=tuple[CameraRecipe, ...])

    def __post_init__(self) -> None:
        if self.language is not None:
            self.language.require_fit(self.instruction)
        if not 1 <= self.rate_hz <= 100:
            raise RecipeError(f"rate_hz {self.rate_hz:g} is outside 1 to 100")
        require_ranges(self, ("max_step_m", "max_step_rad"))
        if not (1 <= self.horizon <= MAX_HORIZON and 1 <= self.success_hold <= MAX_HORIZON):
            raise RecipeError(f"horizon and success_hold must lie between 1 and {MAX_HORIZON}")
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise RecipeError(f"camera names repeat: {', '.join(names)}")
        for camera in self.cameras:
            self._require_camera(camera)

    def _require_camera(self, camera: CameraRecipe) -> None:
        """Raise RecipeError unless this kind of world supports the camera."""


@dataclass(frozen=True, kw_only=True)
class SimulationRecipe(EnvRecipe):
    """A task in a simulator, which waits for each action and can measure success.

    Attributes:
        expert: scripted expert for the task; see vla_robot/policy/scripted/experts.py.
        shadows: render shadows and reflections; doubles the cost of a frame in software.
    """

    expert: str | None = None
    shadows: bool = False

    def _require_camera(self, camera: CameraRecipe) -> None:
        if camera.rate_hz is not None and not 0.1 <= camera.rate_hz <= self.rate_hz:
            raise RecipeError(
                f"camera '{camera.name}' has rate_hz {camera.rate_hz:g}, allowed are 0.1 to {self.rate_hz:g}, the "
                "world's own; raise that one for a faster camera"
            )


@dataclass(frozen=True, kw_only=True)
class RobosuiteRecipe(SimulationRecipe):
    """One of robosuite's single-arm tasks.

    Attributes:
        task: robosuite's name of the task, e.g. "Lift".
    """

    kind: Literal["robosuite"] = "robosuite"
    task: str


@dataclass(frozen=True, kw_only=True)
class MujocoRecipe(SimulationRecipe):
    """A MuJoCo scene.

    Attributes:
        scene: MJCF file, relative to this recipe.
        success: the success test.
        placements: objects with a random pose in every episode.
    """

    kind: Literal["mujoco"] = "mujoco"
    scene: Path
    success: SuccessRecipe
    placements: tuple[PlacementRecipe, ...] = field(default_factory=tuple[PlacementRecipe, ...])


@dataclass(frozen=True, kw_only=True)
class RealArmRecipe(EnvRecipe):
    """A real arm, which does not wait: `vla bridge` controls it.

    Attributes:
        scene: MJCF file with the arm's joints and lengths, relative to this recipe.
        robot: driver, joints and cameras; see vla_robot/recipe/robot.py.
    """

    kind: Literal["robot"] = "robot"
    scene: Path
    robot: RobotRecipe

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.robot.set_points and self.robot.set_points.rate_hz < self.rate_hz:
            raise RecipeError(f"set_points.rate_hz {self.robot.set_points.rate_hz:g} is below rate_hz {self.rate_hz:g}")

    def _require_camera(self, camera: CameraRecipe) -> None:
        if camera.rate_hz is not None:
            raise RecipeError(
                f"camera '{camera.name}' has rate_hz, which is for simulations; a camera of metal has fps in "
                f"[robot.cameras.{camera.source}.fields]"
            )
        if camera.source not in self.robot.cameras:
            raise RecipeError(
                f"camera '{camera.name}': {unknown('source', str(camera.source), self.robot.cameras)} "
                "They are the tables [robot.cameras.NAME]"
            )


EnvRecipe.kinds = Kinds(
    "env",
    EnvRecipe,
    (RobosuiteRecipe, MujocoRecipe, RealArmRecipe),
    groups=("vla_robot.worlds", "vla_robot.robots"),
)


def at_speed[R: EnvRecipe](recipe: R, share: float) -> R:
    """Return the recipe with every speed limit multiplied by a share, also on the way home.

    Args:
        recipe: recipe of any world.
        share: factor above 0 and at most 1.

        Raises:
            RecipeError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise RecipeError(f"a speed of {share:g} is outside of 0 to 1; 0.25 is a careful one.")
    if share == 1:
        return recipe
    limits = recipe.limits
    slow_m_s = share * min(limits.max_speed_m_s or math.inf, recipe.max_step_m * recipe.rate_hz)
    slow_rad_s = share * min(limits.max_speed_rad_s or math.inf, recipe.max_step_rad * recipe.rate_hz)
    dims = {n: replace(d, max_speed=d.max_speed and share * d.max_speed) for n, d in limits.dims.items()}
    slow = replace(limits, max_speed_m_s=slow_m_s, max_speed_rad_s=slow_rad_s, dims=dims)
    if not isinstance(recipe, RealArmRecipe):
        return replace(recipe, limits=slow)
    robot = replace(recipe.robot, home_speed_deg_s=share * recipe.robot.home_speed_deg_s)
    return replace(recipe, limits=slow, robot=robot)
