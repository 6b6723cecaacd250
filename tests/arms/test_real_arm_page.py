"""docs/real-arm.md: what it tells people to type is what the tests here run, and what lerobot has."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from vla_robot.recipe import parse
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.recipe.reading.load import read_table

PAGE = Path(__file__).parents[2] / "docs" / "real-arm.md"
SOURCES = "\n".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py") if p.name != Path(__file__).name)

RUN_HERE = {
    "vla doctor --robot": '["doctor", "--robot"',
    "vla bridge envs/desk_so101.toml --dry-run": '"--dry-run", "--speed"',
    "vla bridge envs/desk_so101.toml --speed 0.25": '"--speed", "0.25"',
    "vla run --robot tcp://127.0.0.1:5570 --policy first_motion": '"--policy", "first_motion"',
}
"""Beginning of a command of the page -> where a test of this folder runs it."""

ELSEWHERE = (
    "vla view",
    "vla keys",
    "vla bridge envs/desk_so101.toml --bind",
    "vla run --robot tcp://127.0.0.1:5570 --policy POLICY",
)
"""Run by tests/serve/, tests/cli/ and tests/transport/."""


def commands() -> list[str]:
    return re.findall(r"^ {4}(vla .+)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_is_run(command: str) -> None:
    if command.startswith(ELSEWHERE):
        return
    ran = [part for beginning, part in RUN_HERE.items() if command.startswith(beginning)]
    assert ran, f"no test runs `{command}`"
    assert all(part in SOURCES for part in ran)


@pytest.mark.parametrize("program", sorted(set(re.findall(r"\b(lerobot-[a-z-]+)", PAGE.read_text()))))
def test_a_program_of_lerobots_exists(program: str) -> None:
    assert program in {entry.name for entry in metadata.entry_points(group="console_scripts")}


def test_the_recipe_of_the_page_is_valid(tmp_path: Path) -> None:
    block = PAGE.read_text().split("# envs/my_arm.toml\n")[1].split("\n\n")[0]
    path = tmp_path / "my_arm.toml"
    path.write_text("\n".join(line.strip() for line in block.splitlines()))
    recipe = parse(RealArmRecipe, read_table(RealArmRecipe, path), path)
    assert recipe.robot is not None
    assert (recipe.robot.id, recipe.robot.fields["port"]) == ("my_arm", "/dev/ttyACM0")
