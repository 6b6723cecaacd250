"""The package's error tree.

A message answers, in this order: what was wrong, the value seen, what was allowed or available, the closest match, and
the command that helps. The command line prints the message as one paragraph and exits with status 2.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class VlaError(Exception):
    """Root of every error that the user, the recipe, the robot or the network can cause."""


class RecipeError(VlaError):
    """A recipe is missing, misspelt or inconsistent."""


class ContractError(VlaError):
    """Two parts do not fit: a policy and a world, a frame and its camera, an action and its space."""


class CheckpointError(VlaError):
    """A checkpoint folder is incomplete, corrupt, or not what its configuration says."""


class DataError(VlaError):
    """A dataset cannot be read, or holds something that it must not hold."""


class TransportError(VlaError):
    """A peer sent something invalid, is absent, or stopped answering."""


class SessionError(TransportError):
    """A server does not know the session of a request: it was restarted, or serves another client by now."""


class BusyError(TransportError):
    """A peer serves another client at this moment; a later request may succeed."""


class LostError(TransportError):
    """What was asked is gone with its process or its computer, or was ended."""


class PolicyError(VlaError):
    """A policy could not give an action. No other action is sent to the arm instead."""


class NoActionYetError(PolicyError):
    """No action is available at this moment; the loop asks again with the next observation."""


class OverdueError(PolicyError):
    """The request's deadline expired before inference."""


class SupersededError(PolicyError):
    """A newer request of the same client replaced this one."""


class WorldError(VlaError):
    """A world could not be built, reset or stepped."""


class TeleopError(VlaError):
    """A person's device is absent, not permitted, or stopped answering."""


class MissingDependencyError(VlaError):
    """A required optional package is not installed."""


def in_words(error: BaseException) -> str:
    """Return an unexpected exception as part of a sentence: its type, message and place."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


def closest(name: str, options: Iterable[str]) -> str:
    """Return a phrase with the nearest option, or an empty string if none is near.

    >>> closest("lifft", ["lift", "door"])
    "; did you mean 'lift'?"
    >>> closest("zebra", ["lift", "door"])
    ''
    """
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def unknown(what: str, name: object, options: Iterable[str], hint: str = "") -> str:
    """Return the message for a name, or any other value, that is not among `options`.

    >>> unknown("camera", "fronnt", ["front", "wrist"])
    "unknown camera 'fronnt'; did you mean 'front'? Available: front, wrist."
    """
    names = sorted(options)
    near = closest(str(name), names) or "."
    message = f"unknown {what} '{name}'{near} Available: {', '.join(names) or 'none'}."
    return f"{message} {hint}".rstrip()
