"""Which classes implement a port, by the members that their source defines: nothing of the package is imported.

A class implements a port when it, or a class that it inherits from, defines each member: a method that can be called as
the port's is and gives the same, or a property, a field or an attribute of `self` in the place of a property. One that
inherits from ABC itself is built by its subclasses alone, and left out.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

type Member = ast.FunctionDef | Literal["value", "anything"]
"""A method, something that is no method, or a name that may be either."""

NARROWER = {"Mapping": ("dict",), "Sequence": ("list", "tuple"), "AbstractContextManager": ("Iterator",)}
"""What a method may give where its port's gives the first."""


@dataclass(frozen=True)
class Class:
    """A class of some source.

    Attributes:
        name: without its module.
        file: where it is.
        bases: names of those that it inherits from, without their modules.
        members: of its own.
    """

    name: str
    file: str
    bases: tuple[str, ...]
    members: Mapping[str, Member]


def implementations(sources: Mapping[str, str], ports: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Port -> class that implements it -> its file.

    Args:
        sources: file -> text, of the package.
        ports: file -> text, of the Protocols; the same files may be among the sources.
    """
    classes = [cls for file, text in sources.items() for cls in _classes(file, text)]
    named = {cls.name: cls for cls in classes}  # a base is looked up by its name
    protocols = {cls.name: cls for file, text in ports.items() for cls in _classes(file, text) if _is_port(cls)}
    made = [(cls, _all_members(cls, named)) for cls in classes if not _is_port(cls) and "ABC" not in cls.bases]
    return {
        name: {cls.name: cls.file for cls, members in made if _fits(members, _all_members(port, protocols))}
        for name, port in protocols.items()
    }


@functools.cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def _is_port(cls: Class) -> bool:
    return "Protocol" in cls.bases


def _classes(file: str, text: str) -> Iterator[Class]:
    for node in ast.walk(_tree(text)):
        if isinstance(node, ast.ClassDef):
            bases = (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
            yield Class(node.name, file, tuple(bases), dict(_members(node)))


def _members(cls: ast.ClassDef) -> Iterator[tuple[str, Member]]:
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
    for method in methods:
        yield from _attributes(method)
    for node in cls.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, _defined(node)
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), "anything" if "Callable" in ast.unparse(node.annotation) else "value"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), _assigned(node.value)


def _defined(function: ast.FunctionDef) -> Member:
    is_property = any("property" in ast.unparse(decorator) for decorator in function.decorator_list)
    return "value" if is_property else function


def _attributes(method: ast.FunctionDef) -> Iterator[tuple[str, Member]]:
    """Those that a method gives `self`."""
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr, "anything"


def _assigned(value: ast.expr) -> Member:
    return "anything" if isinstance(value, ast.Name | ast.Attribute | ast.Lambda | ast.Call) else "value"


def _all_members(cls: Class, named: Mapping[str, Class]) -> dict[str, Member]:
    """Its own, and those that it inherits."""
    members: dict[str, Member] = {}
    for base in reversed(cls.bases):
        if base in named and base != cls.name:
            members.update(_all_members(named[base], named))
    return {**members, **cls.members}


def _fits(members: Mapping[str, Member], port: Mapping[str, Member]) -> bool:
    return bool(port) and all(name in members and _serves(members[name], wanted) for name, wanted in port.items())


def _serves(member: Member, wanted: Member) -> bool:
    if "anything" in (member, wanted):
        return True
    if isinstance(member, str) or isinstance(wanted, str):
        return isinstance(member, str) and isinstance(wanted, str)
    return _takes(member.args, wanted.args) and _gives(member, wanted)


def _takes(offered: ast.arguments, asked: ast.arguments) -> bool:
    """Whether a method can be called with what the port's takes."""
    names, wanted = [arg.arg for arg in offered.args], [arg.arg for arg in asked.args]
    required = len(names) - len(offered.defaults)
    is_prefix = names[: len(wanted)] == wanted or (offered.vararg is not None and wanted[: len(names)] == names)
    return is_prefix and required <= len(wanted) and all(offered.kw_defaults)


def _gives(method: ast.FunctionDef, wanted: ast.FunctionDef) -> bool:
    given, promised = (ast.unparse(f.returns).strip("'\"") if f.returns else "" for f in (method, wanted))
    head = given.partition("[")[0]
    is_any = len(promised) == 1 and promised.isupper()  # a type parameter of the port
    return not given or is_any or given == promised or head in NARROWER.get(promised.partition("[")[0], ())


def built_as(sources: Mapping[str, str], ports: Collection[str]) -> Iterator[tuple[str, str]]:
    """(port, name) of what functions call whose result is annotated as a port: a class, or another function."""
    for text in sources.values():
        for function in ast.walk(_tree(text)):
            if isinstance(function, ast.FunctionDef) and function.returns and ast.unparse(function.returns) in ports:
                for node in ast.walk(function):
                    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                        yield ast.unparse(function.returns), ast.unparse(node.value.func)


def class_definitions(text: str) -> list[str]:
    """Names of all classes of a source."""
    return [node.name for node in ast.walk(_tree(text)) if isinstance(node, ast.ClassDef)]
