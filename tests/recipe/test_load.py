"""TOML -> frozen dataclass: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import RecipeError
from vla_robot.recipe import dump, parse, read, read_table
from vla_robot.recipe.policy import OpenVLARecipe, PolicyRecipe
from vla_robot.recipe.reading import load
from vla_robot.recipe.reading.load import MAX_BYTES, read_toml


@dataclass(frozen=True)
class Lens:
    """A lens.

    Attributes:
        name: what the policy
            calls it.
        width: frame width in pixels.
        place: where it stands, [m].
    """

    name: str
    width: int = 224
    place: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.width < 8:
            raise RecipeError(f"width is {self.width}; at least 8 pixels are needed.")


@dataclass(frozen=True)
class Desk:
    kind: Literal["robosuite", "mujoco"]
    rate_hz: float
    lenses: tuple[Lens, ...] = ()
    gains: dict[str, float] = field(default_factory=dict[str, float])
    scene: Path | None = None
    shadows: bool = False
    main: Lens | None = None
    size: int | str = 1


GOOD: dict[str, Any] = {"kind": "mujoco", "rate_hz": 10}


def problems(table: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(Desk, table, "desk.toml")
    return str(caught.value).splitlines()


def test_defaults_fill_what_is_absent() -> None:
    assert parse(Desk, GOOD, "desk.toml") == Desk(kind="mujoco", rate_hz=10.0)


def test_nested_tables_become_dataclasses() -> None:
    table = GOOD | {"lenses": [{"name": "front", "place": [1, 2.5, 3]}], "main": {"name": "wrist"}}
    desk = parse(Desk, table, "desk.toml")
    assert desk.lenses == (Lens("front", place=(1.0, 2.5, 3.0)),)
    assert desk.main == Lens("wrist")


def test_an_integer_is_taken_for_a_float_and_becomes_one() -> None:
    assert isinstance(parse(Desk, GOOD, "desk.toml").rate_hz, float)


def test_a_path_is_relative_to_the_file_that_names_it() -> None:
    assert parse(Desk, GOOD | {"scene": "a/b.xml"}, Path("/desks/x.toml")).scene == Path("/desks/a/b.xml")


def test_either_branch_of_a_union_is_taken() -> None:
    assert parse(Desk, GOOD | {"size": 3}, "desk.toml").size == 3
    assert parse(Desk, GOOD | {"size": "big"}, "desk.toml").size == "big"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shadow": True},
            "desk.toml: shadow: unknown key 'shadow'; did you mean 'shadows'? "
            "Available: gains, kind, lenses, main, rate_hz, scene, shadows, size.",
        ),
        (
            {"kind": "mujcoo"},
            "desk.toml: kind: unknown value 'mujcoo'; did you mean 'mujoco'? expected one of: robosuite, mujoco.",
        ),
        ({"rate_hz": "10"}, "desk.toml: rate_hz: expected a number, got '10' (a string)."),
        ({"rate_hz": True}, "desk.toml: rate_hz: expected a number, got True (true or false)."),
        ({"rate_hz": float("nan")}, "desk.toml: rate_hz: expected a number, got nan."),
        ({"shadows": 1}, "desk.toml: shadows: expected true or false, got 1 (a whole number)."),
        ({"lenses": [{}]}, "desk.toml: lenses[0].name: this key is missing; it must be a string."),
        ({"lenses": {"name": "a"}}, "desk.toml: lenses: expected an array, got {'name': 'a'} (a table)."),
        ({"lenses": [{"name": "a", "width": 4}]}, "desk.toml: lenses[0]: width is 4; at least 8 pixels are needed."),
        ({"lenses": [{"name": "a", "width": True}]}, "desk.toml: lenses[0].width: expected a whole number, "
         "got True (true or false)."),
        ({"main": {"name": "a", "place": [1, 2]}}, "desk.toml: main.place: expected an array of 3 values, got 2."),
        ({"gains": {"x": "y"}}, "desk.toml: gains.x: expected a number, got 'y' (a string)."),
        ({"size": 1.5}, "desk.toml: size: expected a whole number or a string, got 1.5 (a number)."),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_its_fix(change: dict[str, Any], message: str) -> None:
    assert problems(GOOD | change) == [message]


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems({"rate_hz": "fast", "lenses": [{"nam": "a"}, {"name": 2}], "shadow": 1})
    assert [line.split(": ")[1] for line in found] == [
        "shadow",
        "kind",
        "rate_hz",
        "lenses[0].nam",
        "lenses[0].name",
        "lenses[1].name",
    ]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_base_is_overlaid_table_by_table(tmp_path: Path) -> None:
    write(tmp_path, "low", 'kind = "mujoco"\nrate_hz = 10\n[gains]\nx = 1\ny = 2\n')
    high = write(tmp_path, "high", 'base = "low"\nrate_hz = 20\n[gains]\ny = 3\n')
    desk = parse(Desk, read_table(Desk, high), high)
    assert (desk.rate_hz, desk.gains) == (20, {"x": 1, "y": 3})


@dataclass(frozen=True)
class Shelf:
    scene: Path
    pictures: tuple[Path, ...] = ()
    desks: tuple[Desk, ...] = ()


def test_the_paths_of_a_base_are_relative_to_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "envs").mkdir()
    desk = '[[desks]]\nkind = "mujoco"\nrate_hz = 1\nscene = "c.xml"\n'
    write(tmp_path / "envs", "low", 'scene = "a.xml"\npictures = ["b.png"]\n' + desk)
    high = write(mine, "high", 'base = "low"\n')
    monkeypatch.setitem(load._FOLDERS, "Shelf", "envs")
    monkeypatch.chdir(tmp_path)

    shelf = parse(Shelf, read_table(Shelf, high), high)

    envs = tmp_path / "envs"
    assert (shelf.scene, shelf.pictures, shelf.desks[0].scene) == (envs / "a.xml", (envs / "b.png",), envs / "c.xml")


def test_the_paths_of_a_policy_folder_are_relative_to_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "recipe", 'kind = "openvla"\ncheckpoint = "."\n')
    recipe = read(PolicyRecipe, tmp_path)
    assert isinstance(recipe, OpenVLARecipe) and recipe.checkpoint == tmp_path


def test_a_base_of_a_base_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", 'kind = "mujoco"')
    write(tmp_path, "b", 'base = "a"')
    with pytest.raises(RecipeError, match="only one level is allowed"):
        read_table(Desk, write(tmp_path, "c", 'base = "b"'))


def test_text_that_is_not_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "broken", "kind = mujoco\n")
    with pytest.raises(RecipeError, match=r"broken\.toml: not valid TOML: .*line 1"):
        read_table(Desk, path)


def test_bytes_that_are_not_text_are_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "noise.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_table(Desk, path)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
lenses = st.builds(Lens, texts, st.integers(8, 4096), st.none() | st.tuples(finite, finite, finite))
desks = st.builds(
    Desk,
    st.sampled_from(["robosuite", "mujoco"]),
    finite,
    st.lists(lenses, max_size=3).map(tuple),
    st.dictionaries(texts, finite, max_size=3),
    st.none() | st.just(Path("/a b/c.xml")),
    st.booleans(),
    st.none() | lenses,
    st.integers(-(2**63), 2**63 - 1) | texts,  # of TOML
)


@given(desks, st.booleans())
def test_dump_and_parse_are_inverse(desk: Desk, comments: bool) -> None:
    assert parse(Desk, tomllib.loads(dump(desk, comments=comments)), "desk.toml") == desk


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["kind", "rate_hz", "lenses", "gains", "main", "size", "x"]), plain))
def test_any_data_gives_a_recipe_or_a_recipe_error(table: dict[str, Any]) -> None:
    try:
        assert isinstance(parse(Desk, table, "desk.toml"), Desk)
    except RecipeError as error:
        assert str(error)


def test_dump_explains_fields_from_the_docstring() -> None:
    assert dump(Lens("front"), comments=True).startswith("# what the policy calls it.\nname =")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5000, "nested too deeply"),
        ("a = " + "[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("a = " + "1" * 5000, "not valid TOML"),
        ("[" + ".".join("a" * 500) + "]", "nested more than 32 deep"),
        ("a = \x00", "not valid TOML"),
    ],
)
def test_toml_that_only_a_stranger_writes_is_our_error_with_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, "odd", text)
    with pytest.raises(RecipeError, match=rf"odd\.toml: .*{words}"):
        read_toml(path)


def test_a_recipe_of_megabytes_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "large", "#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="at most"):
        read_toml(path)


@pytest.mark.parametrize("value", [10**400, -(2**63) - 1])
def test_a_whole_number_beyond_64_bits_is_refused(value: int) -> None:
    assert (
        "lenses[0].width: expected a number of up to 64 bits"
        in problems({"lenses": [{"name": "a", "width": value}]})[-1]
    )
