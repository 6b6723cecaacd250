"""What files and peers say reaches a terminal and a log as text, never as a command to them."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from vla_robot.cli.common.terminal import PrintableFormatter, Terminal, say
from vla_robot.cli.main import main
from vla_robot.transport.codec import MessageReader, unpack_error

EVIL = "\x1b]0;owned\x07open\x1b[2J\u202e"
SHOWN = r"\x1b]0;owned\x07open\x1b[2J\u202e"
ALLOWED = {
    "main.py",
    "terminal.py",
    "render_probe.py",
}
"""They print our own words, or speak to a parent process."""


def written(*renderables: object, **options: object) -> str:
    screen = io.StringIO()
    Terminal(file=screen, width=200, **options).print(*renderables)
    return screen.getvalue()


def test_escape_sequences_are_shown_in_plain_text_and_in_tables() -> None:
    table = Table("field")
    table.add_row(f"a {EVIL}")
    for renderable in (f"a {EVIL}", Text(f"a {EVIL}"), table):
        for text in (written(renderable), written(renderable, force_terminal=True, color_system=None)):
            assert "open" in text
            assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_colours_of_our_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = written(Text(EVIL, "bold red"), force_terminal=True, color_system="standard")
    assert text.startswith("\x1b[1;31m")
    assert "\x1b]0" not in text


@pytest.mark.parametrize("text", ["[/red]", "[link=http://x]y[/link]", "[bold]z", ":skull:", "[/"])
def test_a_name_that_looks_like_markup_is_text(text: str) -> None:
    table = Table("field")
    table.add_row(text)
    assert text in written(text)
    assert text in written(table)


def test_say_keeps_the_lines_of_a_message_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"one\n\ttwo {EVIL}", Path("a\x1bb"))
    assert capsys.readouterr().out == f"one\n\ttwo {SHOWN} a\\x1bb\n"


def test_a_log_line_is_one_line() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "POST /act: %s", (f"no\nWARNING all is well{EVIL}",), None)
    assert PrintableFormatter().format(record) == rf"POST /act: no\nWARNING all is well{SHOWN}"
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        failed = logging.LogRecord("x", logging.ERROR, "", 0, "it", (), (ValueError, error, error.__traceback__))
    lines = PrintableFormatter().format(failed).splitlines()
    assert (lines[0], lines[-1]) == ("it", f"ValueError: {SHOWN}")


def test_an_error_of_a_peer_is_shown_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise unpack_error(MessageReader({"error": "WorldError", "message": EVIL}, "answer"))

    monkeypatch.setattr("vla_robot.cli.main._dispatch", fail)
    assert main(["run"]) == 2
    assert capsys.readouterr().err.strip() == f"error: {SHOWN}"


def test_inspect_shows_instructions_and_field_names_of_a_file_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("demo.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.random.default_rng(0).normal(size=(3, 2))
        file["data/demo_0/obs/state [/red] \x1b[2J"] = np.ones((3, 2))
        file["data/demo_0/obs/..\x1b"] = np.zeros((3, 4, 4, 3), np.uint8)
        file["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": f"lift {EVIL}"})
    assert main(["data", "inspect", "demo.hdf5"]) == 0
    out = capsys.readouterr().out
    assert f"lift {SHOWN}" in out
    assert r"state [/red] \x1b[2J" in out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert sorted(path.name for path in (tmp_path / "runs" / "inspect_demo").iterdir()) == [
        "actions.png",
        "frames_.._.png",
    ]


def test_nothing_in_this_room_prints_past_the_boundary(repository: Path) -> None:
    for path in sorted((repository / "vla_robot" / "cli").glob("*.py")):
        if path.name in ALLOWED:
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        named = {call.id for call in calls if isinstance(call, ast.Name)}
        assert not named & {"print", "Console"}, f"{path.name}: use say and Terminal of cli/common/terminal.py"
