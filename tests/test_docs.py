"""The documents keep up with the code: every command in them parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from vla_robot.cli.main import HELP, VERBS, parse_arguments

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]

COMMAND = re.compile(r"`(?:\.venv/bin/)?(vla [a-z]+[^`]*)`|^ {2,4}(vla [a-z]+.*?)(?: {2,}.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def commands(text: str) -> list[str]:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return [(inline or block).partition(" #")[0] for inline, block in COMMAND.findall(text)]


def named(pages: list[Path]) -> list[tuple[str, str]]:
    return [(p.relative_to(ROOT).as_posix(), c) for p in pages for c in commands(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), [*named(PAGES), *(("vla --help", c) for c in commands(HELP))])
def test_a_command_in_the_documents_parses(page: str, command: str) -> None:
    _, name, *rest = shlex.split(re.sub(r"\[[^\]]*\]", "", command))
    verb = VERBS[name]
    if not rest:  # a mention of the verb, not a command line
        return
    # What stands in capitals is for the reader to fill in; any word is fine for the parser.
    parse_arguments(getattr(import_module(verb.module), verb.arguments), name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert broken == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())) <= targets


def test_the_readme_helps_within_its_first_thirty_lines() -> None:
    opening = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert all(word in opening for word in ("make demo", "make test", "What you need", "pipeline.svg"))
