"""Stages: files that follow each other with one command; each changes exactly the parts that the paper's does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from vla_robot.cli.main import main
from vla_robot.core.errors import RecipeError
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.recipe import dump, read
from vla_robot.recipe.finetune import DemosFinetuneRecipe, QuestionsRecipe
from vla_robot.train.finetune import finetune

from ..conftest import TINY
from .test_boxes import write_scenes

ALL = {"vision", "projector", "decoder"}
PAPERS = {
    "paligemma": (ALL, ALL, ALL),
    "qwen_vl": ({"vision", "projector"}, ALL, {"decoder"}),
    "openvla": ({"projector"}, {"projector", "decoder"}, ALL),
}
"""Parts that learn in each stage: Beyer et al. 2024; Wang et al. 2024 (Qwen2-VL); Karamcheti et al. 2024 and Kim et al.
2024."""
FAMILIES = {"paligemma": "paligemma", "qwen_vl": "qwen2_vl", "openvla": "openvla"}


def quiet(*_: object) -> None:
    pass


def stage_files(name: str) -> list[Path]:
    return [Path("launch") / "stages" / f"{name}_{number}.toml" for number in (1, 2, 3)]


def parts_that_differ(start: Path, end: Path) -> set[str]:
    """Parts of which a parameter differs between two folders of policies; each parameter is in one part."""
    before, after = (family_of(folder).load(folder).model for folder in (start, end))
    values: dict[str, Any] = dict(after.named_parameters())
    changed = {name for name, p in before.named_parameters() if not torch.equal(p, values[name])}
    parts = {name: [part for part, begins in before.PARTS.items() if name.startswith(begins)] for name in changed}
    assert all(len(found) == 1 for found in parts.values()), parts
    return {found[0] for found in parts.values()}


@pytest.mark.parametrize("name", ["paligemma", "openvla", pytest.param("qwen_vl", marks=pytest.mark.slow)])
def test_each_stage_changes_the_parts_of_the_papers_and_no_other(
    recipe: DemosFinetuneRecipe, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The shipped files, with small data and a small model in the place of theirs."""
    scenes = write_scenes(tmp_path / "scenes", scenes=16)
    edge = 28 if name != "qwen_vl" else 56
    sizes = replace(TINY, family=FAMILIES[name], image_size=edge, tower_depth=3, max_positions=256, locations=True)
    (tmp_path / "launch").mkdir()
    for number, file in enumerate(stage_files(name), 1):
        shipped = read(DemosFinetuneRecipe, repository / file)
        assert shipped.questions is not None
        small = replace(
            shipped, data=recipe.data, steps=2, batch_size=6, warmup_steps=0, shift_px=0, evaluate_every=2, ema=0.0,
            architecture=sizes, policy=None if number == 1 else tmp_path / "replaced by the stage before",
            questions=QuestionsRecipe(scenes, shipped.questions.weight), dataset_name="light",
            resolution=None if shipped.resolution is None else 56,
        )  # fmt: skip
        (tmp_path / "launch" / file.name).write_text(dump(small))
    monkeypatch.chdir(tmp_path)
    files = [f"launch/{file.name}" for file in stage_files(name)]
    assert main(["finetune", *files, "--out", "out"]) == 0
    folders = [tmp_path / "out" / f"{number}_{name}_{number}" for number in (1, 2, 3)]
    assert tuple(parts_that_differ(folder / "start", folder / "final") for folder in folders) == PAPERS[name]
    assert not parts_that_differ(folders[1] / "final", folders[2] / "start")
    if name == "paligemma":
        edges = [read_json(folder / "final" / "config.json")["vision_config"]["image_size"] for folder in folders]
        assert edges == [28, 56, 56]
    else:
        assert not parts_that_differ(folders[0] / "final", folders[1] / "start")
    assert main(["finetune", *files, "--out", "out"]) == 0  # all is done: nothing is trained again


