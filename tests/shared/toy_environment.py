"""An environment whose one package is a wheel made here: real uv, no network."""

from __future__ import annotations

import hashlib
import sysconfig
import zipfile
from pathlib import Path

import pytest

from vla_robot.world.environments.location import Environment, find_environment

RECIPE = """\
python = "3.12"
lock = "toy.lock"
download_mb = 1
disk_mb = 1
start_timeout_s = 240
reset_timeout_s = 230
step_timeout_s = 220
"""


def wheel_of(folder: Path, version: str = "1.0") -> tuple[Path, str]:
    """Make a wheel that leads to this environment's packages, so that a child has numpy; return it and its hash."""
    folder.mkdir(exist_ok=True)
    path = folder / f"toy-{version}-py3-none-any.whl"
    info = f"toy-{version}.dist-info"
    files = {
        "toy.pth": sysconfig.get_paths()["purelib"] + "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def toy_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return the environment of a recipe in the working folder, not made yet; the cache is the test's own."""
    wheel, digest = wheel_of(tmp_path / "wheels")
    folder = tmp_path / "envs" / "environments"
    folder.mkdir(parents=True)
    (folder / "toy.toml").write_text(RECIPE)
    (folder / "toy.lock").write_text(f"toy==1.0 \\\n    --hash=sha256:{digest}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_NO_INDEX": "1",
        "UV_NO_CONFIG": "1",
        "UV_FIND_LINKS": str(wheel.parent),
        "UV_LINK_MODE": "copy",
    }.items():
        monkeypatch.setenv(name, value)
    return find_environment("toy")
