"""`vla record --source keyboard` etc.: a person drives; kept episodes go into a LeRobot v3 dataset."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from vla_robot.cli.build import connect_robot, open_world_here
from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, shown_env
from vla_robot.cli.common.interrupt import not_suspended, stop_on_interrupt
from vla_robot.cli.common.terminal import say
from vla_robot.cli.record.args import RecordArgs
from vla_robot.cli.record.outcome import results
from vla_robot.cli.record.teleop_devices import open_named_teleoperator, require_terminal_for, welcome
from vla_robot.core.errors import RecipeError
from vla_robot.core.seeds import seed_problem
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.record.collect import Collected
from vla_robot.record.controlled_robot import Controllable, LiveRobot, WaitingWorld
from vla_robot.record.teleop_session import Session

PATIENCE_S = 120.0
"""Smallest length of an episode for a person [s]; a recipe's horizon is made for policies."""


def record_by_hand(args: RecordArgs) -> list[Collected]:
    """Record until --episodes are kept, or until Ctrl-C.

    Raises:
        RecipeError: an option has no meaning here.
        ContractError: the device cannot drive this arm.
        TeleopError: the device is absent, or was lost. Finished episodes are kept, and the arm holds.
        TransportError: the bridge does not answer.
        DataError: the folder holds something else, or cannot be written.
    """
    _require_sense(args)
    driver_name = f"a person, by {args.source}"
    with (
        stop_on_interrupt() as stop,
        LeRobotWriter(args.out) as writer,
        _opened(args) as arm,
        contextlib.closing(
            open_named_teleoperator(args.source, arm.driven.embodiment, arm.instruction, page=args.page)
        ) as teleop,
    ):
        say(f"vla record: {arm.where} → {args.out}, driven by {args.source}\n{welcome(teleop)}", flush=True)
        session = Session(
            arm.driven,
            teleop,
            writer,
            driver_name,
            keep=args.save or "all",
            image_size=args.image_size,
            on_event=_tell,
        )
        fresh = _fresh_seeds(args.seed, {seed for seed, driver, _ in writer.recorded if driver == driver_name})
        return session.record(fresh, args.episodes, stop.is_set)


def main(args: RecordArgs) -> int:
    """Record, and print the number of episodes."""
    from vla_robot.cli.common.json_out import write_json

    started_s = time.monotonic()
    made = record_by_hand(args)
    elapsed_s = time.monotonic() - started_s
    kept = sum(event.kept for event in made)
    say(f"\n{kept} of {len(made)} episodes were kept in {args.out}.")
    say(f"Next: `vla data inspect {args.out}` shows them; the same command adds more.")
    if args.json:
        write_json(args.json, "record", **results(made, elapsed_s))
    return 0 if kept == args.episodes else EXIT_INTERRUPTED


class _Arm(NamedTuple):
    """The arm that a person drives.

    Attributes:
        driven: the arm itself.
        instruction: the task, until another one is typed.
        where: a recipe's path, or an address.
    """

    driven: Controllable
    instruction: str
    where: str


def _require_sense(args: RecordArgs) -> None:
    """Raise RecipeError for options that have no meaning if a person drives, TeleopError without a terminal for one."""
    if args.recipe is not None or (args.env is None) == (args.robot is None):
        raise RecipeError(
            f"--source {args.source} needs a world and no dataset recipe: `vla record --env lift "
            f"--source {args.source}`, or a robot behind its bridge: `--robot tcp://127.0.0.1:5570`."
        )
    if problem := seed_problem(args.seed, args.episodes):
        raise RecipeError(f"--seed {args.seed}: {problem}.")
    for name, given in (("--driver", args.driver), ("--noise", args.noise), ("--workers", args.workers)):
        if given:
            raise RecipeError(f"{name} has no meaning if a person drives; leave it out.")
    if args.robot is None and (args.arm or args.key):
        raise RecipeError("--arm and --key are for a robot behind a bridge; leave them out, or add --robot ADDRESS.")
    args.page.validate_options(args.source, "--source browser opens one")
    require_terminal_for(args.source)


@contextlib.contextmanager
def _opened(args: RecordArgs) -> Iterator[_Arm]:
    """Open the world of a recipe, or connect to the robot behind a bridge; closed with the block."""
    if args.robot is not None:
        with not_suspended(), connect_robot(args.robot, args.key) as robot:
            if args.arm:
                robot.arm()
            yield _Arm(LiveRobot(robot), robot.instruction, args.robot)
        return
    assert args.env is not None  # _require_sense asks for it
    env = find_env(args.env)
    with open_world_here(_patient(env.recipe)) as world:
        yield _Arm(WaitingWorld(world), world.instruction, shown_env(env))


def _patient(recipe: EnvRecipe) -> EnvRecipe:
    return replace(recipe, horizon=max(recipe.horizon, round(PATIENCE_S * recipe.rate_hz)))


def _fresh_seeds(first: int, used: set[int]) -> Iterator[int]:
    return (seed for seed in itertools.count(first) if seed not in used)


def _tell(event: Collected) -> None:
    outcome = "success" if event.success else "no success"
    say(f"  seed {event.seed}: {event.steps} steps, {outcome}, {'kept' if event.kept else 'forgotten'}", flush=True)
