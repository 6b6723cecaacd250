"""No code, recipe or page has a name that was replaced, except the tables of aliases."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("envs/**/*", "policies/**/*", "datasets/**/*", "launch/*")
SCANNED = ("vla_robot/**/*", *RECIPES, "docs/*", "examples/**/*", "benchmarks/*", "README.md", "CONTRIBUTING.md")
TEXTS = {".py", ".toml", ".md", ".html", ".js", ".sh", ".sbatch"}
ALIASES = {
    "vla_robot/cli/common/renamed.py",
    "vla_robot/core/host/renamed.py",
    "vla_robot/recipe/reading/find.py",
    "vla_robot/recipe/reading/renamed.py",
}
"""Modules that map old names to new ones, which must name both."""

WORDS = (
    *("HandError", "HandRecipe", "ExaminedWorld", "LockstepWorld", "Filming", "Lookout", "_Tally", "_Asked"),
    *("keep_nothing", "sees_the_truth", "require_sense", "require_sight", "_leashed", "_take_back", "_let_go", "_says"),
    *("cause_ns", "horizon_s", "NOTHING_SETTLED", "evaluate_words", "peer_words", "peer_wire", "from_log"),
    *("examined_world", "in_parallel", "four_bits", "arm_space", "lerobot_parts", "lockstep_world"),
    *("pre_step", "last_layer"),
    *("arm of metal", "arms of metal"),
)
"""No English words: they must not occur anywhere."""
COMMANDS = (r"(?<![\w-])--(?:by|keep)(?![\w-])", r"(?<!\w)keys (?:un)?pin(?!\w)", r"(?<![\w./-])hands/")
"""Old options, verbs and folders of the command line, as patterns."""
DEFINED = (
    *("Fields", "Interpreter", "Board", "Driven", "Row", "Splice", "Execution", "Selecting", "Stages", "Held", "Moved"),
    *("Motion", "Run", "never", "tell", "says", "drives", "mark"),
)
"""English words: no class, function or alias of a type has the name."""
MODULES = {
    *("nouns", "words", "lookout", "board", "punctual", "live", "page", "rollouts", "driven", "demos", "origin"),
    *("part", "order", "wording", "filming", "start", "plain", "ranks", "shard", "adapt", "recompute", "regress"),
    *("threads", "reach", "child", "learn", "act", "observe", "hand", "hands", "by_hand", "openpi_words"),
    *(word for word in WORDS if re.fullmatch("[a-z][a-z_]+", word)),
}
MEMBERS = {
    "ChunkBuffer": {"put", "take", "left", "late"},
    "Tick": {"settled", "cause_ns", "late"},
    "StageTimer": {"done"},
    "Viewers": {"hear"},
    "FinetuneRecipe": {"recompute"},
    "_Axis": {"max_speed", "max_change"},
}
"""Class -> members that were renamed."""

_WORD = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, WORDS))})(?!\w)")
_COMMAND = re.compile("|".join(COMMANDS))
_ENGLISH = "|".join(DEFINED)
_DEFINED = re.compile(
    rf"^ *(?:(?:class|def|type) (?:{_ENGLISH})(?=\W)|(?:{_ENGLISH}) = (?:Literal|Callable))", re.MULTILINE
)


def scanned() -> Iterator[Path]:
    found = {path for pattern in SCANNED for path in ROOT.glob(pattern)}
    yield from sorted(p for p in found if p.suffix in TEXTS and p.relative_to(ROOT).as_posix() not in ALIASES)


def old_names_in(text: str, is_code: bool) -> list[str]:
    found = [*_WORD.findall(text), *_COMMAND.findall(text)]
    return [*found, *(match.strip() for match in _DEFINED.findall(text))] if is_code else found


@functools.cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Return the classes of MEMBERS: name -> definitions."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "vla_robot").rglob("*.py")]
    trees = [ast.parse(text) for text in texts if any(f"class {name}" in text for name in MEMBERS)]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {name: [node for node in nodes if node.name == name] for name in MEMBERS}


def members_of(tree: ast.ClassDef) -> set[str]:
    nodes = list(ast.walk(tree))
    fields = {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} | fields | attributes


def test_no_page_recipe_or_module_has_an_old_name() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in scanned()}
    assert len(texts) > 250
    found = {path: old_names_in(text, path.endswith(".py")) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_module_or_room_has_an_old_name() -> None:
    modules = {path.stem for path in (ROOT / "vla_robot").rglob("*.py")}
    rooms = {path.parent.name for path in (ROOT / "vla_robot").rglob("__init__.py")}
    assert sorted(MODULES & (modules | rooms)) == []


@pytest.mark.parametrize("name", MEMBERS)
def test_no_member_has_an_old_name(name: str) -> None:
    trees = classes()[name]
    assert trees, f"class '{name}' is gone: rename it in MEMBERS too"
    assert set.union(*map(members_of, trees)) & MEMBERS[name] == set()


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("raises HandError", False),
        ("an arm of metal", False),
        ('pre_step = "rlds"', False),
        ("class Fields:\n", True),
        ("class Motion(Protocol):\n", True),
        ('Splice = Literal["drop"]\n', True),
        ("    def tell(self, line: Line) -> None:\n", True),
        ("def never() -> bool:\n", True),
        ("vla record --env lift --by keyboard", False),
        ("`--keep=all`", False),
        ("vla keys pin robot.local robot.pub", False),
        ("vla keys unpin robot.local", False),
        ("[hands/leader](hands.md)", False),
    ],
)
def test_an_old_name_is_found(text: str, is_code: bool) -> None:
    assert len(old_names_in(text, is_code)) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("Fields that differ are left out", "it never moves", "class RowGroup:\n"),
        *("--keep-alive", "--by-hand", "keys pinned", "tests/hands/"),
    ],
)
def test_english_is_left_alone(text: str) -> None:
    assert old_names_in(text, is_code=True) == []


def test_an_old_member_is_found() -> None:
    (tree,) = ast.parse("class Tick:\n late: int\n def done(self): self.left = 1").body
    assert isinstance(tree, ast.ClassDef)
    assert members_of(tree) == {"late", "done", "left"}
