"""Former words of the command line work like the new ones, say so once on stderr, and stand in no help text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_robot.cli.common.renamed import RENAMED, with_new_words
from vla_robot.cli.main import HELP, VERBS, main, parse_arguments

PUBLIC = "ab" * 32


@pytest.mark.parametrize(
    ("verb", "old", "new", "told"),
    [
        ("record", ["--out", "d", "--by", "hold"], ["--out", "d", "--source", "hold"], ["--source"]),
        ("record", ["--out", "d", "--by=hold"], ["--out", "d", "--source=hold"], ["--source"]),
        (
            "record",
            ["--out", "d", "--by", "x", "--keep", "all"],
            ["--out", "d", "--source", "x", "--save", "all"],
            ["--source", "--save"],
        ),
        ("run", ["lift", "--keep", "success"], ["lift", "--save", "success"], ["--save"]),
        ("keys", ["pin", "robot.local", PUBLIC], ["trust", "robot.local", PUBLIC], ["trust"]),
        ("keys", ["unpin", "pin"], ["distrust", "pin"], ["distrust"]),
        ("list", ["hands"], ["teleoperators"], ["teleoperators"]),
        ("list", ["--json=f", "hands"], ["--json=f", "teleoperators"], ["teleoperators"]),
        ("list", ["--json", "hands", "envs"], ["--json", "hands", "envs"], []),
        ("record", ["--out", "d", "--source", "hold"], ["--out", "d", "--source", "hold"], []),
        ("bridge", ["envs/lift.toml", "--by"], ["envs/lift.toml", "--by"], []),
    ],
)
def test_an_old_word_becomes_the_new_one(
    verb: str, old: list[str], new: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_new_words(verb, old) == new
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(f"is called '{word}' now" in line for word, line in zip(told, lines, strict=True))


@pytest.mark.parametrize("verb", RENAMED)
def test_help_knows_new_words_alone(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = VERBS[verb].load()
    with pytest.raises(SystemExit):
        parse_arguments(getattr(module, VERBS[verb].arguments), verb, ["--help"])
    words = set(capsys.readouterr().out.replace("{", " ").replace(",", " ").replace("}", " ").split())
    assert set(RENAMED[verb].values()) <= words
    assert not set(RENAMED[verb]) & (words | set(HELP.split()))


def test_the_commands_of_before_still_do_their_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["list", "hands", "--json", "l.json"]) == 0
    assert [r["recipe"] for r in json.loads(Path("l.json").read_text())["recipes"]] == [
        "envs/teleoperators/so101_leader"
    ]
    assert capsys.readouterr().err.splitlines() == [
        "note: 'hands' is called 'teleoperators' now; the old name works for one more release."
    ]
    assert main(["run", "--env", "lift", "--policy", "hold", "--keep", "all"]) == 2
    assert "--save selects the episodes" in capsys.readouterr().err
