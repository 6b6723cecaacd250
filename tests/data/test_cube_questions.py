"""Questions, captions and boxes of cubes: what is said of a scene, and that the boxes are where the cubes are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vla_robot.cli.main import main
from vla_robot.core.errors import DataError
from vla_robot.core.language.boxes import Box, boxes_of
from vla_robot.data.cube_questions import MIDDLE_M, caption_cubes, detect_cubes
from vla_robot.data.questions import read_questions
from vla_robot.recipe import read
from vla_robot.recipe.env import CameraRecipe, RobosuiteRecipe

FLOOR = np.array([3.0, 0.0, -0.9])


def test_a_caption_names_cubes_from_left_to_right() -> None:
    truth = {
        "red_pos": np.array([MIDDLE_M + 0.03, 0.12, 0.02]),
        "green_pos": np.array([MIDDLE_M - 0.03, -0.125, 0.02]),
        "blue_pos": FLOOR,
    }
    said = "a green cube far left near the arm, a red cube far right near the camera"
    assert caption_cubes(0, truth) == [("caption en", said)]
    with pytest.raises(DataError, match="no cube on the table"):
        caption_cubes(0, dict.fromkeys(truth, FLOOR))


def test_cubes_that_are_hardly_seen_are_not_asked_for() -> None:
    whole, rest = Box(0.5, 0.4, 0.6, 0.5), Box(0.5, 0.4, 0.51, 0.41)
    assert detect_cubes({"green": whole, "red": rest, "arm": whole}) == [
        ("detect green cube", "<loc0512><loc0409><loc0614><loc0512> green cube")
    ]


@pytest.mark.sim
def test_boxes_surround_the_cubes_of_a_rendered_scene(tmp_path: Path) -> None:
    from vla_robot.world.sim.robosuite_world import RobosuiteWorld

    recipe = read(RobosuiteRecipe, "lift_some")
    small = [dataclasses.replace(camera, height=112, width=112) for camera in recipe.cameras]
    world = RobosuiteWorld(dataclasses.replace(recipe, cameras=tuple(small)), privileged=True)
    try:
        for seed in (6, 3):  # three cubes, and two
            truth = world.reset(seed).privileged
            outlines = world.outlines()
            assert set(outlines) == {"front", "wrist"}
            there = {c for c in ("red", "green", "blue") if abs(truth[f"{c}_pos"][2]) < 0.3}
            assert set(outlines["front"]) == there
            for colour in there:
                centre = world._data.body(world._env.cubes[colour].root_body).xpos
                row, column = _projected(small[0], centre)
                box = outlines["front"][colour]
                assert box.y_min < row < box.y_max
                assert box.x_min < column < box.x_max
                assert 0.003 < box.area < 0.03
    finally:
        world.close()


def _projected(camera: CameraRecipe, point: np.ndarray) -> tuple[float, float]:
    """Row and column, in fractions of the picture, at which a camera sees a point of the world frame [m]."""
    assert camera.pos is not None and camera.target is not None
    forward = np.subtract(camera.target, camera.pos)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right = right / np.linalg.norm(right)
    up = np.cross(right, forward)
    seen = point - np.array(camera.pos)
    scale = 0.5 / np.tan(np.deg2rad(camera.fovy_deg) / 2) / (seen @ forward)
    return 0.5 - scale * (seen @ up), 0.5 + scale * (seen @ right)


@pytest.mark.sim
def test_the_command_writes_what_is_asked_for(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    out = tmp_path / "asked"
    scenes = ["--scenes", "2", "--held-out", "1", "--seed", "6", "--image-size", "84"]
    assert main(["data", "questions", "--out", str(out), "--about", "captions", "boxes", *scenes]) == 0
    asked = read_questions(out)
    questions = [q for split in asked.values() for q in split]
    assert {q.question for q in questions} == {"caption en", *(f"detect {c} cube" for c in ("red", "green", "blue"))}
    for question in questions:
        if question.question != "caption en":
            (box,) = boxes_of(question.answer, question.question)
            assert question.question == f"detect {box.name}"
            assert next(iter(question.images)) == "front"
