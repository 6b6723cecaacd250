"""`vla ask`: asks a policy about a picture or a world's cameras, and draws the boxes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vla_robot.cli.ask.drawing import require_png, write_drawn
from vla_robot.cli.ask.held_out import measure
from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.image import turned
from vla_robot.core.language.boxes import Box, asks_for_boxes, boxes_of
from vla_robot.core.messages import Image
from vla_robot.core.ports import AnswersQuestions
from vla_robot.core.seeds import seed_problem
from vla_robot.recipe.policy import PolicyRecipe, RemoteRecipe, WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy

ALONE = "image"
"""Name of the one picture of a policy that does not say its cameras."""


@dataclass(frozen=True)
class AskArgs:
    """Ask a policy that answers in words (docs/words.md).

    vla ask photo.png "how many cubes are on the table?" --policy FOLDER
    vla ask photo.png "detect red cube" --policy FOLDER --out boxes.png
    vla ask "which cube is left?" --env lift_some --seed 3 --policy FOLDER
    vla ask --held-out datasets/cube_questions --policy FOLDER

    "detect NAME" asks for boxes, "segment NAME" for boxes with the codes of masks, as PaliGemma learned them; anything
    else is a question in words. A policy answers what it was trained on: [questions] of a recipe for `vla finetune`.
    """

    policy: Annotated[str, option("POLICY")]
    """the policy, by name or path"""
    words: Annotated[tuple[str, ...], tyro.conf.Positional, option("[IMAGE] QUESTION")] = ()
    """a JPEG or PNG file, the picture of the policy's first camera, and the question; with --env the question alone"""
    images: Annotated[tuple[str, ...], option("CAMERA=FILE ...")] = ()
    """pictures of the policy's other cameras"""
    env: Annotated[str | None, option("ENV")] = None
    """ask about what the cameras of this world see at the start of an episode, by name or path"""
    seed: Annotated[int, option("SEED")] = 0
    """seed of that episode"""
    held_out: Annotated[Path | None, option("FOLDER")] = None
    """instead of one question, ask all held-out ones of a folder of `vla data questions`, and report the share that
    is answered right and how far boxes overlap with the true ones"""
    out: Annotated[Path | None, option("PICTURE.png")] = None
    """draw the answer's boxes on a copy of the first camera's picture"""
    max_tokens: Annotated[int, option("N")] = 64
    """longest answer, in tokens"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where the policy runs, instead of its recipe's device: auto, cpu, cuda, cuda:1 or mps"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the answer and its boxes to this file as JSON"""

    def __post_init__(self) -> None:
        wanted = 0 if self.held_out else 1 if self.env else 2
        if len(self.words) != wanted:
            form = ("--held-out FOLDER and no question", '"QUESTION" --env ENV', 'IMAGE "QUESTION"')[wanted]
            raise RecipeError(
                f"vla ask takes {form}, the question in quotes, and got {len(self.words)} words: "
                f"{', '.join(map(repr, self.words)) or 'none'}."
            )
        sources = {"--images": self.images, "--env": self.env, "--held-out": self.held_out}
        if len(given := [name for name, value in sources.items() if value]) > 1:
            raise RecipeError(f"{' and '.join(given)} exclude each other: each says where the pictures are.")
        if self.held_out and self.out:
            raise RecipeError("--out draws the answer to one question; leave it out with --held-out.")
        if self.max_tokens < 1:
            raise RecipeError(f"--max-tokens is {self.max_tokens}; an answer has at least 1 token.")
        if problem := seed_problem(self.seed):
            raise RecipeError(f"--seed {self.seed}: {problem}.")
        if self.out is not None:
            require_png(self.out)

    @property
    def question(self) -> str:
        """The question."""
        return self.words[-1]


