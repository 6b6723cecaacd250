"""The documents keep up with the code: every command in them parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vla_robot.cli.main import HELP, VERBS, parse_arguments

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md", "envs/*/README.md", "policies/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]

CURRENT = [path for path in PAGES if path.name != "CHANGELOG.md"]  # which names options by their old names, too

COMMAND = re.compile(r"`(?:\.venv/bin/)?(vla [a-z]+[^`]*)`|^ {2,4}(vla [a-z]+.*?)(?: {2,}.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def commands(text: str) -> list[str]:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).replace("\\\n", " ")
    return [(inline or block).partition(" #")[0] for inline, block in COMMAND.findall(text)]


def named(pages: list[Path]) -> list[tuple[str, str]]:
    return [(p.relative_to(ROOT).as_posix(), c) for p in pages for c in commands(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), [*named(CURRENT), *(("vla --help", c) for c in commands(HELP))])
def test_a_command_in_the_documents_parses(page: str, command: str) -> None:
    _, name, *rest = shlex.split(re.sub(r"\[[^\]]*\]", "", command))
    verb = VERBS[name]
    if not rest:  # a mention of the verb, not a command line
        return
    # What stands in capitals is for the reader to fill in; any word is fine for the parser.
    parse_arguments(getattr(verb.load(), verb.arguments), name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_launch_file_that_is_named_is_shipped(page: Path) -> None:
    """A page on a policy says the recipe of its training; "mine" is the reader's own."""
    named = set(re.findall(r"\blaunch/\w+\.toml", page.read_text(encoding="utf-8"))) - {"launch/mine.toml"}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_every_make_target_that_is_named_exists(file: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`| {4})make ([a-z]+)\b", (ROOT / file).read_text()))
    assert named and named <= targets


def test_the_guide_for_contributors_names_files_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    paths = [path for path in re.findall(r"`([a-z_]+/[\w./]+|\.ci/\w+)`", guide) if not re.search(r"[A-Z]{4}", path)]
    assert len(paths) > 15
    assert [path for path in paths if path != "site/" and not (ROOT / path).exists()] == []


def test_five_values_pass_files_that_exist_and_none_twice() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = page.partition("## The path of five values")[2].partition("\n## ")[0].split("\n**")[1:]
    stops = [re.findall(r"^\d+\. `([\w/]+\.py)`", walk, re.MULTILINE) for walk in walks]
    assert len(stops) == 5 and min(len(each) for each in stops) >= 6
    assert [stop for each in stops for stop in each if not (ROOT / "vla_robot" / stop).is_file()] == []
    assert [stop for each in stops for stop in set(each) if each.count(stop) > 1] == []


def test_a_bug_report_asks_for_the_doctors_findings() -> None:
    form = (ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text()
    assert commands(form) == ["vla doctor --json doctor.json"]


def test_continuous_integration_checks_builds_and_tests() -> None:
    steps = " ".join(re.findall(r"^step ([a-z ]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)).split()
    assert {"check", "build", "docs"} < set(steps) and steps[-1] == "test"  # the summary of the tests closes the output


def test_pictures_lie_in_a_folder_of_their_own_and_each_is_shown() -> None:
    pictures = {path for suffix in ("png", "svg", "gif", "webp") for path in (ROOT / "docs").rglob(f"*.{suffix}")}
    assert pictures and {path.parent for path in pictures} == {ROOT / "docs" / "pictures"}
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert pictures - shown == set()


def test_every_picture_is_drawn_by_the_program() -> None:
    source = (ROOT / "docs" / "make_pictures.py").read_text()
    names = {picture.name for picture in (ROOT / "docs" / "pictures").iterdir()}
    assert {name for name in names if f'"{name}"' not in source} == {"pipeline.svg"}, "pipeline.svg is written by hand"


def test_the_readme_helps_within_its_first_thirty_lines() -> None:
    opening = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert all(word in opening for word in ("make demo", "make test", "What you need", "pipeline.svg"))
