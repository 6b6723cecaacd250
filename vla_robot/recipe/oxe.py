"""Recipes of existing datasets, and mixtures of them: how each dataset's steps become standard ones.

A standard step has an action, a state, an instruction and up to three cameras. The recipe says from which columns of
the dataset they are made, and by which operations:

    action = [
      "action/world_vector",                                            three columns, unchanged
      "zeros 3",                                                        the rotation, which this dataset lacks
      "action/gripper_closedness_action | relative_to_absolute",        +1 close, -1 open  ->  0 closed, 1 open
    ]

A part is a field of the dataset, by its step's keys joined with "/", optionally with `[first:last]` columns of it and
operations, each after a bar. `zeros N` and `ones N` are N constant columns. Parts are concatenated.

Source of the datasets in datasets/oxe/ and datasets/mixtures/: openvla/openvla @c8f03f48,
prismatic/vla/datasets/rlds/oxe/{configs,transforms,mixtures}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.recipe.reading.find import available, find
from vla_robot.recipe.reading.formats import format_names

ActionEncoding = Literal["eef_pos", "eef_r6", "joint_pos", "joint_pos_bimanual"]
StateEncoding = Literal["none", "pos_euler", "pos_quat", "joint", "joint_bimanual"]

RELATIVE_DIMS: Mapping[ActionEncoding, int] = {"eef_pos": 6, "eef_r6": 9, "joint_pos": 7, "joint_pos_bimanual": 0}
"""Number of an action's dimensions, from the first on, that are changes; the others are absolute."""
ABSOLUTE_DIMS: Mapping[ActionEncoding, int] = {"eef_pos": 1, "eef_r6": 1, "joint_pos": 1, "joint_pos_bimanual": 14}

OPERATIONS: Mapping[str, int] = {
    "invert": 0,
    "clip": 0,
    "binarise": 0,
    "relative_to_absolute": 0,
    "change_to_next": 0,
    "quaternion_to_euler": 0,
    "inflate": 1,
}
"""Operations on a part -> number of integer arguments; data/pipeline/operations.py implements them."""

CONSTANTS: Mapping[str, float] = {"zeros": 0.0, "ones": 1.0}

_PART = re.compile(r"(?P<field>[^\[\]|\s]+)\s*(\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")
_CONSTANT = re.compile(r"(?P<name>[a-z]+) (?P<width>\d+)")