def main(args: AskArgs) -> int:
    """Ask.

    Raises:
        RecipeError: the policy runs elsewhere, or a file is given for no camera.
        ContractError: the policy has no words, or a camera's picture is missing.
        PolicyError: the answer to "detect" or "segment" is no list of boxes.
        VlaError: the policy, a picture or the world cannot be used.
    """
    source = find_policy(args.policy).on_device(args.device)
    policy = load_answering(source)
    if args.held_out is not None:
        measure(policy, args.held_out, args.max_tokens, args.json)
        return 0
    cameras = cameras_of(policy)
    seen = _seen_in_world(args) if args.env else _seen_in_files(args, cameras)
    is_mirrored = isinstance(source.recipe, WeightsRecipe) and source.recipe.mirror
    answer = policy.answer(_as_trained(seen, is_mirrored), args.question, args.max_tokens)
    boxes = boxes_of(answer, args.question) if asks_for_boxes(args.question) else ()
    if is_mirrored:
        boxes = tuple(_mirrored(box) for box in boxes)
    first = seen[cameras[0]] if cameras else seen[min(seen)]
    _report(args, answer, boxes, first)
    return 0


def load_answering(source: PolicySource) -> AnswersQuestions:
    """Load a policy that answers in words.

    Raises:
        RecipeError: it runs elsewhere.
        ContractError: it has no words.
        VlaError: it cannot be loaded.
    """
    from vla_robot.policy.kinds import load_policy

    if isinstance(source.recipe, RemoteRecipe):
        raise RecipeError(f"{source} is a policy's address, where no question can be asked; name the policy's folder.")
    may_answer = isinstance(source.recipe, WeightsRecipe) or source.recipe.kind not in PolicyRecipe.kinds.built_in
    policy = load_policy(source.recipe, None) if may_answer else None
    if not isinstance(policy, AnswersQuestions):
        raise ContractError(
            f"policy '{source.name}' of kind '{source.recipe.kind}' does not answer in words. Vision-language-action "
            "models of the kinds openvla and vla do: `vla list policies`."
        )
    return policy


def cameras_of(policy: object) -> tuple[str, ...]:
    """Return the names of a policy's cameras, in its order; none if it does not say them."""
    embodiment = getattr(policy, "embodiment", None)
    return () if embodiment is None else tuple(camera.name for camera in embodiment.cameras)


def _seen_in_world(args: AskArgs) -> Mapping[str, Image]:
    from vla_robot.cli.build import open_world
    from vla_robot.recipe.env_source import find_env

    assert args.env is not None
    with open_world(find_env(args.env).recipe) as world:
        return world.reset(args.seed).images


def _seen_in_files(args: AskArgs, cameras: tuple[str, ...]) -> Mapping[str, Image]:
    from vla_robot.data.formats.images import read_picture

    files = {cameras[0] if cameras else ALONE: Path(args.words[0])} | dict(_file(each) for each in args.images)
    if cameras and files.keys() != set(cameras):
        others = " ".join(f"{name}=FILE" for name in cameras[1:])
        raise ContractError(
            f"the policy reads the cameras {', '.join(cameras)}, and got pictures of {', '.join(files)}. IMAGE is of "
            f"'{cameras[0]}'{f'; add --images {others}' if others else ' and the only one'}."
        )
    return {name: read_picture(path) for name, path in files.items()}


def _file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise RecipeError(f"--images {text}: write CAMERA=FILE, such as wrist=wrist.png.")
    return name, Path(file)


def _as_trained(seen: Mapping[str, Image], is_mirrored: bool) -> Mapping[str, Image]:
    return {name: turned(image, 0, is_mirrored) for name, image in seen.items()}


def _mirrored(box: Box) -> Box:
    return Box(box.y_min, 1 - box.x_max, box.y_max, 1 - box.x_min, box.name, box.codes)


def _report(args: AskArgs, answer: str, boxes: tuple[Box, ...], image: Image) -> None:
    """Print, draw and write the answer."""
    height, width = image.shape[:2]
    say(answer or "(an empty answer)")
    for box in boxes:
        x_min, y_min, x_max, y_max = box.in_pixels(height, width)
        place = f"x {x_min:.0f} to {x_max:.0f}, y {y_min:.0f} to {y_max:.0f}"
        say(f"  {box.name or 'a box'}: {place} of {width} x {height} px")
    if args.out is not None:
        write_drawn(args.out, image, boxes)
        say(f"{short_path(args.out)} has {len(boxes)} box{'' if len(boxes) == 1 else 'es'}.")
    if args.json is not None:
        rows = [{**asdict(box), "codes": list(box.codes)} for box in boxes]
        write_json(
            args.json, "ask", rows=rows, question=args.question, answer=answer, image={"height": height, "width": width}
        )
