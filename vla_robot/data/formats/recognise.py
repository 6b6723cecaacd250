"""Finds the recipe of a dataset by the dataset's own description.

    facts = facts_of(open_source("data/droid"))      or facts_at("data/droid"), which reads no shard
    known = recognise(facts)                         the recipe 'droid', since its dataset_info.json says droid_101
    known or explain_unknown(facts)                  which recipes come near, and what would have to be assumed

Training uses the recipe that is registered for the dataset's name and fits its fields, or one that the user names. A
recording with an embodiment contract, which gives the meaning of its numbers, needs none. Nothing else is assumed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_robot.core.episode import Field
from vla_robot.core.errors import DataError, RecipeError, VlaError
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.conversion_metadata import FILE, read_origin
from vla_robot.data.formats.lerobot.layout import EMBODIMENT
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.rlds.reader import RldsDataset, describe_rlds, is_rlds
from vla_robot.data.formats.source import ACTIONS, STATES, instruction_text
from vla_robot.data.formats.storage import open_storage
from vla_robot.data.pipeline.standardise import fields_of, misfits
from vla_robot.recipe import available, parse, read_table
from vla_robot.recipe.oxe import ABSOLUTE_DIMS, RELATIVE_DIMS, ActionEncoding, Cameras, SourceRecipe
from vla_robot.recipe.reading.schemas import schema_for

MOST_NEAR = 3
MOST_LACKS = 2
"""Largest number of reasons that are given for each recipe that comes near."""


@dataclass(frozen=True)
class Facts:
    """The description of a dataset.

    Attributes:
        location: path or URL of the dataset.
        name: name of the dataset in its description.
        folder: name of the folder of an RLDS dataset, above its version; "" for other formats.
        version: e.g. "1.0.0"; "" where the format has none.
        fields: fields of each step, by name.
        is_standard: whether an embodiment contract gives the meaning of its numbers, as in recordings of `vla record`.
        copy_of: name of the RLDS dataset that an RLDS dataset was copied from; "" where none is known.
    """

    location: str
    name: str
    folder: str
    version: str
    fields: Mapping[str, Field]
    is_standard: bool = False
    copy_of: str = ""


@dataclass(frozen=True)
class Known:
    """A dataset whose steps can be made standard.

    Attributes:
        name: key of its statistics.
        recipe: the recipe of its steps.
        why: how the recipe was found, in one sentence.
    """

    name: str
    recipe: SourceRecipe
    why: str


def facts_of(source: EpisodeSource) -> Facts:
    """Return the description of an open dataset."""
    if isinstance(source, RldsDataset):
        return _rlds_facts(source.location, source.name, source.version, source.fields)
    has_contract = (Path(source.location) / EMBODIMENT).is_file()
    return Facts(source.location, source.name, "", "", source.fields, has_contract)


def facts_at(location: str) -> Facts:
    """Return the description of the dataset at a path or URL; of an RLDS dataset, no shard is read.

    Raises:
        DataError: there is no dataset, or its description is damaged.
    """
    storage = open_storage(location)
    if storage.local is not None and (not storage.local.is_dir() or not is_rlds(storage)):
        return facts_of(open_source(location, "all"))
    folder, info, features = describe_rlds(location)
    return _rlds_facts(folder, info.name, info.version, {name: leaf.field for name, leaf in features.steps.items()})


def _rlds_facts(location: str, name: str, version: str, fields: Mapping[str, Field]) -> Facts:
    origin = None if "://" in location else read_origin(Path(location) / FILE)
    has_contract = origin is not None and origin.embodiment is not None
    copy_of = origin.name if origin is not None and origin.kind == "rlds" else ""
    return Facts(location, name, _folder_name(location), version, fields, has_contract, copy_of)


def recognise(facts: Facts) -> Known | None:
    """Return the recipe of a dataset; None when none is known.

    It is found by the embodiment contract, the dataset's name, its folder's name, or the name of the dataset that it
    was copied from.

    Raises:
        DataError: the recipe of the dataset's name does not fit it.
    """
    if facts.is_standard:
        why = "none is needed, since the embodiment contract of the recording says what its numbers mean"
        return Known(facts.name, assumed_recipe(facts), why)
    recipes = [(stem, recipe) for stem, recipe in _recipes() if recipe.published.names != ()]
    named = [(stem, recipe) for stem, recipe in recipes if facts.name in (recipe.published.names or (stem,))]
    placed = [(stem, recipe) for stem, recipe in recipes if facts.folder in (stem, *recipe.published.folders)]
    copied = [(stem, recipe) for stem, recipe in recipes if facts.copy_of in (recipe.published.names or (stem,))]
    for stem, recipe in (*named, *placed, *copied):
        if not misfits(recipe, facts.fields):
            return Known(stem, recipe, _why(stem, recipe, facts))
    if named and facts.version:  # names are published for RLDS: an HDF5 suite may be called like its RLDS conversion
        raise DataError(_misfit_told(*named[0], facts))
    return None


def recipe_line(facts: Facts) -> str:
    """Return a sentence for a user about the recipe that a dataset is read by, or that none is known."""
    try:
        known = recognise(facts)
    except DataError as error:
        return str(error)
    return explain_unknown(facts) if known is None else f"Recipe: {known.why}."


def advise(location: str) -> str:
    """Return advice for a user who gave the location of a dataset where the name of a recipe is needed."""
    try:
        facts = facts_at(location)
        known = recognise(facts)
    except VlaError as error:
        return str(error)
    if known is None:
        return explain_unknown(facts)
    if facts.is_standard:
        return "It is a recording of `vla record`, or a conversion of one: give it, as a LeRobot dataset, with --data."
    if facts.folder in (known.name, *known.recipe.published.folders):
        folder = (
            facts.location if facts.location.rstrip("/").endswith(facts.folder) else facts.location.rpartition("/")[0]
        )
        return f"Its recipe is '{known.name}': --mixture {known.name} --root {folder.rpartition('/')[0] or '.'}"
    return (
        f"Its recipe is '{known.name}': write datasets/mine.toml with the lines base = \"{known.name}\" and "
        f'location = "{location}", and name it with --mixture mine.'
    )


def explain_unknown(facts: Facts) -> str:
    """Return a message on a dataset without a known recipe: recipes that come near, and the necessary assumptions."""
    unknown = f"No recipe is known for '{facts.name}' ({facts.location}), so what its actions mean is not known."
    return f"{unknown} {_advice(facts)}"


def _advice(facts: Facts) -> str:
    near = "; ".join(_near(facts)) or "none"
    try:
        assumed = f"Without one it would have to be assumed that {_assumptions(assumed_recipe(facts))}."
    except DataError as error:
        assumed = f"Without one nothing can be assumed: {error}"
    return (
        f"Recipes that come near: {near}. {assumed} Name the right recipe with --recipe, or copy the nearest one to "
        "datasets/mine.toml, set location there, and change what differs."
    )


def assumed_recipe(facts: Facts) -> SourceRecipe:
    """Return a recipe for a dataset whose steps are standard already, as those of `vla record` are.

    Raises:
        DataError: the fields cannot be standard, so that the dataset needs a recipe of its own.
    """
    fields = facts.fields
    action = next((name for name in ACTIONS if name in fields), ACTIONS[0])
    width = fields[action].shape[-1] if action in fields and fields[action].shape else None
    encodings: list[ActionEncoding] = [e for e in RELATIVE_DIMS if RELATIVE_DIMS[e] + ABSOLUTE_DIMS[e] == width]
    text = instruction_text(fields)
    if not encodings or text is None:
        numbers = "no field 'action'" if width is None else f"an action of {width} numbers"
        lacks = numbers if not encodings else "no instruction"
        raise DataError(f"{facts.location} has {lacks}, so that a recipe must say what its steps are.")
    images = sorted(name for name, f in fields.items() if f.is_colour)
    outside = [name for name in images if "wrist" not in name]
    wrist = [name for name in images if "wrist" in name]
    primary, secondary = (*outside, None, None)[:2]
    cameras = Cameras(primary, secondary, next(iter(wrist), None))
    state = tuple(name for name in STATES if name in fields)[:1]
    return SourceRecipe(
        "source", (action,), action_encoding=encodings[0], state=state, instruction=text, cameras=cameras
    )


def _folder_name(location: str) -> str:
    """Return the name of the dataset's folder: NAME of a location NAME/VERSION."""
    parts = location.rstrip("/").split("/") if "://" in location else list(Path(location).resolve().parts)
    is_version = all(part.isdigit() for part in parts[-1].split("."))
    return parts[-2] if is_version and len(parts) > 1 else parts[-1]


