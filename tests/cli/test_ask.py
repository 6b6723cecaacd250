"""`vla ask`: what it says, draws and writes, and what it refuses before a policy is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vla_robot.cli.ask.drawing import drawn
from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.language.boxes import Box
from vla_robot.core.messages import Image
from vla_robot.data.questions import QuestionWriter
from vla_robot.testing import toy_embodiment

ANSWER = "<loc0256><loc0512><loc0768><loc1000> red cube"


@dataclass
class Answering:
    """A policy that says the same to every question."""

    said: str
    embodiment: Embodiment | None = None
    asked: list[tuple[Mapping[str, Image], str, int]] = field(default_factory=list)

    def answer(self, images: Mapping[str, Image], question: str, max_tokens: int = 32) -> str:
        self.asked.append((images, question, max_tokens))
        return self.said


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch, repository: Path) -> Answering:
    monkeypatch.chdir(repository)
    stand_in = Answering(ANSWER)
    monkeypatch.setattr("vla_robot.policy.kinds.load_policy", lambda recipe, embodiment: stand_in)
    return stand_in


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.Image.fromarray(np.full((100, 200, 3), 128, np.uint8)).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == EXIT_USER_ERROR
    return " ".join(capsys.readouterr().err.split())


def test_boxes_are_said_drawn_and_written(
    policy: Answering, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers = tmp_path / "boxes.png", tmp_path / "out.json"
    argv = [
        "ask",
        str(picture),
        "detect red cube",
        "--policy",
        "openvla_nano",
        "--out",
        str(out),
        "--json",
        str(numbers),
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert ANSWER in said
    assert "red cube: x 100 to 195, y 25 to 75 of 200 x 100 px" in said
    (images, question, _) = policy.asked[0]
    assert (question, [image.shape for image in images.values()]) == ("detect red cube", [(100, 200, 3)])
    written = json.loads(numbers.read_text())
    assert written["answer"] == ANSWER
    assert written["rows"] == [
        {"y_min": 0.25, "x_min": 0.5, "y_max": 0.75, "x_max": 1000 / 1024, "name": "red cube", "codes": []}
    ]
    pixels = np.asarray(PIL.Image.open(out))
    changed = np.argwhere((pixels != 128).any(axis=-1)) / pixels.shape[:2]
    assert changed[:, 1].min() == pytest.approx(0.5, abs=0.01)
    assert changed[:, 0].max() == pytest.approx(0.75, abs=0.01)
    assert (np.asarray(PIL.Image.open(picture)) == 128).all()  # the picture itself is left alone


def test_words_are_said_as_they_are(policy: Answering, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.said = "two"
    assert main(["ask", str(picture), "how many cubes?", "--policy", "openvla_nano", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == "two\n"
    assert policy.asked[0][2] == 5


def test_words_where_boxes_were_asked_for_are_an_error(
    policy: Answering, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.said = "a red cube"
    message = error_of(["ask", str(picture), "detect red cube", "--policy", "openvla_nano"], capsys)
    assert "the answer is no list of boxes: it has 'a red cube'" in message


def test_every_camera_needs_its_picture(policy: Answering, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.embodiment = toy_embodiment(cameras=("front", "wrist"))
    asked = ["ask", str(picture), "how many?", "--policy", "openvla_nano"]
    assert "add --images wrist=FILE" in error_of(asked, capsys)
    assert "write CAMERA=FILE" in error_of([*asked, "--images", "wrist"], capsys)
    assert "got pictures of front, side" in error_of([*asked, "--images", f"side={picture}"], capsys)
    assert main([*asked, "--images", f"wrist={picture}"]) == 0
    assert list(policy.asked[0][0]) == ["front", "wrist"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "takes IMAGE"),
        (["a.png", "how", "many"], "the question in quotes, and got 3 words"),
        (["a.png", "how many?", "--env", "lift"], 'takes "QUESTION" --env ENV'),
        (["how many?", "--env", "lift", "--images", "a=b.png"], "--images and --env exclude each other"),
        (["--held-out", "data", "--env", "lift"], "--env and --held-out exclude each other"),
        (["how many?", "--held-out", "data"], "takes --held-out FOLDER and no question"),
        (["a.png", "detect x", "--out", "a.jpg"], "is written as PNG; name it a.png"),
        (["a.png", "detect x", "--max-tokens", "0"], "an answer has at least 1 token"),
        (["nowhere.png", "how many?"], "nowhere.png cannot be read"),
    ],
)
def test_mistakes_are_explained(
    policy: Answering, more: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in error_of(["ask", *more, "--policy", "openvla_nano"], capsys)


def test_policies_without_words_are_refused(
    repository: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    asked = ["ask", str(picture), "how many?", "--policy"]
    assert "policy 'hold' of kind 'hold' does not answer in words" in error_of([*asked, "hold"], capsys)
    assert "name the policy's folder" in error_of([*asked, "tcp://127.0.0.1:5580"], capsys)


def test_held_out_questions_are_measured(policy: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with QuestionWriter(tmp_path / "asked") as writer:
        images = {"front": np.zeros((20, 20, 3), np.uint8)}
        far = "<loc0000><loc0000><loc0100><loc0100> red cube"
        writer.write("train", 0, images, [("how many?", "two")])
        writer.write(
            "held_out", 1, images, [("how many?", "two"), ("what is it?", ANSWER), ("detect red cube", ANSWER)]
        )
        writer.write("held_out", 2, images, [("detect red cube", far)])
    out = tmp_path / "out.json"
    asked = ["ask", "--held-out", str(tmp_path / "asked"), "--policy", "openvla_nano", "--json", str(out)]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "answers in words: 1 of 2 right, 50.0%" in said
    assert "boxes: mean overlap 0.500, 1 of 2 at least 0.5; 2 answers are boxes" in said
    assert {row["name"]: row["value"] for row in json.loads(out.read_text())["rows"]} == {
        "questions": 2, "right": 1, "boxes": 2, "mean_overlap": 0.5, "overlap_at_least_half": 1, "well_formed": 2,
    }  # fmt: skip
    policy.said = "no idea"
    assert main(asked) == 0
    assert "mean overlap 0.000, 0 of 2 at least 0.5; 0 answers are boxes" in capsys.readouterr().out


def test_small_pictures_are_enlarged_before_they_are_drawn_on() -> None:
    image = np.zeros((84, 100, 3), np.uint8)
    assert drawn(image, [Box(0.1, 0.1, 0.9, 0.9, "cube")]).shape == (504, 600, 3)
    assert not image.any()
