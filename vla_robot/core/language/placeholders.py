"""The place of an object's words in an instruction: "lift the {target} cube"."""

from __future__ import annotations

import re
from string import Formatter

from vla_robot.core.errors import RecipeError

TARGET = "target"
"""Placeholder in the instruction of a task that draws its object for each episode."""


def placeholders(text: str) -> set[str]:
    """Return the names in braces.

    Raises:
        RecipeError: a brace stands alone.
    """
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise RecipeError(f"'{text}': {error}") from error


def words_in(instruction: str, pattern: str) -> dict[str, str] | None:
    """Return the words of an instruction at the pattern's {target}; empty if it has none, None if they do not match."""
    by_regex = re.escape(pattern).replace(re.escape(f"{{{TARGET}}}"), f"(?P<{TARGET}>.+)")
    found = re.fullmatch(by_regex, instruction)
    return None if found is None else found.groupdict()
