"""What must be equal on the driver and on every node: Python, Ray and this package's source.

Ray pickles objects between its processes, so that another version of a class would be another class.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from vla_robot.core.host.optional import installed


@functools.cache
def present() -> dict[str, str]:
    """Return the versions of this process."""
    return {
        "Python": platform.python_version(),
        "ray": installed("ray") or "none",
        "vla_robot": f"{installed('vla_robot') or 'checkout'}, source {source_hash()}",
    }


def source_hash() -> str:
    """Return a hash of this package's source: a checkout's version does not change with each commit."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return what differs, e.g. "ray 2.59.0 there and 2.60.0 here"; empty if nothing does."""
    return "; ".join(
        f"{name} {there.get(name, 'none')} there and {version} here"
        for name, version in here.items()
        if there.get(name) != version
    )
