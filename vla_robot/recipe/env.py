"""EnvRecipe: one world as data, which is exchanged in the handshake and stored in every episode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.recipe.benchmarks.libero import (
    LIBERO_BASES,
    LIBERO_CHANGES,
    LIBERO_FRAMES,
    LIBERO_STATES,
    LIBERO_STEPS,
    LIBERO_SUITES,
)
from vla_robot.recipe.benchmarks.metaworld import METAWORLD_STATES, METAWORLD_STEPS, METAWORLD_SUITES
from vla_robot.recipe.limits import LimitsRecipe, require_ranges
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.robot import ObstacleRecipe, RobotRecipe
from vla_robot.recipe.scene import CameraRecipe as CameraRecipe
from vla_robot.recipe.scene import LanguageRecipe
from vla_robot.recipe.scene import PlacementRecipe as PlacementRecipe
from vla_robot.recipe.scene import SuccessRecipe as SuccessRecipe

MAX_HORIZON = 1_000_000
"""Control steps: 28 hours at 10 Hz."""


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


MAX_MESH_CELL_M = 0.05


@dataclass(frozen=True, kw_only=True)
class SimulationRecipe(EnvRecipe):
    """A task in a simulator, which waits for each action and can measure success.

    Attributes:
        environment: name of a recipe in envs/environments/: the Python environment of its own in which the world runs,
            made by `vla install`. Without it, the world runs with this environment's packages.
        expert: scripted expert for the task; see vla_robot/policy/scripted/experts.py.
        shadows: render shadows and reflections; doubles the cost of a frame in software.
        mesh_cell_m: edge of the cells in which a mesh's vertices are merged before it is drawn [m]: fewer triangles for
            small frames, e.g. 0.004. 0 draws meshes whole. Physics stays the same.
    """

    environment: str | None = None
    expert: str | None = None
    shadows: bool = False
    mesh_cell_m: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mesh_cell_m <= MAX_MESH_CELL_M:
            raise RecipeError(f"mesh_cell_m {self.mesh_cell_m:g} is outside 0 to {MAX_MESH_CELL_M:g}")
        if self.limits.clearance_m is not None:
            raise RecipeError("limits.clearance_m is for real arms: a simulator's bodies collide by themselves")

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


MAX_MOVE_M = 0.2


@dataclass(frozen=True, kw_only=True)
class SuiteRecipe(SimulationRecipe):
    """The tasks of a benchmark. "NAME/TASK" names one of them: `find_env` sets `task`.

    Attributes:
        instruction: words for the policy in the place of the benchmark's own.
        task: the task; without it, the recipe stands for the whole suite, and no world can be built.
        move_objects_m: distance by which loose objects are moved from the benchmark's initial state, in a direction
            that the seed draws [m]; what would collide or fall stays. 0 is the benchmark.
    """

    instruction: str = ""
    task: str | None = None
    move_objects_m: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language is not None and not self.instruction:
            raise RecipeError("language varies an instruction, and this recipe leaves it to the benchmark")
        if not 0 <= self.move_objects_m <= MAX_MOVE_M:
            raise RecipeError(f"move_objects_m {self.move_objects_m:g} is outside 0 to {MAX_MOVE_M:g}")
        if self.task is not None:
            self._require_task(self.task)

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the suite's tasks."""
        raise NotImplementedError

    def of_task(self, task: str) -> Self:
        """Return the recipe of one task. Raises RecipeError unless the suite has it."""
        return replace(self, task=task)

    def require_one(self) -> str:
        """Return the task. Raises RecipeError for a recipe that stands for the whole suite."""
        if self.task is None:
            first, *_, last = self.tasks()
            raise RecipeError(
                f"this recipe is a suite of {len(self.tasks())} tasks, and a world has one: name it as NAME/{first} to "
                f"NAME/{last}, or set task"
            )
        return self.task

    @property
    def perturbs(self) -> str | None:
        """Name of the suite whose tasks this one perturbs, number by number; None for a suite of its own."""
        return None

    def protocol(self, seeds: range) -> str:
        """Return the benchmark's protocol in words, and the departures of this recipe and these seeds from it."""
        raise NotImplementedError

    def _require_fixed(self, benchmark: str, **values: object) -> None:
        """Raise RecipeError if a key has another value than the benchmark's."""
        for name, value in values.items():
            if getattr(self, name) != value:
                raise RecipeError(f"{name} is {getattr(self, name)}; {benchmark}'s is {value}, and policies rely on it")

    def _require_task(self, task: str) -> None:
        if task not in self.tasks():
            raise RecipeError(f"task: {unknown('task', task, self.tasks())}")


def _states_short_of(seeds: range, states: int) -> Iterator[str]:
    """Yield a departure if the seeds are not a task's initial states, each once."""
    found = {seed % states for seed in seeds}
    if len(found) < states or len(seeds) > states:
        yield f"{len(seeds)} episodes of a task, {len(found)} of its {states} initial states"


