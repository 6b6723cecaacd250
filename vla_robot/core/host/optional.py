"""Is an optional package really installed?

`import datasets` succeeds as an empty namespace when a folder of that name lies in the working directory, so presence
is asked of the package metadata and not of the import system.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

from vla_robot.core.errors import MissingDependencyError


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require(distribution: str, extra: str, purpose: str) -> str:
    """The installed version.

    Raises:
        MissingDependencyError: it is absent; the message names the extra that brings it.
    """
    version = installed(distribution)
    if version is None:
        raise MissingDependencyError(
            f"{purpose} needs the package '{distribution}', which is not installed. "
            f"Install it with `pip install 'vla_robot[{extra}]'`, or run `make setup` in a checkout."
        )
    return version


def attribute(path: str) -> Any:
    """What "package.module:name" means, its module imported now. For our own tables, never for a recipe's text."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
