"""Checks whether optional packages are installed.

`import datasets` succeeds as an empty namespace if the working directory has a folder of that name, so the package
metadata is checked and not the import system.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

from vla_robot.core.errors import MissingDependencyError


def installed(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require(distribution: str, extra: str, purpose: str) -> str:
    """Return the installed version of a distribution.

    Raises:
        MissingDependencyError: it is absent; the message names the extra that includes it.
    """
    version = installed(distribution)
    if version is None:
        raise MissingDependencyError(
            f"{purpose} needs the package '{distribution}', which is not installed. "
            f"Install it with `pip install 'vla_robot[{extra}]'`, or run `make setup` in a checkout."
        )
    return version


def attribute(path: str) -> Any:
    """Import "package.module:name" and return it. Only for tables in this package, never for a recipe's text."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
