"""docs/benchmarks-worlds.md from top to bottom: every command on a line of its own, in order, at a small scale."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libero_environment import ENVIRONMENT, METAWORLD, needs_libero, needs_metaworld

from vla_robot.cli.evaluate.plan import plan
from vla_robot.cli.main import VERBS, main, parse_arguments
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.recipe.env import LiberoRecipe, MetaWorldRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy_source import find_policy
from vla_robot.world.environments.location import MARK, find_environment

SMALLER = {
    "install": [],
    "run": ["--videos", "none"],
    "eval": ["--episodes", "1", "--workers", "1", "--videos", "none"],
    "record": ["--episodes", "1", "--workers", "1"],
    "bench": ["--rounds", "1", "--steps", "1"],
}
"""What is said behind a command's own options, and beats them."""

TRAINED = "data/run/final"
"""The page's name for a policy of the reader's own; tests/train/test_page.py trains one, here `hold` stands for it."""

HORIZON = 8
"""Control steps of an episode here."""


def blocks(page: str) -> list[str]:
    """What stands indented, block by block."""
    lines = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in lines]


def small_worlds(repository: Path, folder: Path) -> None:
    """The suites of the page under their names, with short episodes and small frames."""
    (folder / "envs").mkdir()
    for path in (*repository.glob("envs/libero/*.toml"), *repository.glob("envs/metaworld/*.toml")):
        recipe = re.sub(r"^(height|width) = \d+", r"\1 = 32", path.read_text(), flags=re.M)
        recipe = re.sub(r"^horizon = \d+.*\n", "", recipe, flags=re.M)
        if not re.search(r"^base = ", recipe, flags=re.M):
            recipe = re.sub(r"^(kind = .*\n)", rf"\1horizon = {HORIZON}\n", recipe, flags=re.M)
        (folder / "envs" / path.name).write_text(recipe)


@pytest.fixture
def walk(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Does what a command of the page says, in a folder in which nothing was done before."""
    monkeypatch.chdir(tmp_path)
    small_worlds(repository, tmp_path)
    of_libero, of_metaworld = LiberoRecipe.tasks, MetaWorldRecipe.tasks
    monkeypatch.setattr(LiberoRecipe, "tasks", lambda self: of_libero(self)[:2])
    monkeypatch.setattr(
        MetaWorldRecipe, "tasks", lambda self: of_metaworld(self)[:2] if self.task is None else of_metaworld(self)
    )
    number = iter(range(1000))

    def step(command: str) -> None:
        words = shlex.split(command.replace(TRAINED, "hold"), comments=True)
        assert words[0] == "vla", command
        if is_long(words):
            return
        if words[1:] == ["install", "libero", "--remove"]:
            with monkeypatch.context() as other_cache:  # the environment of this computer stays
                other_cache.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
                theirs = find_environment("libero").folder
                theirs.mkdir(parents=True)
                shutil.copy(ENVIRONMENT.folder / MARK, theirs)
                assert main(words[1:]) == 0
                assert not theirs.exists()
            return
        out = ["--out", f"runs/{next(number)}"] if words[1] in ("run", "eval") else []
        out += ["--save", "all"] if "libero_object" in words and words[1] == "record" else []
        assert main([*words[1:], *SMALLER[words[1]], *out]) == 0, command

    yield step
    assert ENVIRONMENT.is_made and METAWORLD.is_made


def is_long(words: list[str]) -> bool:
    """Whether a command records hundreds of episodes, or trains: its file is checked, and it does not run here."""
    return words[1] == "finetune" or (words[1] == "record" and words[2].startswith("datasets/"))


def commands_of(repository: Path, folder: Path) -> list[str]:
    """The page's commands in order; its recipes are written into a folder."""
    page = blocks((repository / "docs" / "benchmarks-worlds.md").read_text(encoding="utf-8"))
    recipes = {block.split()[1]: block for block in page if block.startswith("# ")}
    assert set(recipes) == {
        "envs/spatial_blind.toml", "policies/replayed.toml", "envs/fast.toml", "envs/spatial_unsettled.toml"
    }  # fmt: skip
    recipes["envs/spatial_blind.toml"] += "horizon = 220\n"  # a replay needs a demonstration that succeeds
    for name, text in recipes.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    commands = [line for block in page if not block.startswith("# ") for line in block.splitlines()]
    assert [shlex.split(command, comments=True)[1] for command in commands] == [
        "install", "run", "eval", "eval", "install", "eval", "record", "eval", "record", "eval", "eval",
        "record", "record", "finetune", "eval", "eval", "bench",
        "eval", "install", "run", "eval", "record", "finetune", "eval",
    ]  # fmt: skip
    return commands


def test_every_command_of_the_page_names_what_exists(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here nothing runs, so that it is tested where the environments are not installed, too."""
    monkeypatch.chdir(tmp_path)
    for command in commands_of(repository, tmp_path):
        words = shlex.split(command.replace(TRAINED, "hold"), comments=True)
        name, *rest = words[1:]
        if is_long(words):
            assert main(["check", str(repository / rest[0])]) == 0
            continue
        schema = getattr(VERBS[name].load(), VERBS[name].arguments)
        args = parse_arguments(schema, name, [*rest, *SMALLER[name]])
        if name == "eval":
            plan(args)
        if name in ("run", "record"):
            find_env(args.env)
            find_policy(args.policy if name == "run" else args.source)
    assert main(["check", "envs/fast.toml", "policies/replayed.toml"]) == 0


@needs_libero
@needs_metaworld
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(3600)  # some sixty worlds, 5 to 30 s each
def test_every_command_of_the_page_does_what_it_says(
    repository: Path, tmp_path: Path, walk: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    for command in commands_of(repository, tmp_path):
        walk(command)
    assert [episode.seed for episode in open_demos(tmp_path / "data" / "object").episodes] == [0, 0]
    assert main(["check", "envs/fast.toml"]) == 0
    printed = capfd.readouterr().out
    assert "libero_spatial_moved" in printed and "libero_object_swap" in printed
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 13
