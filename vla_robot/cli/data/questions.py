"""`vla data questions`: writes questions and answers about a world's scenes, so that training keeps the language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError
from vla_robot.core.image import resize
from vla_robot.core.language.boxes import Box
from vla_robot.core.ports import OutlinesObjects, World
from vla_robot.core.seeds import seed_problem
from vla_robot.data.cube_questions import ask_about_cubes, caption_cubes, detect_cubes
from vla_robot.data.questions import QuestionWriter, Split

About = Literal["questions", "captions", "boxes"]


@dataclass(frozen=True)
class QuestionsArgs:
    """Write questions about the cubes on a world's table, with answers from the simulator's state."""

    out: Annotated[Path, option("FOLDER")]
    """a new folder: train.jsonl, held_out.jsonl and images/"""
    env: Annotated[str, option("ENV")] = "lift_some"
    """a world with red, green and blue cubes, by name or path"""
    about: Annotated[tuple[About, ...], option("questions captions boxes")] = ("questions",)
    """what is written about each scene: questions in plain words; "caption en", what lies where; and
    "detect red cube" ..., boxes in the first camera's picture, around the pixels that show the cube"""
    scenes: Annotated[int, option("N")] = 400
    """scenes for training"""
    held_out: Annotated[int, option("N")] = 100
    """scenes for the held-out questions; their seeds follow"""
    seed: Annotated[int, option("SEED")] = 0
    """seed of the first scene; the k-th has SEED + k"""
    image_size: Annotated[int, option("PX")] = 84
    """edge of the stored frames in pixels: the policy's input size"""

    def __post_init__(self) -> None:
        if min(self.scenes, self.held_out, self.image_size) < 1:
            raise RecipeError(
                f"--scenes {self.scenes} --held-out {self.held_out} --image-size {self.image_size}: at least 1 of each."
            )
        if problem := seed_problem(self.seed, self.scenes + self.held_out):
            raise RecipeError(f"--seed {self.seed}: {problem}.")


def data_questions(args: QuestionsArgs) -> int:
    """Write the questions.

    Raises:
        VlaError: the world cannot be built or has no such cubes, or the folder is not empty.
    """
    from vla_robot.cli.build import open_world_here
    from vla_robot.recipe.env_source import find_env

    total = args.scenes + args.held_out
    with (
        QuestionWriter(args.out) as writer,
        open_world_here(find_env(args.env).recipe, privileged=True) as world,
        Bar("scenes", Terminal()) as bar,
    ):
        for number in range(total):
            _write_scene(writer, world, "train" if number < args.scenes else "held_out", args.seed + number, args)
            bar.update(number + 1, total)
    say(f"{short_path(args.out)} holds questions about {total} scenes.")
    say('Next: a table [questions] with folder = "..." in a recipe for `vla finetune`.')
    return 0


def _write_scene(writer: QuestionWriter, world: World, split: Split, seed: int, args: QuestionsArgs) -> None:
    seen = world.reset(seed)
    images = {name: resize(image, args.image_size, args.image_size) for name, image in seen.images.items()}
    asked: list[tuple[str, str]] = []
    if "questions" in args.about:
        asked += ask_about_cubes(seed, seen.privileged)
    if "captions" in args.about:
        asked += caption_cubes(seed, seen.privileged)
    if "boxes" in args.about:
        asked += detect_cubes(_outlines(world, args)[next(iter(images))])
    writer.write(split, seed, images, asked)


def _outlines(world: World, args: QuestionsArgs) -> Mapping[str, Mapping[str, Box]]:
    if not isinstance(world, OutlinesObjects):
        raise RecipeError(f"--about boxes: the world '{args.env}' does not say where its objects are seen.")
    return world.outlines()
