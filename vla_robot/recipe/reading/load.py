"""Reads TOML into frozen dataclasses. The annotations are the schema; no text of a recipe is ever executed.

    @dataclass(frozen=True)
    class Camera:                       [[cameras]]
        name: str                       name = "front"
        width: int = 224                widht = 112

    envs/lift.toml: cameras[0].widht: unknown key 'widht'; did you mean 'width'? Available: name, width.

Accepted annotations: bool, int, float (an int is converted), str, Path (relative to the recipe's folder), Url, Literal,
`X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, and dataclasses of these. A rule beyond types is in the
dataclass's `__post_init__`, which raises RecipeError; its message is reported with the others.

A base with `kinds` means the dataclass that the table's key `kind` chooses; see reading/kinds.py.

One level of inheritance: a recipe with `base = "NAME"` overrides NAME, table by table; NAME must have no base.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vla_robot.core.errors import RecipeError, closest, unknown
from vla_robot.core.untrusted import malformed, read_file, shortened
from vla_robot.recipe.reading.find import Kind, find
from vla_robot.recipe.reading.kinds import KIND_KEY, Kinds, concrete, family_of, kind_name, kinds_of
from vla_robot.recipe.reading.renamed import inside, is_array, is_table, tell, with_new_keys
from vla_robot.recipe.reading.url import MARK, Url

BASE_KEY = "base"
MAX_BYTES = 2**20
"""Largest recipe; those of this package have up to 3 kB."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
MAX_DEPTH = 32
"""Deepest nesting of tables and arrays."""

_FOLDERS: dict[str, Kind] = {
    "EnvRecipe": "envs",
    "PolicyRecipe": "policies",
    "DatasetRecipe": "datasets",
    "SourceRecipe": "datasets",
    "MixtureRecipe": "datasets",
    "LaunchRecipe": "launch",
    "FinetuneRecipe": "launch",
    "PretrainRecipe": "launch",
    "TeleoperatorRecipe": "teleoperators",
    "EnvironmentRecipe": "environments",
}

_TYPE_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def kind_of(schema: type) -> Kind:
    """Return the kind of folder that holds recipes of a schema, or of its family."""
    return next(_FOLDERS[owner.__name__] for owner in schema.__mro__ if owner.__name__ in _FOLDERS)


def read[T](schema: type[T], name_or_path: str | Path) -> T:
    """Read and check the recipe of a name or path.

    Raises:
        RecipeError: it does not exist, is not TOML, or does not fit the schema; the message lists every problem.
    """
    path = find(kind_of(schema), name_or_path)
    return parse(schema, read_table(schema, path), path)


def read_table(schema: type, path: Path) -> dict[str, Any]:
    """Return the raw table of one recipe, merged into its base."""
    table = read_toml(path)
    if BASE_KEY not in table or BASE_KEY in {f.name for f in dataclasses.fields(schema)}:
        return table
    base_path = find_base(path, table.pop(BASE_KEY), schema)
    base = read_toml(base_path)
    if BASE_KEY in base:
        raise RecipeError(
            f"{path}: base: '{base_path}' has itself the base '{base[BASE_KEY]}'; only one level is allowed. "
            f"Name '{base[BASE_KEY]}' directly, or copy the keys."
        )
    schema = concrete(schema, {**base, **table})
    base = _anchored(schema, with_new_keys(schema, base, base_path), base_path.parent)
    return _merged(base, with_new_keys(schema, table, path))


def parse[T](schema: type[T], table: Mapping[str, Any], source: str | Path) -> T:
    """Make an instance of `schema` from plain data.

    Args:
        schema: a frozen dataclass.
        table: table read from TOML.
        source: name for messages; if it is a path, `Path` fields are relative to its folder (or to it, if it is one).

    Raises:
        RecipeError: the data does not fit the schema; the message has every problem, one per line.
    """
    reader = _Reader(folder=_folder_of(source) if isinstance(source, Path) else Path())
    instance = reader.dataclass(schema, with_new_keys(schema, table, source), "")
    if reader.problems:
        raise RecipeError("\n".join(f"{source}: {problem}" for problem in reader.problems))
    return instance


def read_toml(path: Path) -> dict[str, Any]:
    """Read the raw table of one TOML file; a policy folder's is in its recipe.toml.

    Raises:
        RecipeError: it cannot be read, or is not TOML; the message has line and column.
    """
    path = path / "recipe.toml" if path.is_dir() else path
    try:
        table = tomllib.loads(read_file(path, MAX_BYTES, RecipeError).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}.") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: not valid TOML: its arrays or tables are nested too deeply.") from error
    except ValueError as error:  # TOMLDecodeError is one; so is a number of more than 4300 digits
        raise RecipeError(f"{path}: not valid TOML: {error}. Strings need quotes, tables look like [name].") from error
    if not _is_shallow(table):
        raise RecipeError(f"{path}: its arrays or tables are nested more than {MAX_DEPTH} deep.")
    return table


