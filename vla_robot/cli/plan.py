"""`vla plan`: which GPU holds a policy or its training, and the shortest time of an answer on it, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from vla_robot.cli.common.cli_common import option, shown
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.host.optional import require
from vla_robot.recipe.policy import CheckpointRecipe, OpenVLAOFTRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy

if TYPE_CHECKING:
    from vla_robot.policy.cards import Card
    from vla_robot.policy.outline import Outline
    from vla_robot.policy.roofline import Floor, Precision

TRAININGS = ("lora", "all", "vision", "projector", "decoder")
MOST_ROWS = 64
"""Largest batch that is looked at."""


@dataclass(frozen=True)
class PlanArgs:
    """Say which GPU holds a policy and how fast it can be there, before one buys or rents: arithmetic, no GPU needed.

    Only config.json of the policy's folder is read, so the weights need not be there. A time is a floor: operations at
    the card's rate, or weights at its memory's bandwidth, whichever takes longer. Programs take 1.5 to 4 times as
    long: docs/gpu.md compares with published figures.
    """

    policy: Annotated[str, tyro.conf.Positional, option("POLICY")]
    """a policy by name or path, or a folder with a config.json"""
    device: Annotated[tuple[str, ...], option("CARD ...")] = ()
    """cards: h100, h200, b200, a100, a100-40, l40s, 4090, orin, thor; by default all"""
    rate: Annotated[float | None, option("HZ")] = None
    """answers per second of all robots together; the table then says the smallest batch whose floor reaches it"""
    training: Annotated[tuple[str, ...], option("HOW ...")] = ()
    """instead: the memory of a training in bf16, by kind; lora, all, or one part: vision, projector, decoder"""
    batch_size: Annotated[int, option("ROWS")] = 8
    """rows of a training step on one GPU"""
    gpus: Annotated[int, option("N")] = 1
    """GPUs that share the trained model (`shard`)"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the table to this file as JSON"""

    def __post_init__(self) -> None:
        for how in self.training:
            if how not in TRAININGS:
                raise RecipeError(unknown("training", how, TRAININGS))
        for name, value in (("batch-size", self.batch_size), ("gpus", self.gpus)):
            if value < 1:
                raise RecipeError(f"--{name} {value}: a number above 0.")
        if self.rate is not None and self.rate <= 0:
            raise RecipeError(f"--rate {self.rate:g}: a number above 0.")


@dataclass(frozen=True)
class Question:
    """What is asked of a card.

    Attributes:
        outline: of the model.
        text_tokens: tokens of the prompt's text.
        answer: tokens of an answer that are guessed and corrected.
        corrections: passes after the first.
    """

    outline: Outline
    text_tokens: int = 20
    answer: int = 7
    corrections: int = 2

    def floor(self, card: Card, precision: Precision, batch: int) -> Floor:
        from vla_robot.policy.roofline import floor_of

        return floor_of(self.outline, card, precision, batch, self.text_tokens, self.answer)

    def batches(self, card: Card, precision: Precision) -> list[Floor]:
        """Return the floors of 1, 2, 4 ... observations, as many as fit."""
        floors = [self.floor(card, precision, 2**n) for n in range(MOST_ROWS.bit_length())]
        return [floor for floor in floors if floor.memory_gb <= card.memory_gb]


def main(args: PlanArgs) -> int:
    """Print a row for each card and precision; status 0.

    Raises:
        VlaError: the policy has no config.json of a family that is known, or a card is unknown.
    """
    require("torch", "policy", "a plan")
    from vla_robot.policy.cards import CARDS, card_named
    from vla_robot.policy.roofline import PRECISIONS

    source = find_policy(args.policy)
    if args.training:
        return _plan_trainings(args, source)
    asked = _question(source.recipe)
    cards = {name: card_named(name) for name in args.device or CARDS}
    found = [_row(name, card, p, asked, args.rate) for name, card in cards.items() for p in PRECISIONS if _has(card, p)]
    outline = asked.outline
    weights = (outline.matrices + outline.other) / 1e9
    prompt = outline.image_tokens + asked.text_tokens
    say(
        f"vla plan: {shown(source)}, {weights:.2f} billion weights, {outline.frames} camera(s), {prompt} tokens of a "
        f"prompt, {asked.answer} of an answer, {asked.corrections} corrections"
    )
    Terminal().print(_table(found, args.rate))
    say("Times are floors, without launches, copies and preprocessing: docs/gpu.md compares them with programs.")
    if args.json:
        write_json(args.json, "plan", [], plan=found)
    return 0