def _recipes() -> Iterator[tuple[str, SourceRecipe]]:
    """Yield the bare name and the recipe of every published dataset, the user's own recipes first.

    A recipe that cannot be read is skipped: `vla check` reports it, and it must not stop work on another dataset.
    """
    seen: set[str] = set()
    for name, path in available("datasets").items():
        stem = name.rpartition("/")[2]
        try:
            if stem not in seen and schema_for("datasets", path) is SourceRecipe:
                yield stem, parse(SourceRecipe, read_table(SourceRecipe, path), path)
                seen.add(stem)
        except RecipeError:
            continue


def _why(stem: str, recipe: SourceRecipe, facts: Facts) -> str:
    text = stem if stem == facts.name else f"{stem}, for a dataset that calls itself '{facts.name}'"
    versions = recipe.published.versions
    if facts.version and versions and facts.version not in versions:
        text += f"; version {facts.version} is none of those that it was compared with ({', '.join(versions)})"
    return text


def _misfit_told(stem: str, recipe: SourceRecipe, facts: Facts) -> str:
    lacking = _lacking(stem, misfits(recipe, facts.fields))
    return f"'{facts.name}' does not fit the recipe that is known under its name: {lacking}. {_advice(facts)}"


def _near(facts: Facts) -> list[str]:
    """Return the recipes that lack the fewest fields, in words; among equal ones, those that use more come first."""
    ranked = sorted(
        (len(lacks := misfits(recipe, facts.fields)), -_size(recipe), -_likeness(stem, facts), stem, lacks)
        for stem, recipe in _recipes()
    )
    return [_lacking(stem, lacks) for *_, stem, lacks in ranked[:MOST_NEAR]]


