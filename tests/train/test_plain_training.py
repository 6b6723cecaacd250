"""The loop that `vla bench finetune` compares with learns the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vla_robot.cli.main import main
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.finetune import finetune


@pytest.mark.parametrize("source", [[], ["--data"]], ids=["made", "given"])
def test_the_plain_loop_has_the_same_losses_with_all_weights_and_with_adapters(
    recipe: FinetuneRecipe, demos_folder: Path, tmp_path: Path, source: list[str]
) -> None:
    policy = finetune(replace(recipe, steps=1), tmp_path / "run", lambda progress: None).policy
    data = [*source, str(demos_folder)] if source else []
    command = ["bench", "finetune", "--policy", str(policy), *data, "--lora-rank", "2", "--rounds", "2", "--steps", "2"]
    assert main([*command, "--batch-size", "8", "--json", str(tmp_path / "out.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    for name, learned in (("full", 1.0), ("lora2", 0.25)):
        assert rows[f"{name}/loss_difference"]["value"] < 1e-5
        assert 0 < rows[f"{name}/learned"]["value"] <= learned
        assert 0 < rows[f"{name}/plain_loading"]["value"] < 1
        rate = rows[f"{name}/rate"]
        assert rate["ratio"] == pytest.approx(rate["value"] / rate["baseline"])


def test_numbers_that_make_no_benchmark_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "finetune", "--rounds", "0"]) == 2
    assert "--rounds" in capsys.readouterr().err
