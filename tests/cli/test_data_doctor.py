"""`vla data stats` and `vla data doctor` from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_robot.cli.main import main


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "oxe"
    shutil.copytree(Path(__file__).parent.parent / "golden" / "rlds_samples", folder)
    return folder


def test_stats_of_a_mixture_are_written_in_the_references_schema(samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset_statistics.json"
    assert main(["data", "stats", "bridge_rt_1", "--root", str(samples), "--out", str(out)]) == 0
    statistics = json.loads(out.read_text())
    assert set(statistics) == {"bridge_orig", "fractal20220817_data"}
    assert set(statistics["bridge_orig"]["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}


def test_a_path_takes_the_registrys_recipe_of_its_name(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(samples / "bridge_orig")]) == 0
    assert "6 (not normalised)" in capsys.readouterr().out


def test_the_doctors_findings_are_printed_and_written(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["data", "doctor", str(samples / "libero_spatial_no_noops"), "--json", str(report)]) == 1
    printed = capsys.readouterr().out
    assert "no-ops" in printed and "fix: set skip_still = true" in printed and "problem found" in printed
    rows = json.loads(report.read_text())["rows"]
    assert {row["check"] for row in rows} >= {"no-ops", "gripper", "frames", "instructions"}


def test_a_dataset_is_compared_with_a_checkpoint(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "doctor", str(samples / "bridge_orig"), "--policy", "openvla_nano"])
    assert "the range of actions differs from the checkpoint's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bridge_orgi"], "bridge_orgi"),
        (["bridge_orig"], "has no location of the dataset; set location there, or name a folder with --root"),
        (["bridge_orig", "--root", "nowhere"], "nowhere does not exist"),
        (["bridge_orig", "--recipe", "kuka"], "is a recipe itself"),
    ],
)
def test_a_dataset_that_cannot_be_found_is_explained(
    arguments: list[str], message: str, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "doctor", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.sim
def test_recorded_actions_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = str(tmp_path / "demos")
    record: Callable[[list[str]], int] = main
    assert (
        record(["record", "--env", "tabletop", "--episodes", "2", "--image-size", "32", "--workers", "1", "--out", out])
        == 0
    )
    capsys.readouterr()
    main(["data", "doctor", out, "--env", "tabletop"])
    assert "2 of 2 episodes that succeeded succeed again from their seeds in 'tabletop'" in capsys.readouterr().out


@pytest.fixture
def nameless(samples: Path) -> Path:
    """A dataset in LIBERO's structure under a name that no recipe is published under."""
    folder = samples / "mine"
    shutil.move(samples / "libero_spatial_no_noops", folder)
    info = next(folder.glob("*/dataset_info.json"))
    for shard in info.parent.glob("*.tfrecord-*"):
        shard.rename(info.parent / shard.name.replace("libero_spatial_no_noops", "my_arm"))
    info.write_text(info.read_text().replace('"libero_spatial_no_noops"', '"my_arm"'))
    return folder


def test_a_dataset_without_a_recipe_gets_no_statistics(nameless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(nameless)]) == 2
    assert "No recipe is known for 'my_arm'" in capsys.readouterr().err
    assert main(["data", "stats", str(nameless), "--recipe", "libero_spatial_no_noops"]) == 0
    assert capsys.readouterr().out.startswith("libero_spatial_no_noops: 42 transitions")


def test_a_dataset_without_a_recipe_is_looked_at_and_converted_with_a_word_on_it(
    nameless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "doctor", str(nameless)]) == 1
    assert "recipe: No recipe is known for 'my_arm'" in capsys.readouterr().out
    assert main(["data", "inspect", str(nameless), "--out", str(tmp_path / "pictures")]) == 0
    assert "Without one it would have to be assumed that 'action' is a standard action" in capsys.readouterr().out
    assert main(["data", "convert", str(nameless), str(tmp_path / "lerobot"), "--to", "lerobot", "--rate-hz", "5"]) == 0
    assert "were copied unchanged. No recipe is known for 'my_arm'" in capsys.readouterr().out


def test_the_recipe_of_a_dataset_is_told(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(next((samples / "bridge_orig").glob("*.*.*")), samples / "bridge_orig" / "0.0.1")
    assert main(["data", "inspect", str(samples / "bridge_orig"), "--out", str(tmp_path / "pictures")]) == 0
    printed = capsys.readouterr().out
    assert "Recipe: bridge_orig" in printed and "several versions: 1.0.0 is read, not 0.0.1." in printed
    assert main(["data", "stats", str(samples / "bridge_orig")]) == 0
    assert "several versions: 1.0.0 is read, not 0.0.1." in capsys.readouterr().out
