"""Where a policy comes from: a recipe, a checkpoint folder, or a server's address. One name on the command line."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.policy import ADDRESS_SCHEMES, CheckpointRecipe, OpenVLARecipe, PolicyRecipe, RemoteRecipe
from vla_robot.recipe.reading.dump import dump
from vla_robot.recipe.reading.find import find
from vla_robot.recipe.reading.load import read
from vla_robot.recipe.reading.schemas import is_bare_checkpoint


@dataclass(frozen=True)
class PolicySource:
    """A policy's recipe, with the name resolved.

    Attributes:
        recipe: what it is.
        path: its recipe or folder; None for an address.
    """

    recipe: PolicyRecipe
    path: Path | None

    @property
    def name(self) -> str:
        """For tables and reports."""
        return self.path.stem if self.path else self._address()

    @property
    def is_privileged(self) -> bool:
        """Whether it works from the simulator's truth; every other one gets cameras and the arm's own state only."""
        return self.recipe.is_privileged

    @property
    def is_recipe(self) -> bool:
        """Whether a file says how it is used; a bare folder and an address speak for themselves."""
        return self.path is not None and not is_bare_checkpoint(self.path)

    def fingerprint(self) -> str:
        """Changes whenever what it does may change: its recipe, or size or time of a file of its checkpoint.

        A server's changes are not seen. Contents are not read: weights can be fifteen gigabytes.
        """
        recipe = self.recipe
        files = sorted(recipe.checkpoint.glob("**/*")) if isinstance(recipe, CheckpointRecipe) else []
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return hashlib.sha256(f"{dump(self.recipe)}{stats}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return str(self.path or self._address())

    def _address(self) -> str:
        return self.recipe.address if isinstance(self.recipe, RemoteRecipe) else ""


def find_policy(name: str | Path) -> PolicySource:
    """A policy by its name or path, or at an address such as tcp://127.0.0.1:5580.

    Raises:
        RecipeError: there is no such policy; the nearest is named.
    """
    if str(name).startswith("ws://"):
        raise RecipeError(
            f"'{name}' is the address of a server of openpi, which does not say what its numbers mean. Write a recipe "
            'with kind = "openpi" that does, and name that: policies/openpi_libero.toml is an example, '
            "docs/serving.md explains it."
        )
    if str(name).startswith(ADDRESS_SCHEMES):
        return PolicySource(RemoteRecipe(address=str(name)), None)
    path = find("policies", name)
    if is_bare_checkpoint(path):
        return PolicySource(OpenVLARecipe(checkpoint=path), path)
    return PolicySource(read(PolicyRecipe, path), path)
