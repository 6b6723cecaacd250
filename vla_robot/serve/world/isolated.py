"""Program of a world's child process in an environment of its own: `PYTHON -I isolated.py RECIPE [--privileged]`.

That environment holds no vla_robot. This file makes the package that it lies in importable there, alone: its folder's
neighbours are the parent's packages, which must not be found. Both sides thus always run the same version.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Serve the world of one recipe; see `vla_robot.serve.world.server`."""
    _make_importable(Path(__file__).resolve().parents[2])
    from vla_robot.serve.world.server import main as serve

    return serve()


def _make_importable(package: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None  # the file exists: this one lies below it
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
