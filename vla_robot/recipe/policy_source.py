"""Source of a policy: a recipe, a checkpoint folder, or a server's address, given as one name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.policy import (
    ADDRESS_SCHEMES,
    LeRobotRecipe,
    OpenVLARecipe,
    PolicyRecipe,
    RemoteRecipe,
    VLARecipe,
    WeightsRecipe,
)
from vla_robot.recipe.reading.dump import dump
from vla_robot.recipe.reading.find import find
from vla_robot.recipe.reading.load import read
from vla_robot.recipe.reading.schemas import is_bare_checkpoint, is_lerobot_folder, model_type_of


@dataclass(frozen=True)
class PolicySource:
    """A policy's recipe, and the path that its name was resolved to.

    Attributes:
        recipe: the policy's recipe.
        path: path of the recipe or folder; None for an address.
    """

    recipe: PolicyRecipe
    path: Path | None

    @property
    def name(self) -> str:
        """Name in tables and reports."""
        return self.path.stem if self.path else self._address()

    @property
    def is_privileged(self) -> bool:
        """Whether it reads the simulator's state; other policies get only cameras and the arm's state."""
        return self.recipe.is_privileged

    @property
    def is_recipe(self) -> bool:
        """Whether it has a recipe file; a bare folder and an address have none."""
        return self.path is not None and not is_bare_checkpoint(self.path)

    def fingerprint(self) -> str:
        """Return a hash of its recipe without the device, and of the sizes and times of its checkpoint's files.

        A server's changes are not detected. Contents are not read: weights can be 15 GB.
        """
        recipe = self.recipe
        files = sorted(recipe.checkpoint.glob("**/*")) if isinstance(recipe, WeightsRecipe) else []
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        lines = "".join(line for line in dump(recipe).splitlines(keepends=True) if not line.startswith("device = "))
        return hashlib.sha256(f"{lines}{stats}".encode()).hexdigest()[:16]

    def on_device(self, device: str | None) -> PolicySource:
        """Return the policy with another device than its recipe's; itself for None.

        Raises:
            RecipeError: it has no weights in this process, or there is no such name of a device.
        """
        if device is None:
            return self
        if not isinstance(self.recipe, WeightsRecipe):
            raise RecipeError(
                f"--device {device}: policy '{self.name}' of kind '{self.recipe.kind}' has no weights in this process. "
                "Leave the option out; for a server, give it to `vla serve`."
            )
        return replace(self, recipe=replace(self.recipe, device=device))

    def __str__(self) -> str:
        return str(self.path or self._address())

    def _address(self) -> str:
        return self.recipe.address if isinstance(self.recipe, RemoteRecipe) else ""


def find_policy(name: str | Path) -> PolicySource:
    """Find a policy by name, path, or address such as tcp://127.0.0.1:5580.

    Raises:
        RecipeError: there is no such policy; the message names the nearest.
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
        return PolicySource(_recipe_of(path), path)
    return PolicySource(read(PolicyRecipe, path), path)


def _recipe_of(folder: Path) -> WeightsRecipe:
    """Return the recipe of a bare folder: lerobot's, or by the `model_type` of its config.json, OpenVLA's in doubt."""
    if is_lerobot_folder(folder):
        return LeRobotRecipe(checkpoint=folder)
    model_type = model_type_of(folder)  # None for a damaged file, of which OpenVLA's loader tells what is wrong
    return OpenVLARecipe(checkpoint=folder) if model_type in (None, "openvla") else VLARecipe(checkpoint=folder)
