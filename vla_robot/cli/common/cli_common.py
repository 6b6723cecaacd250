"""Small things that several verbs say the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_robot.recipe.policy_source import PolicySource

EXIT_FAILED = 1
"""What was asked for was done, and the answer is bad."""
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def short_path(path: Path) -> str:
    """Relative to here when it lies below here."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted meanwhile
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def shown(policy: PolicySource) -> str:
    """A policy as a person would type it: its path, relative to here, or its address."""
    return short_path(policy.path) if policy.path else str(policy)


def option(metavar: str) -> Any:
    """A command-line option whose help needs no "(default: None)": the text says what its absence means."""
    import tyro

    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")