def find_base(path: Path, base: Any, among: type | Kind) -> Path:
    """Return the base of the recipe at `path`: a neighbour of that name, or what `find` finds by it.

    Args:
        path: path of the derived recipe.
        base: name of the base.
        among: the kind of recipe, or a schema of that kind.

    Raises:
        RecipeError: there is no such recipe.
    """
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: expected the name of another recipe, got {base!r}.")
    neighbour = path.parent / f"{base.removesuffix('.toml')}.toml"
    with malformed(f"{path}: base", RecipeError, also=(OSError,)):
        if neighbour.is_file():
            return neighbour
    return find(kind_of(among) if isinstance(among, type) else among, base)


def _is_shallow(value: Any) -> bool:
    """Return whether tables and arrays are nested at most MAX_DEPTH deep, so that recursion needs no other guard."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return True
    return False


def _items(value: Any) -> Sequence[Any]:
    if is_table(value):
        return list(value.values())
    return value if is_array(value) else ()


def _folder_of(recipe: Path) -> Path:
    return recipe if recipe.is_dir() else recipe.parent


def _anchored(hint: Any, value: Any, folder: Path) -> Any:
    """Make the paths of a base's data absolute, since they are relative to the base, not to the derived recipe."""
    if isinstance(value, str) and MARK in value:
        return value
    if hint is Path and isinstance(value, str):
        with malformed(f"{folder}: the path '{shortened(value)}'", RecipeError, also=(RuntimeError,)):
            return str(folder / Path(value).expanduser())
    if dataclasses.is_dataclass(hint) and is_table(value):
        hints = get_type_hints(hint)
        return {name: _anchored(hints.get(name), below, folder) for name, below in value.items()}
    return inside(hint, value, lambda inner, item: _anchored(inner, item, folder))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; other values are replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if is_table(below) and is_table(value) else value
    return result