def _plan_trainings(args: PlanArgs, source: PolicySource) -> int:
    """Print the memory of trainings, part by part, and the cards that hold them."""
    from vla_robot.policy.cards import CARDS, card_named
    from vla_robot.policy.roofline import RESERVED_GB

    cards = {name: card_named(name) for name in args.device or CARDS}
    table, found = Table(box=None, pad_edge=False, header_style="dim"), list[dict[str, Any]]()
    for how in args.training:
        parts = _training_parts(source.recipe, how, args)
        needed_gb = sum(parts.values()) / 1e9 + RESERVED_GB
        fits = [name for name, card in cards.items() if needed_gb <= card.memory_gb]
        found.append({"training": how, "parts": parts, "needed_gb": needed_gb, "fits": fits})
        if not table.columns:
            for column in ("training", *parts, "needed"):
                table.add_column(column, justify="left" if column == "training" else "right", no_wrap=True)
            table.add_column("fits")
        table.add_row(how, *(f"{size / 1e9:.1f}" for size in parts.values()), f"{needed_gb:.1f}", " ".join(fits) or "-")
    shared = f" of each of {args.gpus} GPUs that share the model" if args.gpus > 1 else ""
    say(f"vla plan: training of {shown(source)}, {args.batch_size} rows, GB{shared}")
    Terminal().print(table)
    say(f"needed: with {RESERVED_GB} GB for the driver and libraries. lora: rank 32. all is bf16 over weights in fp32.")
    if args.json:
        write_json(args.json, "plan", [], plan=found)
    return 0


def _training_parts(recipe: object, how: str, args: PlanArgs) -> dict[str, int]:
    require("peft", "learn", "the plan of a training")
    from vla_robot.policy.families import family_of
    from vla_robot.recipe.finetune import DemosFinetuneRecipe
    from vla_robot.train.parallel.plan_ahead import planned_parts

    if not isinstance(recipe, CheckpointRecipe) or isinstance(recipe, OpenVLAOFTRecipe):
        raise RecipeError("`vla plan --training` counts policies of kinds openvla and vla; this one is of another.")
    kind: dict[str, Any] = {"lora_rank": 32} if how == "lora" else {} if how == "all" else {"train": (how,)}
    training = DemosFinetuneRecipe(
        data=(Path("none"),), batch_size=args.batch_size, bf16=True, shard=args.gpus > 1, **kind
    )
    return planned_parts(family_of(recipe.checkpoint).on_meta(recipe.checkpoint), training, args.gpus)


def _question(recipe: object) -> Question:
    from vla_robot.policy.families import family_of
    from vla_robot.policy.outline import oft_outline, outline_of

    if not isinstance(recipe, CheckpointRecipe):
        raise RecipeError("`vla plan` counts policies of kinds openvla, openvla_oft and vla; this one is of another.")
    family = family_of(recipe.checkpoint)
    if isinstance(recipe, OpenVLAOFTRecipe):
        oft = recipe.oft  # one pass over the prompt and a placeholder for each number of the chunk
        outline = oft_outline(recipe.checkpoint, len(oft.cameras), oft.proprio_dim)
        return Question(outline, text_tokens=20 + oft.chunk * oft.action_dim, answer=1, corrections=0)
    return Question(outline_of(family.on_meta(recipe.checkpoint)))


def _has(card: Card, precision: Precision) -> bool:
    return not precision.in_fp8 or card.fp8_tflops is not None


def _row(name: str, card: Card, precision: Precision, asked: Question, rate: float | None) -> dict[str, Any]:
    alone, fitting = asked.floor(card, precision, 1), asked.batches(card, precision)
    enough = [f.batch for f in fitting if rate is not None and f.per_s(asked.corrections) >= rate]
    return {
        "card": name,
        "model": card.model,
        "source": card.source,
        "precision": precision.name,
        "memory_gb": alone.memory_gb,
        "of_gb": card.memory_gb,
        "fits": bool(fitting),
        "floor_ms": alone.act_ms(asked.corrections),
        "per_s": alone.per_s(asked.corrections),
        "largest_batch": fitting[-1].batch if fitting else 0,
        "per_s_at_largest": fitting[-1].per_s(asked.corrections) if fitting else 0.0,
        "batch_for_rate": enough[0] if enough else None,
    }


def _table(rows: list[dict[str, Any]], rate: float | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("card", "weights\nin"):
        table.add_column(column, no_wrap=True)
    columns = ["GB of", "fits", "floor\nms", "answers\nper s", "largest\nbatch", "per s\nthen"]
    for column in columns + ([f"batch\nfor {rate:g}"] if rate else []):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["card"], row["precision"], f"{row['memory_gb']:.1f} of {row['of_gb']:g}"]
        if row["fits"]:
            cells += ["yes", f"{row['floor_ms']:.1f}", f"{row['per_s']:.0f}"]
            cells += [str(row["largest_batch"]), f"{row['per_s_at_largest']:.0f}"]
            cells += [str(row["batch_for_rate"] or "-")] if rate else []
        else:
            cells += ["no", *("-" for _ in columns[2:]), *(["-"] if rate else [])]
        table.add_row(*cells)
    return table