def _size(recipe: SourceRecipe) -> int:
    """Return the number of fields that a recipe uses."""
    return len(fields_of(recipe)) + len(recipe.camera_fields)


def _likeness(stem: str, facts: Facts) -> float:
    return max(difflib.SequenceMatcher(None, stem, name).ratio() for name in (facts.name, facts.folder))


def _lacking(stem: str, lacks: list[str]) -> str:
    if not lacks:
        return f"'{stem}' (every field that it needs is there)"
    more = f"; and {len(lacks) - MOST_LACKS} more" if len(lacks) > MOST_LACKS else ""
    return f"'{stem}' ({'; '.join(lacks[:MOST_LACKS])}{more})"


def _assumptions(recipe: SourceRecipe) -> str:
    relative, absolute = RELATIVE_DIMS[recipe.action_encoding], ABSOLUTE_DIMS[recipe.action_encoding]
    motion = f"its first {relative} numbers are changes and the last one is" if relative else "it is"
    gripper = "the gripper, 1 = open" if absolute == 1 else f"{absolute} absolute numbers of two arms"
    cameras = [f"{role} camera '{name}'" for role, name in recipe.camera_fields.items()]
    return (
        f"'{recipe.action[0]}' is a standard action of encoding {recipe.action_encoding}: {motion} {gripper}; the "
        f"instruction is '{recipe.instruction}'; {', '.join(cameras) or 'there is no camera'}"
    )