def _frame(camera: CameraRecipe) -> str:
    """Return a camera's name, what it shows, and its size in pixels."""
    shows = camera.source or f"placed at {', '.join(f'{x:g}' for x in camera.pos or ())} m"
    return f"{camera.name} ({shows}) of {camera.width} x {camera.height} px"


def _other_values(recipe: SuiteRecipe, **references: object) -> Iterator[str]:
    """Yield a departure for each key that has another value than the protocol's."""
    for name, reference in references.items():
        if (value := getattr(recipe, name)) != reference:
            yield f"{name} {value}, the reference's is {reference}"


@dataclass(frozen=True, kw_only=True)
class LiberoRecipe(SuiteRecipe):
    """A suite of LIBERO or LIBERO-PRO by the reference protocol. Seed k is the task's initial state k modulo 50.

    The keys that the benchmark fixes are refused with another value.

    Attributes:
        suite: the benchmark's name of it, e.g. "libero_spatial" or "libero_spatial_swap".
        states: where things are at the start: "benchmark", in the fifty initial states of its files; "others" lets the
            benchmark draw them in the task's own regions, another draw for each seed, for training data.
        shadows: the benchmark's own picture, to the pixel; false renders faster, without shadows, reflections and
            multisampling.
        settle_steps: control steps after a reset in which the gripper opens and objects come to rest; not counted.
    """

    kind: Literal["libero"] = "libero"
    environment: str | None = "libero"
    suite: str
    states: Literal["benchmark", "others"] = "benchmark"
    rate_hz: float = 20.0
    success_hold: int = 1
    shadows: bool = True
    settle_steps: int = 10

    def __post_init__(self) -> None:
        if self.suite not in LIBERO_SUITES:
            raise RecipeError(unknown("suite", self.suite, LIBERO_SUITES))
        self._require_fixed("LIBERO", arm="Panda", rate_hz=20.0, max_step_m=0.05, max_step_rad=0.5)
        if not 0 <= self.settle_steps <= 100:
            raise RecipeError(f"settle_steps {self.settle_steps} is outside 0 to 100")
        super().__post_init__()

    def tasks(self) -> tuple[str, ...]:
        return tuple(map(str, range(90 if self.suite == "libero_90" else 10)))

    @property
    def perturbs(self) -> str | None:
        base, _, how = self.suite.rpartition("_")
        return base if how in LIBERO_CHANGES and base in LIBERO_BASES else None

    def protocol(self, seeds: range) -> str:
        departures = "; ".join(self._departures(seeds)) or "none"
        steps = LIBERO_STEPS[self.perturbs or self.suite]
        return (
            f"the reference's: initial states 0 to {LIBERO_STATES - 1}, 10 settling steps, at most {steps} steps at "
            "20 Hz, agentview and wrist at 256 px, a gripper that is open above 0.5 and closed below, success at the "
            "first step that meets the goal. Departures: "
            f"{departures}"
        )

    def _departures(self, seeds: range) -> Iterator[str]:
        yield from _states_short_of(seeds, LIBERO_STATES)
        horizon = LIBERO_STEPS[self.perturbs or self.suite]
        yield from _other_values(
            self, states="benchmark", horizon=horizon, settle_steps=10, success_hold=1, shadows=True, mesh_cell_m=0.0
        )
        frames = tuple((camera.source, camera.height, camera.width) for camera in self.cameras)
        if frames != LIBERO_FRAMES:
            yield f"cameras {frames}, the reference's are {LIBERO_FRAMES}"
        if self.move_objects_m:
            yield f"loose objects moved by {self.move_objects_m:g} m"
        if self.instruction:
            yield f"the instruction '{self.instruction}' in place of the benchmark's"


@dataclass(frozen=True, kw_only=True)
class MetaWorldRecipe(SuiteRecipe):
    """A set of Meta-World's tasks. Seed k is the task's parameter set k modulo 50.

    The keys that the benchmark fixes are refused with another value.

    Attributes:
        suite: the set's name: "mt50", "mt10", "ml10_train" or "ml10_test".
        parameters: where objects and goals are: "benchmark", in the fifty sets that the package draws once; "others"
            draws as many other sets as there are seeds, for training data.
        shadows: the benchmark's own quality; false renders about nine times faster, without shadows, reflections and
            multisampling.
    """

    kind: Literal["metaworld"] = "metaworld"
    environment: str | None = "metaworld"
    expert: str | None = "benchmark"
    suite: str
    parameters: Literal["benchmark", "others"] = "benchmark"
    arm: str = "Sawyer"
    rate_hz: float = 80.0
    horizon: int = METAWORLD_STEPS
    success_hold: int = 1
    max_step_m: float = 0.01
    shadows: bool = True

    def __post_init__(self) -> None:
        if self.suite not in METAWORLD_SUITES:
            raise RecipeError(unknown("suite", self.suite, METAWORLD_SUITES))
        self._require_fixed("Meta-World", arm="Sawyer", rate_hz=80.0, max_step_m=0.01, move_objects_m=0.0)
        if self.horizon > METAWORLD_STEPS:
            raise RecipeError(
                f"horizon {self.horizon} is above {METAWORLD_STEPS}, after which Meta-World wants a reset"
            )
        super().__post_init__()

    def tasks(self) -> tuple[str, ...]:
        return METAWORLD_SUITES[self.suite]

    def protocol(self, seeds: range) -> str:
        departures = [*_states_short_of(seeds, METAWORLD_STATES)]
        departures += _other_values(self, horizon=METAWORLD_STEPS, success_hold=1, parameters="benchmark")
        shading = "" if self.shadows else ", without shadows, reflections and multisampling"
        shading += f", meshes in cells of {self.mesh_cell_m:g} m" if self.mesh_cell_m else ""
        return (
            f"the package's: parameter sets 0 to {METAWORLD_STATES - 1} of each task, at most {METAWORLD_STEPS} steps "
            f"at 80 Hz, success at the first step that meets the goal. Frames, which it does not prescribe: "
            f"{', '.join(map(_frame, self.cameras)) or 'none'}{shading}. Departures: {'; '.join(departures) or 'none'}"
        )


