"""Measures the code's structure: files and lines by room, folders, cycles, ports, functions.

    python benchmarks/measure_house.py                 of this checkout
    python benchmarks/measure_house.py 37a059b HEAD    of two commits, side by side

A cycle is counted over all imports of modules of the package, those inside functions included; imports under
TYPE_CHECKING are left out. Only what git tracks is counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, this folder is no package

from benchmarks.source_structure import MAX_FILES, cycles, full_folders, module_of, protocols

PACKAGE = "vla_robot"
PERCENTILES = (50, 90, 99, 100)

Sources = dict[PurePosixPath, str]
"""Path from the repository's root -> text."""


@dataclass(frozen=True)
class Function:
    """One function or method.

    Attributes:
        lines: from `def` to its end, without its docstring.
        is_annotated: whether all arguments and the result have a type.
    """

    lines: int
    is_annotated: bool


def sources_of(commit: str) -> Sources:
    """Return every Python file of a commit."""
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        paths = [member for member in files.getmembers() if member.isfile() and member.name.endswith(".py")]
        return {PurePosixPath(m.name): _read(files, m) for m in paths}


def _read(files: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = files.extractfile(member)
    assert file is not None
    return file.read().decode()


def inside(sources: Sources, folder: str) -> Sources:
    return {path: text for path, text in sources.items() if path.parts[0] == folder}


def rooms(package: Sources) -> dict[str, tuple[int, int]]:
    """Return room -> number of its files and lines."""
    files, lines = Counter[str](), Counter[str]()
    for path, text in package.items():
        room = path.parts[1] if len(path.parts) > 2 else "(top)"
        files[room] += 1
        lines[room] += text.count("\n")
    return {room: (files[room], lines[room]) for room in sorted(files)}


def functions(package: Sources) -> list[Function]:
    return [
        _function(node)
        for text in package.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        told = node.body[0]
        assert told.end_lineno is not None
        lines -= told.end_lineno - told.lineno + 1
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    typed = all(each.annotation is not None or each.arg in ("self", "cls") for each in named)
    return Function(lines, typed and node.returns is not None)


def ports(package: Sources) -> Counter[str]:
    """Return file -> number of public Protocols that it defines."""
    return Counter(str(path) for path, text in package.items() for name in protocols(text) if name[0] != "_")


def _modules(package: Sources) -> Iterator[tuple[str, bool, str]]:
    for path, text in package.items():
        yield (*module_of(path), text)


def measures(commit: str) -> dict[str, str]:
    """Return measure -> its value at a commit."""
    sources = sources_of(commit)
    package, tests = inside(sources, PACKAGE), inside(sources, "tests")
    made = functions(package)
    lengths = np.array([each.lines for each in made])
    files = np.array([text.count("\n") for text in package.values()])
    full = full_folders(package) | full_folders(tests)
    groups = cycles({name: (text, is_package) for name, is_package, text in _modules(package)})
    found = {
        f"{PACKAGE}: files, lines": f"{len(package)}, {sum(files)}",
        "tests: files, lines": f"{len(tests)}, {sum(text.count(chr(10)) for text in tests.values())}",
        "benchmarks outside of the package: lines": str(_lines(inside(sources, "benchmarks"))),
        f"folders of more than {MAX_FILES} files": ", ".join(f"{f} {n}" for f, n in full.items()) or "none",
        "cycles, lazy imports counted": "; ".join(", ".join(group) for group in groups) or "none",
        "files with ports": ", ".join(f"{path.removeprefix(PACKAGE + '/')} {n}" for path, n in ports(package).items()),
        f"lines of a function, {_named()}": _percentiles(lengths),
        f"lines of a file, {_named()}": _percentiles(files),
        "functions, of them annotated": f"{len(made)}, {np.mean([each.is_annotated for each in made]):.1%}",
    }
    return found | {f"room {room}: files, lines": f"{n}, {lines}" for room, (n, lines) in rooms(package).items()}


def _lines(sources: Sources) -> int:
    return sum(text.count("\n") for text in sources.values())


def _named() -> str:
    return " / ".join("largest" if p == 100 else f"p{p}" for p in PERCENTILES)


def _percentiles(values: np.ndarray) -> str:
    return " / ".join(str(int(value)) for value in np.percentile(values, PERCENTILES, method="inverted_cdf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", default=["HEAD"], help="HEAD by default")
    commits = parser.parse_args().commits
    columns = [measures(commit) for commit in commits]
    print("| |" + "|".join(commits) + "|")
    print("|---|" + "---|" * len(commits))
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"| {name} | " + " | ".join(column.get(name, "-") for column in columns) + " |")


if __name__ == "__main__":
    sys.exit(main())