@dataclass(frozen=True)
class Operation:
    """A named operation with its integer arguments."""

    name: str
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Columns `start:stop` of a field, with operations applied."""

    field: str
    start: int | None = None
    stop: int | None = None
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Constant:
    """Columns of a constant value."""

    value: float
    width: int


Part = Columns | Constant


def parse_part(text: str) -> Part:
    """Parse a part of a recipe.

    >>> parse_part("action[-1:] | clip | invert")
    Columns(field='action', start=-1, stop=None, operations=(Operation(name='clip', numbers=()), \
Operation(name='invert', numbers=())))
    >>> parse_part("zeros 3")
    Constant(value=0.0, width=3)

    Raises:
        RecipeError: the text is not a part, or names an unknown operation.
    """
    source, *operations = (piece.strip() for piece in text.split("|"))
    if match := _CONSTANT.fullmatch(source):
        if match["name"] not in CONSTANTS:
            raise RecipeError(f"'{text}': {unknown('constant', match['name'], CONSTANTS)}")
        if operations or int(match["width"]) < 1:
            raise RecipeError(f"'{text}': a constant has at least 1 column and takes no operation")
        return Constant(CONSTANTS[match["name"]], int(match["width"]))
    match = _PART.fullmatch(source)
    if match is None:
        raise RecipeError(f"'{text}' is not understood; write FIELD, FIELD[first:last] or zeros N, then | OPERATION")
    start, stop = (None if match[name] is None else int(match[name]) for name in ("start", "stop"))
    return Columns(match["field"], start, stop, tuple(_operation(text, piece) for piece in operations))


def _operation(text: str, piece: str) -> Operation:
    name, *numbers = piece.split() or [""]
    if name not in OPERATIONS:
        raise RecipeError(f"'{text}': {unknown('operation', name, OPERATIONS)}")
    if len(numbers) != OPERATIONS[name] or not all(number.isdecimal() for number in numbers):
        raise RecipeError(f"'{text}': operation '{name}' takes {OPERATIONS[name]} whole numbers, got {numbers}")
    return Operation(name, tuple(map(int, numbers)))


@dataclass(frozen=True)
class Cameras:
    """Field of each camera; a policy gets a black frame for a missing one.

    Attributes:
        primary: view of the scene; the only camera of OpenVLA.
        secondary: view of the scene from another side.
        wrist: camera on the hand.
    """

    primary: str | None = None
    secondary: str | None = None
    wrist: str | None = None

    def by_role(self) -> dict[str, str]:
        """Return role -> field of the existing cameras."""
        fields = {"primary": self.primary, "secondary": self.secondary, "wrist": self.wrist}
        return {role: name for role, name in fields.items() if name is not None}


@dataclass(frozen=True)
class Published:
    """Names under which a dataset is published.

    Attributes:
        names: its names in dataset_info.json; without them the recipe's own name. A recipe with an empty list is used
            only when it is asked for by name.
        folders: names of its folder, besides the recipe's own name.
        versions: versions whose structure the recipe was compared with.
    """

    names: tuple[str, ...] | None = None
    folders: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRecipe:
    """An existing dataset, and its conversion: gripper 1 = open, 0 = closed, motion in the first dimensions.

    Attributes:
        kind: marks a recipe of an existing dataset.
        action: parts of an action.
        description: one line for `vla list`.
        location: path or URL; without it the folder of the recipe's name in a command's --root.
        version: the only supported version; without it the newest.
        format: "lerobot", "rlds", "hdf5", or one that an installed package adds; without it the format is recognised.
        action_encoding: "eef_pos" is 3 of translation, 3 of rotation and the gripper, "eef_r6" has 6 of rotation,
            "joint_pos" 7 joints and the gripper, "joint_pos_bimanual" 14 absolute numbers of two arms.
        state: parts of the arm's state; empty if there is none.
        state_encoding: meaning of its numbers.
        instruction: its field; "| codes_to_text" if letters are stored as numbers.
        skip_first: steps removed from an episode's start, before all other operations.
        skip_last: steps removed from its end, after all other operations.
        skip_still: remove steps without motion.
        swap_outside: exchange primary and secondary camera in half of the draws, at random.
        cameras: the frames.
        depths: the depth images, in the same roles; not used yet.
        published: names under which the dataset is published.
    """

    kind: Literal["source"]
    action: tuple[str, ...]
    description: str = ""
    location: str | None = None
    version: str | None = None
    format: str | None = None
    action_encoding: ActionEncoding = "eef_pos"
    state: tuple[str, ...] = ()
    state_encoding: StateEncoding = "none"
    instruction: str = "language_instruction"
    skip_first: int = 0
    skip_last: int = 0
    skip_still: bool = False
    swap_outside: bool = False
    cameras: Cameras = field(default_factory=Cameras)
    depths: Cameras = field(default_factory=Cameras)
    published: Published = field(default_factory=Published)

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in format_names():
            raise RecipeError(unknown("dataset format", self.format, format_names()))
        parts = (*self.action_parts(), *self.state_parts())
        if not self.action:
            raise RecipeError("action has no part; at least one is needed")
        if self.skip_first < 0 or self.skip_last < 0:
            raise RecipeError("skip_first and skip_last must be 0 or more")
        looks_ahead = any(Operation("change_to_next") in part.operations for part in parts if isinstance(part, Columns))
        if looks_ahead and self.skip_last < 1:
            raise RecipeError("change_to_next knows no next step at the last one; set skip_last = 1")
        if self.swap_outside and (self.cameras.primary is None or self.cameras.secondary is None):
            raise RecipeError("swap_outside needs a primary and a secondary camera")
        self.instruction_field()

    @property
    def action_dim(self) -> int:
        """Number of an action's dimensions."""
        return RELATIVE_DIMS[self.action_encoding] + ABSOLUTE_DIMS[self.action_encoding]

    @property
    def is_absolute(self) -> tuple[bool, ...]:
        """True for each absolute dimension of an action."""
        relative = RELATIVE_DIMS[self.action_encoding]
        return tuple(dim >= relative for dim in range(self.action_dim))

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """True for each normalised dimension of an action: all but a gripper that is open or closed."""
        return tuple(not absolute or RELATIVE_DIMS[self.action_encoding] == 0 for absolute in self.is_absolute)

    @property
    def keeps_constants(self) -> bool:
        """Whether a constant gripper keeps its value when normalised; the reference makes it 0, closed."""
        return False

    @property
    def camera_fields(self) -> Mapping[str, str]:
        """Camera -> field of the existing cameras, by role."""
        return self.cameras.by_role()

    def action_parts(self) -> tuple[Part, ...]:
        """Return the parsed parts of `action`."""
        return tuple(parse_part(text) for text in self.action)

    def state_parts(self) -> tuple[Part, ...]:
        """Return the parsed parts of `state`."""
        return tuple(parse_part(text) for text in self.state)

    def instruction_field(self) -> tuple[str, bool]:
        """Return the instruction's field, and whether it holds letters as numbers."""
        name, bar, operation = (piece.strip() for piece in self.instruction.partition("|"))
        if bar and operation != "codes_to_text":
            raise RecipeError(f"'{self.instruction}': {unknown('operation', operation, ['codes_to_text'])}")
        return name, bool(bar)