@dataclass(frozen=True, kw_only=True)
class RealArmRecipe(EnvRecipe):
    """A real arm, or a pair of arms, which does not wait: `vla bridge` controls it.

    Attributes:
        scene: MJCF file with the arm's joints and lengths, relative to this recipe. Tool steps need it; joint
            positions take the joints' ranges from it, and without it from the calibration.
        robot: driver, joints and cameras; see vla_robot/recipe/robot.py.
        obstacles: boxes that `limits.clearance_m` keeps the arm away from.
    """

    kind: Literal["robot"] = "robot"
    scene: Path | None = None
    robot: RobotRecipe
    obstacles: dict[str, ObstacleRecipe] = field(default_factory=dict[str, ObstacleRecipe])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limits.clearance_m is not None and self.scene is None:
            raise RecipeError("clearance_m needs the scene, whose shapes are kept apart")
        if self.obstacles and self.limits.clearance_m is None:
            raise RecipeError("obstacles are avoided by clearance_m in [limits], which is missing")
        if self.robot.mounts and (self.scene is None or self.robot.actions == "tool"):
            raise RecipeError('mounts place the scene of each arm of a pair: they need scene, and actions = "joints"')
        if self.robot.mounts and (self.limits.workspace_low or self.limits.workspace_high):
            raise RecipeError("workspace_low and workspace_high are for one arm; obstacles limit a pair")
        if self.robot.actions == "joints":
            self._require_joint_limits()
        elif self.scene is None:
            raise RecipeError(
                'scene is missing: tool steps need the arm\'s MJCF file, robot.actions = "joints" does not'
            )
        if self.robot.set_points and self.robot.set_points.rate_hz < self.rate_hz:
            raise RecipeError(f"set_points.rate_hz {self.robot.set_points.rate_hz:g} is below rate_hz {self.rate_hz:g}")

    def _require_joint_limits(self) -> None:
        """Raise RecipeError unless the joints' speed is limited: nothing else in an absolute position limits it."""
        if self.limits.max_speed_rad_s is None:
            raise RecipeError("joint positions need max_speed_rad_s in [limits]: how fast a joint may turn")
        if self.scene is None and (self.limits.workspace_low or self.limits.workspace_high):
            raise RecipeError("workspace_low and workspace_high need the scene, which tells where the tool is")

    def _require_camera(self, camera: CameraRecipe) -> None:
        if camera.rate_hz is not None:
            raise RecipeError(
                f"camera '{camera.name}' has rate_hz, which is for simulations; a camera of metal has fps in "
                f"[robot.cameras.{camera.source}.fields]"
            )
        if camera.turn_deg or camera.mirror:
            raise RecipeError(
                f"camera '{camera.name}' has turn_deg or mirror, which are for simulations; a camera of metal is "
                f"turned by its driver, in [robot.cameras.{camera.source}.fields]"
            )
        if camera.source not in self.robot.cameras:
            raise RecipeError(
                f"camera '{camera.name}': {unknown('source', str(camera.source), self.robot.cameras)} "
                "They are the tables [robot.cameras.NAME]"
            )


EnvRecipe.kinds = Kinds(
    "env",
    EnvRecipe,
    (RobosuiteRecipe, MujocoRecipe, LiberoRecipe, MetaWorldRecipe, RealArmRecipe),
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
    in_steps = not (isinstance(recipe, RealArmRecipe) and recipe.robot.actions == "joints")
    step_rad_s = recipe.max_step_rad * recipe.rate_hz if in_steps else math.inf
    slow_rad_s = share * min(limits.max_speed_rad_s or math.inf, step_rad_s)
    dims = {n: replace(d, max_speed=d.max_speed and share * d.max_speed) for n, d in limits.dims.items()}
    slow = replace(limits, max_speed_m_s=slow_m_s, max_speed_rad_s=slow_rad_s, dims=dims)
    if not isinstance(recipe, RealArmRecipe):
        return replace(recipe, limits=slow)
    robot = replace(recipe.robot, home_speed_deg_s=share * recipe.robot.home_speed_deg_s)
    return replace(recipe, limits=slow, robot=robot)
