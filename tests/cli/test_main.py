"""The command line as a person meets it: what it prints, what it says of a mistake, how it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_robot.cli import main as command
from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.main import VERBS, main
from vla_robot.core.errors import RecipeError


@pytest.fixture(autouse=True)
def in_the_checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.delenv(command.DEBUG_VARIABLE, raising=False)


def error_of(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command line that must fail as a user's mistake."""
    assert main(argv) == EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_help_fits_a_screen_and_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 34
    assert all(len(line) <= 120 for line in text.splitlines())
    assert all(f"vla {verb}" in text for verb in VERBS)


def test_no_arguments_mean_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "vla run" in capsys.readouterr().out


def test_a_misspelt_verb_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'rnu'; did you mean 'run'?" in error_of(["rnu"], capsys)


def test_list_names_recipes_and_where_they_lie(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "launch/lift" in out
    assert "launch/lift.toml" in out


def test_list_of_one_kind_leaves_the_others_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "envs"]) == 0
    assert "launch/lift " not in capsys.readouterr().out


def test_show_prints_toml_with_source_and_help(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    assert main(["show", "launch/lift"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# {repository / 'launch' / 'lift.toml'}\n")
    assert "# number of episodes.\nepisodes = 5" in out


def test_show_of_a_misspelt_recipe_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'lift'?" in error_of(["show", "launch/lifft"], capsys)


def test_check_passes_on_what_we_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert "recipes are valid" in capsys.readouterr().out


def test_check_reports_every_problem_of_every_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "launch"
    folder.mkdir()
    (folder / "one.toml").write_text('env = "lift"\npolcy = "hold"\nepisodes = 0.5\n')
    (folder / "two.toml").write_text("seed = \n")
    message = error_of(["check", str(folder / "one.toml"), str(folder / "two.toml")], capsys)
    assert "2 of 2 recipes are not valid" in message
    assert "polcy: unknown key 'polcy'; did you mean 'policy'?" in message
    assert "episodes: expected a whole number, got 0.5" in message
    assert "two.toml: not valid TOML" in message


def test_check_looks_into_what_a_recipe_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "one.toml").write_text('env = "lift"\npolicy = "no_such"\n')
    folder = tmp_path / "policies" / "empty"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('kind = "openvla"\ncheckpoint = "."\n')
    message = error_of(["check", str(tmp_path / "launch" / "one.toml"), str(folder)], capsys)
    assert "2 of 2 recipes are not valid" in message
    assert f"{tmp_path / 'launch' / 'one.toml'}: u" in message and "'no_such'" in message
    assert "config.json is missing; a checkpoint folder needs it" in " ".join(message.split())


@pytest.mark.parametrize(
    ("argv", "key"), [(["list"], "recipes"), (["show", "launch/lift"], "toml"), (["check", "launch/lift"], "checked")]
)
def test_every_verb_writes_the_one_json_form(argv: list[str], key: str, tmp_path: Path) -> None:
    assert main([*argv, "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert {"command", "versions", "machine", "rows", key} <= set(written)
    assert written["command"] == argv[0]


def test_an_unknown_option_is_explained_and_ends_with_status_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--polcy", "hold"])
    assert ended.value.code == 2


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_dispatch", interrupted)
    assert main(["run"]) == EXIT_INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "_dispatch", buggy)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_the_debug_variable_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command.DEBUG_VARIABLE, "1")
    with pytest.raises(RecipeError):
        main(["show", "launch/nothing_like_it"])


def test_the_installed_command_works_from_any_folder(tmp_path: Path) -> None:
    vla = Path(sys.executable).with_name("vla")
    done = subprocess.run([vla, "show", "launch/lift"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'policy = "openvla_nano"' in done.stdout


def test_benchmarks_are_found_beside_the_package_and_only_for_their_verb(tmp_path: Path) -> None:
    script = (
        "import os, sys; import vla_robot.cli.main as command; from importlib.util import find_spec\n"
        "sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'benchmarks'))]\n"
        "assert find_spec('benchmarks') is None\n"
        "assert command.main(['list', 'launch']) == 0 and find_spec('benchmarks') is None\n"
        "sys.exit(command.main(['bench', 'finetune', '--rounds', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_USER_ERROR, done.stderr
    assert "rounds" in done.stderr


def test_benchmarks_without_a_clone_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()  # of another package that is installed beside ours
    assert main(["bench", "transport"]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert "benchmarks run from a clone of the repository" in told
    assert str(tmp_path) in told


def test_a_reader_that_leaves_early_is_no_error() -> None:
    vla = Path(sys.executable).with_name("vla")
    done = subprocess.run(["bash", "-c", f"'{vla}' --help | true"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        ["bridge", "envs/tabletop.toml", "--bind", "tcp://127.0.0.1:70000"],
        ["run", "--robot", "tcp://127.0.0.1:70000", "--policy", "hold"],
        ["run", "--env", "tabletop", "--policy", "tcp://127.0.0.1:70000"],
        ["view", "tcp://127.0.0.1:70000"],
        ["view", "tcp://127.0.0.1:5570", "--port", "70000"],
        ["serve", "openvla_nano", "--bind", "tcp://127.0.0.1:70000"],
        ["serve", "openvla_nano", "--openpi", "70000"],
        ["record", "--robot", "tcp://127.0.0.1:70000", "--source", "browser", "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_port_above_65535_is_a_sentence_everywhere(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = [str(tmp_path / "out") if word == "out" else word for word in command]
    assert "65535" in error_of(command, capsys)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_a_library_meets_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refused(_: object) -> int:
        raise OSError(number, os.strerror(number), "cache/blob")

    monkeypatch.setattr("vla_robot.cli.list_show_check.list_recipes", refused)
    assert f"cannot write cache/blob: {os.strerror(number)}. " in error_of(["list"], capsys)
