"""Where an environment lies in the user's cache, and whether it is whole.

    ~/.cache/vla_robot/environments/libero-3f9c0a1b2c4d/
        packages.txt    the locked list that it was made from
        venv/           the environment
        made.json       the mark, written last: without it the folder is half-made

The name holds a hash of list, Python and platform: another list is another environment, and both can exist.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from vla_robot.core.errors import MissingDependencyError
from vla_robot.core.host.user_cache import user_cache
from vla_robot.recipe import find, read
from vla_robot.recipe.environment import EnvironmentRecipe

MARK = "made.json"
PACKAGES = "packages.txt"
VENV = "venv"
HASH_DIGITS = 12


@dataclass(frozen=True)
class Environment:
    """An environment of a recipe, made or not.

    Attributes:
        name: the recipe's name.
        recipe: the recipe.
        folder: its folder in the cache.
    """

    name: str
    recipe: EnvironmentRecipe
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / VENV / "bin" / "python"

    @property
    def is_made(self) -> bool:
        """Whether it is whole: it was made to the end, and its interpreter still exists."""
        return (self.folder / MARK).is_file() and self.python.is_file()

    @property
    def is_this_process(self) -> bool:
        """Whether this process runs in it."""
        return Path(sys.prefix).resolve() == (self.folder / VENV).resolve()

    @property
    def command(self) -> str:
        """The command that makes it."""
        return f"vla install {self.name}"

    @property
    def size(self) -> str:
        """What its making costs, in words."""
        return f"{self.recipe.download_mb / 1000:.2g} GB to download, {self.recipe.disk_mb / 1000:.2g} GB on the disk"

    def require_made(self, who: str) -> None:
        """Raise MissingDependencyError, with the command that makes it, unless it is whole.

        Args:
            who: what needs it, for the message, e.g. "the world 'libero_spatial/3'".
        """
        if self.is_made:
            return
        state = "is half-made or its Python is gone" if self.folder.exists() else "is not installed"
        raise MissingDependencyError(
            f"{who} runs in an environment of its own, '{self.name}', which {state}. `{self.command}` makes it "
            f"({self.size}), once."
        )


def find_environment(name: str) -> Environment:
    """Return the environment of a recipe in envs/environments/, by name or path.

    Raises:
        RecipeError: there is no such recipe, or it or its lock is not valid.
    """
    path = find("environments", name)
    recipe = read(EnvironmentRecipe, path)
    return Environment(path.stem, recipe, environments_folder() / f"{path.stem}-{_fingerprint(recipe)}")


def environments_folder() -> Path:
    """Return the folder of all environments; XDG_CACHE_HOME moves it."""
    return user_cache("environments")


def others_of(environment: Environment) -> list[Path]:
    """Return folders that were made from other lists of the same name, by an earlier version of this package."""
    folder = environments_folder()
    found = sorted(folder.glob(f"{environment.name}-{'[0-9a-f]' * HASH_DIGITS}")) if folder.is_dir() else []
    return [path for path in found if path != environment.folder]


def made_at(environment: Environment) -> str:
    """Return the date at which an environment was made, as its mark says; empty without a readable mark."""
    try:
        return str(json.loads((environment.folder / MARK).read_text(encoding="utf-8"))["made_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _fingerprint(recipe: EnvironmentRecipe) -> str:
    parts = [recipe.packages(), recipe.python, *recipe.build, sysconfig.get_platform()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HASH_DIGITS]
