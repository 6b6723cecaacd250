"""Where a name leads, and what is said when it leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe import available, find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.reading import find as find_module
from vla_robot.recipe.reading.load import read_table
from vla_robot.recipe.reading.schemas import locate, schema_for


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with recipes of its own, which is the working directory."""
    for name in ("envs/desk", "envs/shelf", "policies/calm", "launch/desk"):
        path = tmp_path / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("# mine\n")
    (tmp_path / "policies" / "grown").mkdir()
    (tmp_path / "policies" / "grown" / "config.json").write_text("{}")
    (tmp_path / "policies" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["desk", "desk.toml", "envs/desk", "envs/desk.toml", "./envs/desk.toml"])
def test_every_spelling_leads_to_the_same_file(home: Path, name: str) -> None:
    assert find("envs", name) == home / "envs" / "desk.toml"


def test_an_absolute_path_is_taken_as_it_is(home: Path) -> None:
    assert find("envs", home / "envs" / "desk.toml") == home / "envs" / "desk.toml"


def test_a_policy_may_be_a_folder(home: Path) -> None:
    assert find("policies", "grown") == home / "policies" / "grown"
    assert find("policies", "policies/grown") == home / "policies" / "grown"


def test_the_checkouts_recipes_are_found_from_elsewhere(home: Path, repository: Path) -> None:
    assert find("launch", "launch/lift.toml") == repository / "launch" / "lift.toml"


def test_my_recipe_wins_over_the_shipped_one(home: Path) -> None:
    (home / "launch" / "lift.toml").write_text("")
    assert find("launch", "lift") == home / "launch" / "lift.toml"
    assert available("launch")["lift"] == home / "launch" / "lift.toml"


def test_a_misspelt_name_gets_the_nearest_one_and_where_was_looked(home: Path) -> None:
    with pytest.raises(RecipeError, match="unknown env 'dekk'; did you mean 'desk'") as caught:
        find("envs", "envs/dekk.toml")
    assert str(home / "envs") in str(caught.value)
    assert "vla list envs" in str(caught.value)


def test_a_folder_without_weights_is_not_a_policy_and_is_told_so(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds neither recipe\.toml nor config\.json"):
        find("policies", "policies/empty")


def test_a_name_of_two_kinds_must_say_which(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"names 2 recipes.*`envs/desk` or `launch/desk`"):
        locate("desk")
    assert locate("envs/desk") == ("envs", home / "envs" / "desk.toml")


def test_an_unknown_verb_in_a_launch_file_is_named(home: Path) -> None:
    path = home / "launch" / "desk.toml"
    path.write_text('verb = "runn"')
    with pytest.raises(RecipeError, match="unknown verb 'runn'; did you mean 'run'"):
        schema_for("launch", path)


def test_the_verb_of_a_base_says_what_its_heir_is_for(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "first.toml").write_text('verb = "finetune"\ndata = ["d"]\nsteps = 7\n')
    heir = tmp_path / "launch" / "second.toml"
    heir.write_text('base = "first"\nsteps = 8\n')
    schema = schema_for("launch", heir)
    assert schema.__name__ == "FinetuneRecipe"
    assert read(schema, heir).steps == 8


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b", "x" * 5000, "~nobody/lift", "\ud800"])
def test_what_can_be_no_name_is_our_error(name: str) -> None:
    with pytest.raises(RecipeError):
        find("envs", name)


@pytest.mark.parametrize("base", ["", "a\\u0000b", "x" * 5000, "~nobody/lift"])
def test_a_base_that_can_be_no_name_is_our_error(tmp_path: Path, base: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'base = "{base}"')
    with pytest.raises(RecipeError):
        read_table(EnvRecipe, path)


@pytest.fixture
def old_leader(home: Path) -> Path:
    """A leader arm's recipe where earlier releases kept it."""
    path = home / "hands" / "mine.toml"
    path.parent.mkdir()
    path.write_text("# mine\n")
    return path


@pytest.mark.parametrize("name", ["mine", "mine.toml", "hands/mine", "hands/mine.toml"])
def test_a_teleoperator_in_its_former_folder_is_found_and_told(
    home: Path, old_leader: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    find_module._tell.cache_clear()
    assert find("teleoperators", name) == old_leader
    assert find("teleoperators", name) == old_leader
    (told,) = caplog.messages
    assert "teleoperators lie in envs/teleoperators/ now; hands/ works for one more release" in told


def test_a_path_and_a_list_lead_to_the_former_folder_too(
    home: Path, old_leader: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find_module._tell.cache_clear()
    assert locate(str(old_leader)) == locate("hands/mine") == ("teleoperators", old_leader)
    assert available("teleoperators")["mine"] == old_leader
    assert caplog.messages != []


def test_the_new_folder_wins_and_is_silent(
    home: Path, old_leader: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = home / "envs" / "teleoperators" / "mine.toml"
    new.parent.mkdir()
    new.write_text("")
    assert find("teleoperators", "mine") == find("teleoperators", "envs/teleoperators/mine") == new
    shipped = repository / "envs" / "teleoperators" / "so101_leader.toml"
    assert find("teleoperators", "so101_leader") == shipped
    assert caplog.messages == []
    assert "so101_leader" not in available("envs")
    # The former name of a recipe that we ship.
    assert locate("hands/so101_leader") == ("teleoperators", shipped)