@dataclass(frozen=True)
class RecordedRecipe(SourceRecipe):
    """Conversion of a recording's steps, which are used unchanged, from its embodiment. No file holds one.

    Attributes:
        embodiment: meaning of the numbers.
        fields: camera of the embodiment -> its field.
    """

    embodiment: Embodiment = field(kw_only=True)
    fields: Mapping[str, str] = field(kw_only=True)

    @property
    def action_dim(self) -> int:
        return len(self.embodiment.action)

    @property
    def is_absolute(self) -> tuple[bool, ...]:
        """True for all joint positions, or for the gripper of a motion."""
        return tuple(self.embodiment.action.kind == "joint_position" or not n for n in self.action_mask)

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """True for all but the gripper, which is last."""
        return (True,) * (self.action_dim - 1) + (False,)

    @property
    def keeps_constants(self) -> bool:
        return True

    @property
    def camera_fields(self) -> Mapping[str, str]:
        return self.fields


@dataclass(frozen=True)
class Share:
    """A dataset in a mixture.

    Attributes:
        name: name or path of a dataset recipe.
        weight: relative frequency with which one of its steps is drawn.
    """

    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class MixtureRecipe:
    """Datasets that are trained on together.

    Attributes:
        kind: marks a recipe of a mixture.
        datasets: the datasets with their weights.
        description: one line for `vla list`.
    """

    kind: Literal["mixture"]
    datasets: tuple[Share, ...]
    description: str = ""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise RecipeError("datasets is empty; a mixture needs at least one")
        problems = [p for i in range(len(self.datasets)) for p in self._problems(i)]
        if problems:
            raise RecipeError("; ".join(problems))

    def _problems(self, index: int) -> list[str]:
        share = self.datasets[index]
        problems: list[str] = []
        if share.name in [other.name for other in self.datasets[:index]]:
            problems.append(f"datasets[{index}]: '{share.name}' is there twice; keep one, with the intended weight")
        if not 0 < share.weight < float("inf"):
            problems.append(f"datasets[{index}]: the weight of '{share.name}' is {share.weight:g}; it must be above 0")
        try:
            find("datasets", share.name)
        except RecipeError:
            names = [name.rpartition("/")[2] for name in available("datasets")]
            near = unknown("dataset", share.name, names).partition(" Available:")[0].rstrip(".")
            problems.append(f"datasets[{index}]: {near}. Run `vla list datasets`")
        return problems
