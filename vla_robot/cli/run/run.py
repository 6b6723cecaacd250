"""`vla run`: closed-loop episodes. A policy drives a world in a process of its own; a table and a report follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.cli.common.cli_common import on, shown, shown_env
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.run.args import RunArgs
from vla_robot.cli.run.outcome import device_option, exit_status, print_crashed, print_finished, rows_option
from vla_robot.cli.run.progress_view import LiveView, result_table
from vla_robot.cli.run.takeover import dataset, print_if_never_asked, shared_control, validate_options
from vla_robot.core.errors import RecipeError
from vla_robot.evaluate.report_parts import REPORT
from vla_robot.evaluate.runner import run_episodes, run_folder
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.results import RunInfo, RunSummary
from vla_robot.recipe import dump, find, read
from vla_robot.recipe.env_source import EnvSource, find_env
from vla_robot.recipe.launch import LaunchRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.load import device_of

_NOTHING_TO_RUN = (
    "say what to run: a launch file, as in `vla run launch/lift.toml`, or both a world and a policy, as in "
    "`vla run --env lift --policy openvla_nano`. `vla list` shows what there is."
)


@dataclass(frozen=True)
class Plan:
    """A run, with every name resolved to a file.

    Attributes:
        launch: the launch file with the command line's options.
        source: its origin, for the user.
        env: the world.
        policy: the policy.
        device: device of the policy's weights, in words; None without weights in this process.
        device_asked: device of the command line; None for the recipe's.
    """

    launch: LaunchRecipe
    source: str
    env: EnvSource
    policy: PolicySource
    device: str | None
    device_asked: str | None


def plan(args: RunArgs) -> Plan:
    """Resolve a command line, before any process starts.

    Raises:
        RecipeError: nothing to run, or a name is unknown.
        ContractError: there is no such device on this computer.
    """
    options = ("env", "policy", "episodes", "seed", "rows")
    chosen = {name: value for name in options if (value := getattr(args, name)) is not None}
    if args.real_time:
        chosen["real_time"] = True
    if args.launch is not None:
        path = find("launch", args.launch)
        launch, source = dataclasses.replace(read(LaunchRecipe, path), **chosen), str(path)
    elif args.env is not None and args.policy is not None:
        launch, source = LaunchRecipe(**chosen), "the command line"
    else:
        raise RecipeError(_NOTHING_TO_RUN)
    env, policy = find_env(launch.env), find_policy(launch.policy).on_device(args.device)
    return Plan(launch, source, env, policy, device_of(policy), args.device)


def main(args: RunArgs) -> int:
    """Run the episodes; status 0 if none ended in an error, whatever the score.

    Raises:
        VlaError: a recipe, the world or the policy cannot be used, or they do not fit. Finished episodes are reported.
    """
    validate_options(args)
    if args.robot is not None:
        from vla_robot.cli.run.run_robot import run_on_robot

        return run_on_robot(args, args.robot)
    if args.dry_run or args.arm:
        raise RecipeError("--dry-run and --arm are for a robot behind a bridge: add --robot ADDRESS.")
    what = plan(args)
    env = what.env.recipe
    say(_opening(what), flush=True)
    with run_folder(args.out) as folder, open_world(env, what.policy.is_privileged) as world:
        print_crashed(folder)
        policy = build_policy(what.policy, env, world.embodiment, args.key, what.launch.rows)
        with (
            stop_on_interrupt() as stop,
            dataset(args, world.embodiment, what.policy.name) as on_episode,
            shared_control(args, policy, world.embodiment, world.instruction, row_by_row=True) as (driver, seeing),
            LiveView(what.launch.episodes) as view,
        ):
            pace_hz = env.rate_hz if what.launch.real_time or args.takeover else None
            guard = build_guard(world.embodiment.action)
            summary = run_episodes(
                partial(run_episode, world, driver, guard=guard, rate_hz=pace_hz, should_stop=stop.is_set),
                world.embodiment,
                what.launch.seeds,
                info=_info(what, world.instruction),
                folder=folder,
                subscribers=[view, *seeing],
                should_stop=stop.is_set,
                video=args.videos == "all",
                on_episode=on_episode,
                on_failure=partial(print_finished, folder=folder, file=args.json),
            )
    Terminal().print(result_table(summary))
    print_if_never_asked(args, summary)
    if args.json:
        write_json(args.json, "run", **summary.to_dict())
    say(_closing(what, summary, folder))
    return exit_status(summary)


def _opening(what: Plan) -> str:
    launch = what.launch
    return (
        f"vla run: {what.source}\n"
        f"  world {shown_env(what.env)}, policy {shown(what.policy)}{on(what.device)}, "
        f"{launch.episodes} episodes from seed {launch.seed}"
    )


def _info(what: Plan, instruction: str) -> RunInfo:
    """Return names and recipes for the report; the recipes are merged, so that the run can be repeated from them."""
    launch = what.launch
    recipes = {"launch.toml": dump(launch), "env.toml": dump(what.env.recipe)}
    if what.policy.is_recipe:
        recipes["policy.toml"] = dump(what.policy.recipe)
    return RunInfo(
        env=what.env.name,
        policy=what.policy.name,
        instruction=what.env.recipe.instruction or instruction,
        command=(
            f"vla run --env {shown_env(what.env)} --policy {shown(what.policy)} "
            f"--episodes {launch.episodes} --seed {launch.seed}{rows_option(launch)}"
            f"{device_option(what.device_asked)}"
        ),
        recipes=recipes,
        device=what.device,
    )


def _closing(what: Plan, summary: RunSummary, folder: Path) -> str:
    """Return where the report is, and a suggestion for the next command."""
    if not summary.episodes:
        return "No episode was finished; nothing was written."
    launch = what.launch
    again = f"`vla run --env {shown_env(what.env)} --policy {shown(what.policy)} --episodes 50 --seed {launch.seed}`"
    baseline = (
        f"`vla run --env {shown_env(what.env)} --policy random --episodes {launch.episodes} --seed {launch.seed}`"
    )
    suggestion = (
        f"{again} narrows the interval" if launch.episodes < 50 else f"{baseline} is the baseline to compare with"
    )
    return f"\nReport: {folder / REPORT}\nNext: {suggestion}."
