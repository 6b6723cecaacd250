"""Structure of source code: modules that import each other, full folders, and ports."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath

MAX_FILES = 15
"""Largest number of Python files in one folder, beside its __init__."""


def module_of(path: PurePath) -> tuple[str, bool]:
    """Return a module's name from its path relative to the repository's root, and whether it is an __init__."""
    parts = path.with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return ".".join(parts[:-1] if is_package else parts), is_package


def imported_modules(source: str, module: str, is_package: bool, types: bool = True) -> Iterator[str]:
    """Yield absolute names of all imports of a file, lazy ones included, with or without those under TYPE_CHECKING."""
    parts = module.split(".")
    for node in ast.walk(_tree(source)) if types else executed_nodes(_tree(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            # `from vla_robot import loop` names a room only in its aliases.
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree without the bodies of `if TYPE_CHECKING:`."""
    yield node
    skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
    for below in ast.iter_child_nodes(node):
        if below not in skipped:
            yield from executed_nodes(below)


def imports_of(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Return module -> modules of `sources` that it imports, lazily or not.

    Args:
        sources: module -> its text, and whether it is a package's __init__.
    """
    graph: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        names = set(imported_modules(source, module, is_package, types=False))
        # `from package import module` names both; the package is meant where no such module exists.
        packages = {name for name in names if any(other.rpartition(".")[0] == name for other in names & set(sources))}
        graph[module] = (names & set(sources)) - packages - {module}
    return graph


def cycles(sources: Mapping[str, tuple[str, bool]]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or not; see `imports_of`."""
    return sorted(group for group in components(imports_of(sources)) if len(group) > 1)


def components(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield strongly connected components, by Tarjan's algorithm; most have one module."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        number[name] = low[name] = len(number)
        path.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in path:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            start = path.index(name)
            yield sorted(path[start:])
            del path[start:]

    for name in sorted(graph):
        if name not in number:
            yield from visit(name)


def full_folders(paths: Iterable[PurePath]) -> dict[str, int]:
    """Return the folders of more than MAX_FILES Python files, beside `__init__` and `conftest`."""
    counts = Counter(str(path.parent) for path in paths if path.stem not in ("__init__", "conftest"))
    return {folder: count for folder, count in counts.most_common() if count > MAX_FILES}


def protocols(source: str) -> list[str]:
    """Return the names of the classes that derive from Protocol."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return [c.name for c in classes if any("Protocol" in ast.unparse(base) for base in c.bases)]
