"""Small functions that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_robot.recipe.env_source import EnvSource
    from vla_robot.recipe.policy_source import PolicySource

EXIT_FAILED = 1
"""Exit status of a command that ran to its end and found a problem."""
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def short_path(path: Path) -> str:
    """Return a path relative to the working folder if it is below it."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted meanwhile
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def shown(policy: PolicySource) -> str:
    """Return a policy as the user types it: its path, relative to the working folder, or its address."""
    return short_path(policy.path) if policy.path else str(policy)


def shown_env(env: EnvSource) -> str:
    """Return a world as the user types it: its recipe's path, relative to the working folder, and a suite's task."""
    return f"{short_path(env.path)}/{env.chosen}" if env.chosen else short_path(env.path)


def on(device: str | None) -> str:
    """Return the end of a policy's name that says its device; empty for a policy without weights here."""
    return "" if device is None else f" on {device}"


def option(metavar: str, aliases: tuple[str, ...] = (), text: str | None = None) -> Any:
    """Return the annotation of an option whose help shows no "(default: None)", since its text says the default.

    Args:
        metavar: name of the value.
        aliases: other names of the option.
        text: the help of an option that several commands share; by default the text below the option.
    """
    import tyro

    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint="", aliases=aliases or None)
