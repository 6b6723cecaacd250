"""The map of the rooms, enforced: imports point down only, and the loop's side of the wall stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.source_structure import cycles, full_folders, imported_modules, imports_of, module_of

PACKAGE = "vla_robot"
BENCHMARKS = "benchmarks"
"""Beside the package. It may import every room, and no room imports it."""
LINES = (
    ("core",),
    ("recipe", "transport", "cluster"),
    ("policy", "data", "world", "safety"),
    ("record", "teleop"),
    ("loop", "train", "web"),
    ("evaluate", "serve"),
    ("cli", "testing"),
)
LINE_OF = {room: line for line, rooms in enumerate(LINES) for room in rooms}
SOURCES = sorted((Path(__file__).resolve().parent.parent / PACKAGE).rglob("*.py"))


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == PACKAGE and parts[1] in LINE_OF else None


def forbidden_imports(path: Path, root: Path) -> list[str]:
    module, is_package = module_of(path.relative_to(root))
    here = room_of(module)
    if here is None:
        return []
    rooms = {room_of(name) for name in imported_modules(path.read_text(encoding="utf-8"), module, is_package)}
    return [there for there in rooms if there and there != here and LINE_OF[there] >= LINE_OF[here]]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(p.parents[2])))
def test_imports_point_down_only(path: Path, repository: Path) -> None:
    assert forbidden_imports(path, repository) == []


def test_no_modules_import_each_other_in_a_circle_even_late(repository: Path) -> None:
    named = [(*module_of(path.relative_to(repository)), path.read_text(encoding="utf-8")) for path in SOURCES]
    sources = {module: (text, is_package) for module, is_package, text in named}
    graph = imports_of(sources)
    assert sum(map(len, graph.values())) > len(graph)
    assert cycles(sources) == []


@pytest.mark.parametrize(
    ("line", "is_cycle"),
    [
        ("from vla_robot.a import x", True),
        ("from vla_robot import a", True),
        ("def late():\n    import vla_robot.a", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vla_robot.a import x", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    from vla_robot.a import x", True),
        ("import vla_robot.c", False),
    ],
)
def test_a_circle_is_found_however_late_its_import(line: str, is_cycle: bool) -> None:
    sources = {"vla_robot.a": ("from .b import y", False), "vla_robot.b": (line, False), "vla_robot.c": ("", False)}
    cycle = next(iter(cycles(sources)), [])
    assert (set(cycle) == {"vla_robot.a", "vla_robot.b"}) is is_cycle
    assert bool(cycle) is is_cycle


def test_no_folder_is_a_flat_drawer(repository: Path) -> None:
    files = [
        path
        for top in (PACKAGE, "tests", "benchmarks", "examples", "plugins")
        for path in (repository / top).rglob("*.py")
    ]
    assert len({path.parent for path in files}) > 50
    assert full_folders(files) == {}


def test_every_folder_says_what_it_is_for(repository: Path) -> None:
    silent = [p for p in SOURCES if p.stem == "__init__" and not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert silent == []


def test_every_room_has_its_line(repository: Path) -> None:
    rooms = {p.parent.name for p in (repository / PACKAGE).glob("*/__init__.py")}
    assert rooms <= set(LINE_OF), f"{rooms - set(LINE_OF)} are missing from LINES in this test"


def test_no_room_imports_the_benchmarks(repository: Path) -> None:
    assert (repository / BENCHMARKS / "__init__.py").is_file()
    assert [path for path in SOURCES if imports_benchmarks(path.read_text(encoding="utf-8"))] == []
    assert all(imports_benchmarks(line) for line in ("import benchmarks", "def f():\n from benchmarks.loop import x"))


def imports_benchmarks(source: str) -> bool:
    return any(name.partition(".")[0] == BENCHMARKS for name in imported_modules(source, PACKAGE, True))


@pytest.mark.parametrize(
    "line",
    [
        "from vla_robot.loop import control_loop",
        "import vla_robot.cli.main",
        "from vla_robot import serve",
        "from ..safety import limits",
        "def lazily():\n    from vla_robot.safety.limits import RangeGuard",
    ],
)
def test_an_import_sideways_or_up_is_caught(tmp_path: Path, line: str) -> None:
    file = tmp_path / PACKAGE / "world" / "lift.py"
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert len(forbidden_imports(file, tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vla_robot.loop", {"torch"}),
        ("vla_robot.loop.control_loop", {"torch"}),
        ("vla_robot.serve.world.client", {"torch", "mujoco"}),
        ("vla_robot.cli.bridge", {"torch", "mujoco"}),
        ("vla_robot.cli.main", {"tyro"}),
        ("vla_robot.recipe", {"torch"}),
        ("vla_robot.policy.onnx.policy", {"torch", "transformers", "timm", "safetensors", "onnx"}),
        ("vla_robot.testing", {"torch", "mujoco", "h5py", "pyarrow", "cv2"}),
    ],
)
def test_an_import_brings_no_heavy_package(module: str, heavy: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert heavy & set(done.stdout.split()) == set()
