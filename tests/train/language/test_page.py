"""docs/words.md: every command on a line of its own, in order, with smaller numbers."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from vla_robot.cli.main import main

from ..test_page import blocks

SMALLER = {
    "record": ["--episodes", "2", "--workers", "1"],
    "data": ["--scenes", "12", "--held-out", "3"],
    "pretrain": ["--steps", "1", "--batch-size", "4"],
    "finetune": ["--steps", "1"],
    "ask": ["--max-tokens", "8"],
}
"""What is said behind a command's own options, and beats them."""


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_of_the_page_does_what_it_says(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("policies", "datasets", "envs"):
        (tmp_path / folder).symlink_to(repository / folder)
    for file in (repository / "launch").rglob("*.toml"):
        copy = tmp_path / file.relative_to(repository)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text(encoding="utf-8").replace("data/stage_lift", "data/some_lift"))
    page = blocks((repository / "docs" / "words.md").read_text(encoding="utf-8"))
    commands = [command.replace("FOLDER", "data/words/final") for block in page for command in block.splitlines()]
    asked = [command for command in commands if "photo.png" in command]
    others = [command for command in commands if command not in asked]
    assert [shlex.split(command)[1] for command in others] == [
        "record", "data", "pretrain", "finetune", "ask", "ask", "finetune",
    ]  # fmt: skip
    for command in (*others, *asked):
        words = shlex.split(command)
        if "photo.png" in words:  # the page's policy has a second camera
            words += ["--images", "wrist=data/scenes/images/100000_wrist.jpg"]
        words = ["data/scenes/images/100000_front.jpg" if word == "photo.png" else word for word in words]
        status = main([*words[1:], *SMALLER[words[1]]])
        said = capsys.readouterr()
        if "detect red cube" in words:  # after one step, it has not learned to say boxes
            assert status == 0 or "the answer is no list of boxes" in " ".join(said.err.split())
        else:
            assert status == 0, (command, said.err)
    assert (tmp_path / "data" / "paligemma" / "3_paligemma_3" / "final" / "model.safetensors").is_file()
