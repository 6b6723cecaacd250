"""An environment is whole or not there: made by uv from a locked list, claimed, marked last, removed on failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_environment import toy_environment

from vla_robot.cli.main import main
from vla_robot.core.errors import DataError, MissingDependencyError, RecipeError, WorldError
from vla_robot.core.host.claim import Claim
from vla_robot.recipe.environment import EnvironmentRecipe
from vla_robot.world.environments import install
from vla_robot.world.environments.install import disk_mb, find_uv, make, remove
from vla_robot.world.environments.location import MARK, PACKAGES, Environment, find_environment, others_of

LOCK = Path("envs/environments/toy.lock")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    return toy_environment(tmp_path, monkeypatch)


def test_an_environment_is_made_once_with_its_list_and_its_mark(toy: Environment, capfd: pytest.CaptureFixture) -> None:
    assert not toy.is_made
    assert main(["install", "toy", "--json", "made.json"]) == 0
    told = capfd.readouterr().out
    assert "1 packages for Python 3.12, 0.001 GB to download, 0.001 GB on the disk" in told
    used = subprocess.run(["du", "--block-size=1", "--summarize", toy.folder / "venv"], capture_output=True, text=True)
    assert disk_mb(toy) == pytest.approx(int(used.stdout.split()[0]) / 1e6, abs=0.1)
    assert f"{disk_mb(toy) / 1000:.2g} GB on the disk." in told
    assert toy.is_made
    assert (toy.folder / PACKAGES).read_text() == LOCK.read_text()
    said = subprocess.run([toy.python, "-Ic", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert Path(said.stdout.strip()) == toy.folder / "venv"
    assert main(["install", "toy"]) == 0
    assert "installed already" in capfd.readouterr().out


def test_another_list_is_another_environment_and_the_old_one_is_named(toy: Environment) -> None:
    make(toy)
    LOCK.write_text("# a remark changes the list, too\n" + LOCK.read_text())
    other = find_environment("toy")
    assert other.folder != toy.folder
    assert not other.is_made
    assert others_of(other) == [toy.folder]
    assert remove(other) == [toy.folder]
    assert not toy.folder.exists()


def test_a_file_with_another_hash_is_refused_and_nothing_is_left(
    toy: Environment, capfd: pytest.CaptureFixture
) -> None:
    LOCK.write_text(f"toy==1.0 --hash=sha256:{'0' * 64}\n")
    other = find_environment("toy")
    with pytest.raises(
        MissingDependencyError, match=r"uv ended with status \d+; its own message stands above.*`vla insta"
    ):
        make(other)
    assert "Hash mismatch" in capfd.readouterr().err
    assert not other.folder.exists()


def test_without_a_source_of_packages_uvs_own_words_are_shown(
    toy: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("UV_FIND_LINKS")
    assert main(["install", "toy"]) == 2
    assert "toy was not found" in capfd.readouterr().err
    assert not toy.folder.exists()


def test_what_a_killed_process_left_is_made_anew(toy: Environment) -> None:
    make(toy)
    (toy.folder / MARK).unlink()  # it is written last
    broken = toy.folder / "venv" / "lib" / "python3.12" / "site-packages" / "toy.pth"
    broken.unlink()
    with pytest.raises(MissingDependencyError, match=r"half-made or its Python is gone\. `vla install toy` makes it"):
        toy.require_made("the world")
    make(toy)
    assert toy.is_made
    assert broken.exists()


def test_an_environment_whose_python_is_gone_is_not_whole(toy: Environment) -> None:
    make(toy)
    toy.python.unlink()
    assert not toy.is_made


def test_two_processes_do_not_make_one_environment_together(toy: Environment) -> None:
    code = "import sys; from vla_robot.core.host.claim import Claim; from pathlib import Path\n"
    code += "with Claim(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(toy.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(DataError, match=f"being written by process {other.pid}"):
            make(toy)
        other.communicate()
    make(toy)
    assert toy.is_made


def test_ctrl_c_leaves_nothing_behind(toy: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Environment) -> None:
        assert toy.python.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "_probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(toy)
    assert not toy.folder.exists()


def test_an_environment_that_cannot_run_this_package_is_not_kept(toy: Environment, tmp_path: Path) -> None:
    pth = "import sys; sys.modules['numpy'] = None"
    recipe = find_environment("toy").recipe
    assert recipe.num_packages() == 1
    (tmp_path / "sitecustomize.py").write_text(pth)
    original = install._fill

    def filled(environment: Environment, uv: str) -> None:
        original(environment, uv)
        packages = environment.folder / "venv" / "lib" / "python3.12" / "site-packages"
        (packages / "toy.pth").write_text(pth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, "_fill", filled)
        with pytest.raises(WorldError, match=r"cannot run a world of this package: .*numpy"):
            make(toy)
    assert not toy.folder.exists()


def test_without_uv_the_command_that_installs_it_is_named(
    toy: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"made with uv.*`pip install uv`"):
        find_uv()


def test_a_full_disk_is_told_before_anything_is_fetched(toy: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Path("envs/environments/toy.toml")
    recipe.write_text(recipe.read_text().replace("disk_mb = 1\n", "disk_mb = 1000000000\n"))
    with pytest.raises(WorldError, match=r"needs 1e\+06 GB.*XDG_CACHE_HOME"):
        make(find_environment("toy"))


def test_an_unknown_environment_gets_the_nearest(toy: Environment, capsys: pytest.CaptureFixture) -> None:
    assert main(["install", "toyy"]) == 2
    assert "unknown environment 'toyy'; did you mean 'toy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "toy",
        "toy==1.0",
        "toy==1.0 --hash=md5:00",
        "toy @ file:///toy.whl",
        "--extra-index-url somewhere",
        "-r other.txt",
        "-e .",
        f"toy==1.0 --hash=sha256:{'0' * 64} --find-links here",
    ],
)
def test_a_list_of_anything_but_pinned_packages_with_hashes_is_refused(toy: Environment, line: str) -> None:
    LOCK.write_text(line + "\n")
    with pytest.raises(RecipeError, match="expected name==version and its --hash=sha256"):
        find_environment("toy")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"python": "3.11"}, "3.12, which is the oldest allowed"),
        ({"python": "/usr/bin/python"}, "is not a version"),
        ({"build": ("setuptools",)}, "'setuptools' is not of the form"),
        ({"start_timeout_s": 0.0}, "outside 0 to 3600"),
        ({"disk_mb": -1}, "at least 0"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes: dict[str, object], says: str) -> None:
    values: dict[str, object] = {"python": "3.12", "lock": Path("x"), "download_mb": 1, "disk_mb": 1}
    with pytest.raises(RecipeError, match=says):
        EnvironmentRecipe(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def test_the_shipped_lists_are_valid_and_hold_no_address(repository: Path) -> None:
    for path in (repository / "envs" / "environments").glob("*.toml"):
        recipe = find_environment(str(path)).recipe
        assert recipe.num_packages() > 5
        assert "://" not in recipe.packages()
    assert "mujoco==3.3.0" in find_environment("libero").recipe.packages()


def test_the_claim_of_a_finished_installation_is_released(toy: Environment) -> None:
    make(toy)
    with Claim(toy.folder):
        pass
    assert toy.is_made
