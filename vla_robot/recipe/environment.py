"""EnvironmentRecipe: a Python environment of its own, for worlds whose packages do not fit this one.

LIBERO needs robosuite 1.4.0 and this package robosuite 1.5.1, so that they cannot share an environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vla_robot.core.errors import RecipeError
from vla_robot.core.untrusted import read_file

MAX_LOCK_BYTES = 2**22
MAX_TIMEOUT_S = 3600.0
MAX_CPUS = 1024
MIN_PYTHON = (3, 12)
"""The child process imports this very package, which needs it."""

_PYTHON = re.compile(r"3\.(\d{1,2})")
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecipe:
    """A Python environment that `vla install NAME` makes with uv.

    Attributes:
        description: one line for `vla list`.
        python: Python's version, e.g. "3.12".
        lock: file of packages, one `name==version` with its hashes each, relative to this recipe. It names no address:
            uv takes them from the index that you configured, and refuses a file with another hash.
        build: pinned packages that build those without a wheel, e.g. "setuptools==80.9.0".
        download_mb: size of the download [MB], as `vla install` announces it.
        disk_mb: size on the disk [MB].
        start_timeout_s: time limit of a world's start there [s].
        reset_timeout_s: time limit of a reset [s].
        step_timeout_s: time limit of a control step [s]; the first one may compile code.
        world_mb: main memory of one world [MB], by which `vla eval` limits how many it opens at once.
        world_cpus: processor cores of one world, by which `vla eval` places worlds on this computer or on a cluster.
        scored_by: packages whose version decides a benchmark's score; reports name their versions.
    """

    description: str = ""
    python: str
    lock: Path
    build: tuple[str, ...] = ()
    download_mb: int
    disk_mb: int
    start_timeout_s: float = 180.0
    reset_timeout_s: float = 60.0
    step_timeout_s: float = 30.0
    world_mb: int = 1000
    world_cpus: float = 1.0
    scored_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        version = _PYTHON.fullmatch(self.python)
        if version is None or (3, int(version.group(1))) < MIN_PYTHON:
            raise RecipeError(f"python '{self.python}' is not a version such as 3.12, which is the oldest allowed")
        for name in self.build:
            if not _PINNED.fullmatch(name):
                raise RecipeError(f"build: '{name}' is not of the form name==version")
        if min(self.download_mb, self.disk_mb, self.world_mb) < 0:
            raise RecipeError("download_mb, disk_mb and world_mb must be at least 0")
        if not 0 < self.world_cpus <= MAX_CPUS:
            raise RecipeError(f"world_cpus {self.world_cpus:g} is outside 0 to {MAX_CPUS}")
        for name in ("start_timeout_s", "reset_timeout_s", "step_timeout_s"):
            if not 0 < getattr(self, name) <= MAX_TIMEOUT_S:
                raise RecipeError(f"{name} {getattr(self, name):g} is outside 0 to {MAX_TIMEOUT_S:g}")

    def packages(self) -> str:
        """Return the text of the lock, checked: pinned packages with hashes, and nothing else.

        A line could otherwise name an index, a file or a program's source: pip's format allows them.

        Raises:
            RecipeError: the file cannot be read, or has another line.
        """
        try:
            text = read_file(self.lock, MAX_LOCK_BYTES, RecipeError).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"lock: {self.lock} cannot be read: {error}.") from error
        names = _pinned_names(text, self.lock)
        if not names:
            raise RecipeError(f"lock: {self.lock} names no package.")
        return text

    def score_versions(self) -> dict[str, str]:
        """Return the version in the lock of each package of `scored_by`.

        Raises:
            RecipeError: the lock cannot be read, or lacks one of them.
        """
        versions = dict(pinned.split("==") for pinned in _pinned_names(self.packages(), self.lock))
        if absent := [name for name in self.scored_by if name not in versions]:
            raise RecipeError(f"scored_by: {self.lock} has no {', '.join(absent)}")
        return {name: versions[name] for name in self.scored_by}

    def num_packages(self) -> int:
        """Return the number of packages in the lock."""
        return len(_pinned_names(self.packages(), self.lock))


def _pinned_names(text: str, lock: Path) -> list[str]:
    """Return "name==version" of each package. Raises RecipeError for a line of another form, or without a hash."""
    names: list[str] = []
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not _PINNED.fullmatch(words[0]) or not words[1:] or not all(_HASH.fullmatch(word) for word in words[1:]):
            raise RecipeError(
                f"lock: {lock}: entry {number} is '{line.strip()[:60]}', expected name==version and its "
                "--hash=sha256:... Make it with `uv pip compile --generate-hashes --no-emit-index-url --no-annotate`."
            )
        names.append(words[0])
    return names