class _Reader:
    """Converts plain data by annotations and collects every problem.

    A value with a problem becomes None, which is never used, since `parse` raises.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def dataclass(self, schema: type, value: Any, key: str) -> Any:
        if not is_table(value):
            return self._problem(key, f"expected a table, got {_seen(value)}")
        before = len(self.problems)
        if kinds := kinds_of(schema):
            schema = self._chosen(kinds, value, key) or schema
        if len(self.problems) > before:
            return None
        hints = get_type_hints(schema)
        fields = {f.name: f for f in dataclasses.fields(schema) if f.init}
        for name in value:
            if name not in fields:
                self._unknown_key(schema, name, value[name], key, fields)
        for name, field in fields.items():
            if name not in value and _is_required(field):
                self._problem(_join(key, name), f"this key is missing; it must be {_describe(hints[name])}")
        arguments = {n: self.value(hints[n], value[n], _join(key, n)) for n in fields if n in value}
        if len(self.problems) > before:
            return None
        try:
            return schema(**arguments)
        except RecipeError as error:
            return self._problem(key, str(error).rstrip("."))

    def _chosen(self, kinds: Kinds[Any], table: Mapping[str, Any], key: str) -> type | None:
        """Return the dataclass of the table's kind; add a problem and return None if it has no usable kind."""
        here, kind = _join(key, KIND_KEY), kinds.chosen(table)
        if kind is None:
            return self._problem(here, f"this key is missing; it must be one of {', '.join(kinds.names())}")
        try:
            return kinds.schema(kind)
        except RecipeError as error:
            return self._problem(here, str(error).rstrip("."))

    def _unknown_key(self, schema: type, name: str, value: Any, key: str, fields: Collection[str]) -> None:
        """Add a problem for an unknown key, unless it is another kind's key with its default value: earlier releases
        wrote all kinds' defaults into the recipes that they stored in episodes."""
        family = family_of(schema)
        owners = family.owners(name) if family else {}
        if any(self._is_default(owner, name, value) for owner in owners.values()):
            return
        if owners:
            kinds = " or ".join(f"'{kind}'" for kind in owners)
            if family and name in family.idle:
                tell(f"the key '{name}' is for kind {kinds} and changes nothing in a recipe without it; delete it.")
                return
            self._problem(_join(key, name), f"this key is for kind {kinds}, not for '{kind_name(schema)}'")
        else:
            self._problem(_join(key, name), unknown("key", name, fields).rstrip("."))

    def _is_default(self, schema: type, name: str, value: Any) -> bool:
        field = {f.name: f for f in dataclasses.fields(schema)}[name]
        if _is_required(field):
            return False
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        trial = _Reader(self.folder)
        return trial.value(get_type_hints(schema)[name], value, name) == default and not trial.problems

    def value(self, hint: Any, value: Any, key: str) -> Any:
        origin = get_origin(hint)
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value, key)  # pyright: ignore[reportArgumentType]
        if origin is Literal:
            return self._literal(get_args(hint), value, key)
        if origin in (Union, types.UnionType):
            return self._union(get_args(hint), value, key)
        if origin is tuple:
            return self._tuple(get_args(hint), value, key)
        if origin in (dict, Mapping):
            return self._dict(get_args(hint)[1], value, key)
        return self._scalar(hint, value, key)

    def _scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is Any:
            return value
        if hint in (Path, Url) and isinstance(value, str):
            return self._place(hint, value, key)
        if type(value) is int and not MIN_INTEGER <= value <= MAX_INTEGER:
            return self._problem(key, f"expected a number of up to 64 bits, got {_seen(value)}")
        if hint is float and type(value) in (int, float):
            return float(value) if math.isfinite(value) else self._problem(key, f"expected a number, got {value}")
        # `type(...) is`, because True is an int to Python and a mistake in a recipe.
        if type(value) is hint:
            return value
        return self._problem(key, f"expected {_describe(hint)}, got {_seen(value)}")

    def _place(self, hint: type, value: str, key: str) -> Any:
        """Return a URL, or a path that is relative to the recipe's folder."""
        if hint is Url:
            return Url(value) if MARK in value else self._problem(key, f"expected a URL, got {_seen(value)}")
        try:
            return self.folder / Path(value).expanduser()
        except RuntimeError as error:  # "~nobody/"
            return self._problem(key, str(error).rstrip("."))

    def _literal(self, options: tuple[Any, ...], value: Any, key: str) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return value
        near = closest(str(value), [str(o) for o in options]) or ";"
        return self._problem(key, f"unknown value {value!r}{near} expected one of: {', '.join(map(str, options))}")

    def _union(self, options: tuple[Any, ...], value: Any, key: str) -> Any:
        # TOML has no null, so `X | None` is X wherever the key is present.
        options = tuple(o for o in options if o is not type(None))
        if len(options) == 1:
            return self.value(options[0], value, key)
        for option in options:
            trial = _Reader(self.folder)
            result = trial.value(option, value, key)
            if not trial.problems:
                return result
        return self._problem(key, f"expected {' or '.join(map(_describe, options))}, got {_seen(value)}")

    def _tuple(self, items: tuple[Any, ...], value: Any, key: str) -> Any:
        if not is_array(value):
            return self._problem(key, f"expected an array, got {_seen(value)}")
        if len(items) == 2 and items[1] is Ellipsis:
            items = (items[0],) * len(value)
        if len(items) != len(value):
            return self._problem(key, f"expected an array of {len(items)} values, got {len(value)}")
        return tuple(self.value(hint, v, f"{key}[{i}]") for i, (hint, v) in enumerate(zip(items, value, strict=True)))

    def _dict(self, item: Any, value: Any, key: str) -> Any:
        if not is_table(value):
            return self._problem(key, f"expected a table, got {_seen(value)}")
        return {name: self.value(item, v, _join(key, name)) for name, v in value.items()}

    def _problem(self, key: str, text: str) -> None:
        self.problems.append(f"{key}: {text}." if key else f"{text}.")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _seen(value: Any) -> str:
    """Return the value and its type, shortened for a message."""
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"{shown} ({_TYPE_WORDS.get(value.__class__, value.__class__.__name__)})"


def _describe(hint: Any) -> str:
    """Describe an annotation in words."""
    origin = get_origin(hint)
    describers: dict[Any, Callable[[], str]] = {
        Literal: lambda: "one of " + ", ".join(map(str, get_args(hint))),
        tuple: lambda: "an array",
        dict: lambda: "a table",
        Mapping: lambda: "a table",
    }
    if origin in describers:
        return describers[origin]()
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(o) for o in get_args(hint) if o is not type(None))
    if hint in (Path, Url):
        return "a path in quotes" if hint is Path else "a URL in quotes"
    return "a table" if dataclasses.is_dataclass(hint) else _TYPE_WORDS.get(hint, str(hint))
