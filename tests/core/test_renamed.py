"""An argument's old name is taken like the new one, and a warning says so."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest

import vla_robot
from vla_robot.core.errors import CheckpointError
from vla_robot.core.host import renamed
from vla_robot.core.host.renamed import takes_old_names


def scale(value: float, image_preprocessing: str = "none") -> str:
    return f"{value} {image_preprocessing}"


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", {**renamed.RENAMED, "scale": renamed.RENAMED["load_policy"]})


def test_an_old_name_is_passed_on_under_the_new_one_with_a_warning() -> None:
    (old,) = renamed.RENAMED["scale"]
    with pytest.warns(DeprecationWarning, match=rf"scale: '{old}' is called 'image_preprocessing' now; .* one more"):
        assert takes_old_names(scale)(2.0, **{old: "rlds"}) == "2.0 rlds"


def test_new_names_and_positions_pass_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert takes_old_names(scale)(2.0, "rlds") == takes_old_names(scale)(2.0, image_preprocessing="rlds")


def test_both_names_at_once_are_refused() -> None:
    (old,) = renamed.RENAMED["scale"]
    with pytest.raises(TypeError, match="is the old name of 'image_preprocessing', which is there too"):
        takes_old_names(scale)(2.0, image_preprocessing="rlds", **{old: "rlds"})


def test_load_policy_takes_its_old_name_and_each_new_name_exists(tmp_path: Path) -> None:
    load: Any = vla_robot.load_policy
    assert set(renamed.RENAMED["load_policy"].values()) <= set(inspect.signature(load).parameters)
    for old in renamed.RENAMED["load_policy"]:
        with pytest.warns(DeprecationWarning), pytest.raises(CheckpointError):
            load(tmp_path / "absent", **{old: "rlds"})
