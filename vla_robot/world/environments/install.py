"""Makes an environment with uv, and removes it.

claim the folder -> remove what a killed process left -> uv venv -> uv pip install -> try it -> write the mark
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vla_robot.core.errors import MissingDependencyError, WorldError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import make_folder, write_whole, writing
from vla_robot.world.environments.location import MARK, PACKAGES, VENV, Environment, environments_folder, others_of

BUILD = "build.txt"
PROBE_TIMEOUT_S = 300.0

_CHILD = Path(__file__).resolve().parents[2] / "serve" / "world" / "isolated.py"
"""Program of a world's child process; with --help it only imports what such a process needs."""


def make(environment: Environment) -> float:
    """Make an environment that is not whole, and return how long it took [s]. uv writes its progress to stderr.

    Raises:
        MissingDependencyError: uv is absent, or could not make it; what it had made is removed.
        DataError: another process makes it at this moment, or the disk refuses.
        WorldError: the disk has too little room, or the environment cannot run this package.
    """
    uv = find_uv()
    _require_room(environment)
    started_s = time.monotonic()
    with writing(environments_folder()):
        make_folder(environments_folder())
    with Claim(environment.folder):
        _empty(environment)
        try:
            _fill(environment, uv)
            _probe(environment)
        except BaseException:  # also Ctrl-C
            _empty(environment)
            raise
        took_s = time.monotonic() - started_s
        _mark(environment, uv, took_s)
    return took_s


def make_once(environment: Environment) -> None:
    """Make an environment unless it is whole; of several processes of a computer, one makes it and the others wait.

    Raises:
        VlaError: as `make`.
    """
    if environment.is_made:
        return
    folder = environments_folder()
    with writing(folder):
        make_folder(folder)
        lock = (folder / f".{environment.folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not environment.is_made:
            make(environment)


def remove(environment: Environment) -> list[Path]:
    """Remove an environment and those of the same name that earlier lists gave; return the removed folders.

    Raises:
        DataError: another process makes one of them at this moment, or the disk refuses.
    """
    removed: list[Path] = []
    for folder in (environment.folder, *others_of(environment)):
        if folder.is_dir():
            with writing(folder), Claim(folder):
                (folder / MARK).unlink(missing_ok=True)  # first: a removal that is interrupted leaves it half-made
                shutil.rmtree(folder)
            removed.append(folder)
    return removed


def disk_mb(environment: Environment) -> float:
    """Return the space that an environment takes [MB]; files that uv links from its cache count, too."""
    inodes = {(stat.st_dev, stat.st_ino): stat.st_blocks for stat in map(os.lstat, environment.folder.rglob("*"))}
    return sum(inodes.values()) * 512 / 1e6


def find_uv() -> str:
    """Return the path of uv: the one beside this interpreter, or the one on PATH.

    Raises:
        MissingDependencyError: there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise MissingDependencyError(
            "environments are made with uv, which is not installed. Install it with `pip install uv` (it is part of "
            "`pip install 'vla_robot[sim]'`)."
        )
    return found


def _require_room(environment: Environment) -> None:
    folder = environments_folder()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free_mb = shutil.disk_usage(there).free / 1e6
    if free_mb < environment.recipe.disk_mb:
        raise WorldError(
            f"the environment '{environment.name}' needs {environment.recipe.disk_mb / 1000:.2g} GB, and {there} has "
            f"{free_mb / 1000:.2g} GB left. Make room there, or set XDG_CACHE_HOME to a folder on another disk."
        )


def _fill(environment: Environment, uv: str) -> None:
    recipe, folder = environment.recipe, environment.folder
    with writing(folder):
        write_whole(folder / PACKAGES, recipe.packages().encode())
        write_whole(folder / BUILD, "".join(f"{name}\n" for name in recipe.build).encode())
    _run(environment, [uv, "venv", "--quiet", "--no-project", "--python", _interpreter(recipe.python), VENV])
    install = [uv, "pip", "install", "--python", str(environment.python), "--no-deps", "--require-hashes"]
    _run(environment, [*install, "--build-constraints", BUILD, "--requirements", PACKAGES])


def _interpreter(version: str) -> str:
    """Return this process's own Python if it has that version, else the version, which uv finds or fetches."""
    is_ours = version == f"{sys.version_info.major}.{sys.version_info.minor}"
    return str(getattr(sys, "_base_executable", sys.executable)) if is_ours else version


def _run(environment: Environment, command: Sequence[str]) -> None:
    """Run uv in the environment's folder, where no project's settings change what it does."""
    variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    status = subprocess.run(command, cwd=environment.folder, env=variables, check=False).returncode
    if status:
        raise MissingDependencyError(
            f"the environment '{environment.name}' could not be made: uv ended with status {status}; its own message "
            "stands above. The packages come from the index that pip and uv use here, so that a network or a mirror is "
            f"needed. Nothing is left over; `{environment.command}` tries again."
        )


def _probe(environment: Environment) -> None:
    """Raise WorldError unless the environment's interpreter imports what a world's child process needs."""
    command = [str(environment.python), "-I", str(_CHILD), "--help"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorldError(f"the interpreter of the environment '{environment.name}' does not run: {error}.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise WorldError(f"the environment '{environment.name}' cannot run a world of this package: {said}.")


def _mark(environment: Environment, uv: str, took_s: float) -> None:
    version = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    made_at = datetime.now().astimezone().isoformat(timespec="seconds")
    told = {"made_at": made_at, "seconds": round(took_s), "with": version, "python": environment.recipe.python}
    with writing(environment.folder):
        write_whole(environment.folder / MARK, json.dumps(told, indent=1).encode())


def _empty(environment: Environment) -> None:
    """Remove what is in the folder, but not the claim on it."""
    with writing(environment.folder):
        (environment.folder / MARK).unlink(missing_ok=True)
        for name in (PACKAGES, BUILD):
            (environment.folder / name).unlink(missing_ok=True)
        if (environment.folder / VENV).exists():
            shutil.rmtree(environment.folder / VENV)
