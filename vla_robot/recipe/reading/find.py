"""Finds recipes: in the user's own folder first, then the checkout, then the copy inside the installed package, then
the folders `recipes` of packages that add kinds (docs/plugins.md).

    "lift", "lift.toml", "envs/lift.toml", "/abs/lift.toml"   all find   envs/lift.toml

A policy may also be a folder that holds `recipe.toml` or `config.json` beside its weights.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.untrusted import shortened
from vla_robot.recipe.reading.plugins import recipe_folders

Kind = Literal["envs", "policies", "datasets", "launch", "teleoperators", "environments"]
KINDS: tuple[Kind, ...] = get_args(Kind)

POLICY_FILES = ("recipe.toml", "config.json")
"""Files of which either makes a folder a policy."""

FOLDERS_IN: dict[Kind, tuple[str, ...]] = {
    "datasets": ("oxe", "oxe_published", "mixtures"),
    "envs": ("libero", "metaworld"),
    "launch": ("stages",),
}
"""Subfolders of a kind's folder whose recipes are also found by bare name; the first that has a name wins."""

_FOLDERS: dict[Kind, str] = {"teleoperators": "envs/teleoperators", "environments": "envs/environments"}
"""Folders of kinds inside another kind's folder; the others have a folder of their own name in the root."""

FORMER_FOLDERS: dict[Kind, str] = {"teleoperators": "hands"}
"""Folders of earlier releases: searched last for one more release, with a line that names the new folder."""

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parents[2]
_NOUNS: dict[Kind, str] = {
    "envs": "env",
    "policies": "policy",
    "datasets": "dataset",
    "launch": "launch file",
    "teleoperators": "device",
    "environments": "environment",
}


def folder_of(kind: Kind) -> str:
    """Return the folder of a kind's recipes, relative to a root."""
    return _FOLDERS.get(kind, kind)


def roots() -> tuple[Path, ...]:
    """Return the folders that may contain folders of KINDS, in search order."""
    candidates = (Path.cwd(), _PACKAGE.parent, _PACKAGE / "_recipes")
    # An installed package's parent is site-packages, where a folder named `datasets` is Hugging Face's code.
    kept = [root for root in candidates if root != _PACKAGE.parent or (root / "pyproject.toml").is_file()]
    return tuple(dict.fromkeys([*kept, *recipe_folders()]))


def find(kind: Kind, name_or_path: str | Path) -> Path:
    """Return the absolute path of a recipe: a file, or a policy's folder.

    Raises:
        RecipeError: no recipe has that name; the message lists those that exist and names the nearest.
    """
    try:
        wanted = Path(name_or_path).expanduser()
        for candidate in _candidates(kind, wanted):
            if _is_recipe(kind, candidate):
                _tell_if_former(kind, wanted, candidate)
                return candidate.resolve()
        message = _not_found(kind, wanted)
    except (OSError, RuntimeError, ValueError) as error:  # too long, "~nobody/", empty, a zero byte
        raise RecipeError(f"'{shortened(name_or_path)}' is not a recipe's name or path: {shortened(error)}.") from error
    raise RecipeError(message)


def available(kind: Kind) -> dict[str, Path]:
    """Return every recipe of one kind, name -> path; the first place searched wins. "oxe/NAME" is found as NAME too."""
    found: dict[str, Path] = {}
    for root in roots():
        for folder in ("", *FOLDERS_IN.get(kind, ())):
            for path in sorted((root / folder_of(kind) / folder).glob("*")):
                if _is_recipe(kind, path):
                    found.setdefault(f"{folder}/{_name(path)}".lstrip("/"), path.resolve())
    for path in (path for former in _former_folders(kind) for path in sorted(former.glob("*.toml"))):
        _tell_if_former(kind, path, path)
        found.setdefault(path.stem, path.resolve())
    return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))


def _candidates(kind: Kind, wanted: Path) -> Iterator[Path]:
    spellings = [wanted] if wanted.suffix == ".toml" else [wanted, wanted.with_name(wanted.name + ".toml")]
    yield from spellings
    if not wanted.is_absolute():
        for root in roots():
            yield from (root / spelling for spelling in spellings)
            for folder in ("", *FOLDERS_IN.get(kind, ())):
                yield from (root / folder_of(kind) / folder / spelling for spelling in spellings)
        yield from (former / spelling for former in _former_folders(kind) for spelling in spellings)
        if wanted.parts[:1] == (FORMER_FOLDERS.get(kind),):
            yield from _candidates(kind, Path(*wanted.parts[1:]))


def _former_folders(kind: Kind) -> list[Path]:
    return [root / FORMER_FOLDERS[kind] for root in roots()] if kind in FORMER_FOLDERS else []


def _tell_if_former(kind: Kind, wanted: Path, found: Path) -> None:
    former = FORMER_FOLDERS.get(kind)
    if former is not None and former in (wanted.parent.name, found.parent.name):
        _tell(f"'{wanted}': recipes of {kind} lie in {folder_of(kind)}/ now; {former}/ works for one more release.")


@functools.cache
def _tell(line: str) -> None:
    _log.warning("%s", line)


def _is_recipe(kind: Kind, path: Path) -> bool:
    if path.is_dir():
        return kind == "policies" and any((path / name).is_file() for name in POLICY_FILES)
    return path.suffix == ".toml" and path.is_file()


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _not_found(kind: Kind, wanted: Path) -> str:
    folder = folder_of(kind)
    searched = ", ".join(str(root / folder) for root in roots() if (root / folder).is_dir()) or "no folder of that kind"
    hint = f"Searched {searched}. Run `vla list {kind}`."
    if kind == "policies" and wanted.is_dir():
        return f"the folder '{wanted}' is not a policy: it holds neither {' nor '.join(POLICY_FILES)}. {hint}"
    name = wanted.name.removesuffix(".toml") or str(wanted)
    return unknown(_NOUNS[kind], name, available(kind), hint)