def test_a_towers_rate_rises_on_its_own(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    """AdamW's first step moves each weight by about its rate."""
    rate = 1e-2
    slow = replace(
        recipe, steps=1, learning_rate=rate, warmup_steps=0, vision_warmup_steps=100, weight_decay=0.0, ema=0.0
    )
    finetune(slow, tmp_path, quiet)
    before, after = (family_of(folder).load(folder).model for folder in (tmp_path / "start", tmp_path / "final"))
    values: dict[str, Any] = dict(after.named_parameters())
    moved = {name: float((values[name] - p).abs().max()) for name, p in before.named_parameters()}
    largest = {
        part: max(value for name, value in moved.items() if name.startswith(begins))
        for part, begins in before.PARTS.items()
    }
    assert largest["vision"] == pytest.approx(rate / 100, rel=0.02)
    assert largest["projector"] == pytest.approx(rate, rel=0.02)
    assert largest["decoder"] == pytest.approx(rate, rel=0.02)


def test_a_stage_that_is_interrupted_ends_the_series(
    recipe: DemosFinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launch").mkdir()
    for name in ("one", "two"):
        (tmp_path / "launch" / f"{name}.toml").write_text(dump(replace(recipe, steps=2)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vla_robot.cli.finetune.finetune.finetune", _stopped)
    assert main(["finetune", "launch/one.toml", "launch/two.toml", "--out", "out"]) == 130


def _stopped(recipe: DemosFinetuneRecipe, out: Path, *_: object, **others: object) -> Any:
    from vla_robot.train.finetune import Trained

    assert out.name == "1_one"
    return Trained(out / "final", 1, {})


def test_another_resolution_interpolates_positions_as_transformers_does(
    recipe: DemosFinetuneRecipe, tmp_path: Path
) -> None:
    sizes = replace(TINY, family="paligemma", image_size=28, tower_depth=3, max_positions=256)
    trained = finetune(replace(recipe, architecture=sizes, steps=1), tmp_path / "small", quiet).policy
    family = family_of(trained)
    old: Any = family.load(trained).model
    write_json(trained / "config.json", {**read_json(trained / "config.json"), "kept": 1})
    family.resize(trained, 56)
    new: Any = family.load(trained).model
    assert new.pixel_shape()[-2:] == (56, 56)
    plain, values = dict(old.named_parameters()), dict(new.named_parameters())
    assert [n for n in plain if not torch.equal(plain[n], values[n])] == [
        "vlm.model.vision_tower.embeddings.position_embedding.weight"
    ]
    assert new.config.codec.ids.tolist() == old.config.codec.ids.tolist()
    vision = old.vlm.config.vision_config
    library = SiglipVisionModel(SiglipVisionConfig(**{**vision.to_dict(), "vision_use_head": False})).eval()
    library.load_state_dict(old.vlm.model.vision_tower.state_dict())
    pixels = torch.rand(2, 1, 3, 56, 56)
    with torch.no_grad():
        wanted = library(pixels[:, 0], interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(new.perceive(pixels), wanted, atol=1e-5)
    with pytest.raises(RecipeError, match="no multiple of the tower's patches of 14 px"):
        family.resize(trained, 57)


def test_resolutions_that_cannot_be_are_refused(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a new model has image_size in"):
        replace(recipe, resolution=56)
    with pytest.raises(RecipeError, match="must be at least 1 pixel"):
        replace(recipe, policy=tmp_path, resolution=0)
    trained = finetune(replace(recipe, steps=1), tmp_path / "openvla", quiet).policy
    with pytest.raises(RecipeError, match="the resolution of OpenVLA's towers is fixed"):
        finetune(replace(recipe, policy=trained, resolution=56), tmp_path / "run", quiet)


def test_the_shipped_files_name_each_others_results(repository: Path) -> None:
    for name in PAPERS:
        first, *later = (read(DemosFinetuneRecipe, repository / file) for file in stage_files(name))
        for number, stage in enumerate(later, 1):
            assert stage.policy is not None
            trained = repository / "data" / name / f"{number}_{name}_{number}" / "final"
            assert stage.policy.resolve() == trained.resolve()
        assert first.train and all(stage.questions for stage in (first, *later))
