"""Renamed words of the command line: the old word works for one more release, and a note names the new one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

RENAMED: Mapping[str, Mapping[str, str]] = {
    "record": {"--by": "--source", "--keep": "--save"},
    "run": {"--keep": "--save"},
    "keys": {"pin": "trust", "unpin": "distrust"},
    "list": {"hands": "teleoperators"},
}
"""Verb -> old word -> new word. A word without dashes is the first that is neither an option nor its value."""


def with_new_words(verb: str, words: Sequence[str]) -> list[str]:
    """Return the command line with the new words; each change is noted on stderr.

    Args:
        verb: the command.
        words: the words after the verb.
    """
    renamed = RENAMED.get(verb, {})
    first = _first_positional(words)
    made: list[str] = []
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in renamed and (option.startswith("--") or index == first):
            _tell(option, renamed[option])
            word = f"{renamed[option]}{equals}{value}"
        made.append(word)
    return made


def _first_positional(words: Sequence[str]) -> int | None:
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if not word.startswith("-") and (not before.startswith("--") or "=" in before):
            return index
    return None


def _tell(old: str, new: str) -> None:
    print(f"note: '{old}' is called '{new}' now; the old name works for one more release.", file=sys.stderr)
