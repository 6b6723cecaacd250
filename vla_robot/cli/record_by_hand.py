"""`vla record --by browser`: a person drives from a page, and what they keep becomes a LeRobot v3 dataset."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vla_robot.cli.hands import open_hands, welcome
from vla_robot.cli.interrupt import stop_on_interrupt
from vla_robot.cli.words import EXIT_INTERRUPTED
from vla_robot.core.errors import RecipeError
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.record.by_hand import Session
from vla_robot.record.collect import Collected
from vla_robot.record.lerobot_format import LeRobotWriter

if TYPE_CHECKING:
    from vla_robot.cli.record import RecordArgs

PATIENCE_S = 120.0
"""A recipe's horizon is made for policies; a person gets this much time of the world for one episode."""


def record_by_hand(args: RecordArgs) -> list[Collected]:
    """Record until so many episodes are kept, or Ctrl-C.

    Raises:
        RecipeError: an option says nothing here.
        ContractError: hands cannot drive this arm.
        DataError: the folder holds something else, or the disk refuses.
    """
    from vla_robot.world.kinds import build_world

    path, recipe = _world(args)
    driver_name = f"a person, by {args.by}"
    with (
        LeRobotWriter(args.out) as writer,
        contextlib.closing(build_world(_patient(recipe))) as world,
        contextlib.closing(open_hands(args.by, world.embodiment, world.instruction, port=args.port)) as teleop,
        stop_on_interrupt() as stop,
    ):
        print(f"vla record: {path} → {args.out}, driven by {args.by}\n{welcome(teleop)}", flush=True)
        session = Session(
            world,
            teleop,
            writer,
            driver_name,
            keep=args.keep or "all",
            image_size=args.image_size,
            on_event=_tell,
        )
        fresh = _fresh_seeds(args.seed, {seed for seed, driver in writer.recorded if driver == driver_name})
        return session.record(fresh, args.episodes, stop.is_set)


def main(args: RecordArgs) -> int:
    """Record, and say what there is now."""
    from vla_robot.cli.json_out import write_json
    from vla_robot.cli.record import results

    started_s = time.monotonic()
    made = record_by_hand(args)
    if args.json:
        write_json(args.json, "record", **results(made, time.monotonic() - started_s))
    kept = sum(event.kept for event in made)
    print(f"\n{kept} of {len(made)} episodes were kept in {args.out}.")
    print(f"Next: `vla data inspect {args.out}` shows them; the same command adds more.")
    return 0 if kept == args.episodes else EXIT_INTERRUPTED


def _world(args: RecordArgs) -> tuple[str, EnvRecipe]:
    if args.env is None or args.recipe is not None:
        raise RecipeError(
            f"--by {args.by} needs a world and no dataset recipe: `vla record --env lift --by {args.by}`."
        )
    for name, given in (("--driver", args.driver), ("--noise", args.noise), ("--workers", args.workers)):
        if given:
            raise RecipeError(f"{name} says nothing where a person drives; leave it out.")
    path = find("envs", args.env)
    return str(path), read(EnvRecipe, path)


def _patient(recipe: EnvRecipe) -> EnvRecipe:
    return replace(recipe, horizon=max(recipe.horizon, round(PATIENCE_S * recipe.rate_hz)))


def _fresh_seeds(first: int, used: set[int]) -> Iterator[int]:
    return (seed for seed in itertools.count(first) if seed not in used)


def _tell(event: Collected) -> None:
    outcome = "success" if event.success else "no success"
    print(f"  seed {event.seed}: {event.steps} steps, {outcome}, {'kept' if event.kept else 'forgotten'}", flush=True)
