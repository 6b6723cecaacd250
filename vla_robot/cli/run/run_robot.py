"""`vla run --robot ADDRESS`: runs episodes on the robot behind a bridge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from vla_robot.cli.build import build_guard, build_robot_policy, connect_robot
from vla_robot.cli.common.cli_common import on
from vla_robot.cli.common.interrupt import not_suspended, stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.run.args import RunArgs
from vla_robot.cli.run.outcome import (
    device_option,
    exit_status,
    print_crashed,
    print_finished,
    print_notes,
    rows_option,
)
from vla_robot.cli.run.progress_view import LiveView, result_table
from vla_robot.cli.run.takeover import dataset, print_if_never_asked, shared_control
from vla_robot.core.errors import ContractError, RecipeError, VlaError, WorldError
from vla_robot.core.ports import Policy, ReportsStatus
from vla_robot.evaluate.report_parts import REPORT
from vla_robot.evaluate.runner import Drive, run_episodes, run_folder
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.loop.results import RunInfo
from vla_robot.loop.warm_up import warm_up
from vla_robot.recipe.launch import LaunchRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.synchronous_env import SynchronousEnv
from vla_robot.serve.policy.load import device_of

SLOW_S = 1.0
"""Duration of the first inference above which it is reported [s]."""


def run_on_robot(args: RunArgs, address: str) -> int:
    """Run the episodes; status 0 if none ended in an error, whatever the score.

    Raises:
        RecipeError: an option has no meaning here, or no policy is named.
        VlaError: the bridge or the policy cannot be used, or they do not fit. Finished episodes are reported.
    """
    launch = _launch(args, address)
    source = find_policy(launch.policy).on_device(args.device)
    device = device_of(source)
    way = "lockstep" if args.lockstep else "real time"
    say(f"vla run: robot {address}, policy {launch.policy}{on(device)}, {launch.episodes} episodes, {way}", flush=True)
    with not_suspended(), run_folder(args.out) as folder, connect_robot(address, args.key) as robot:
        print_crashed(folder)
        if args.dry_run:
            _require_dry(robot)
        if args.arm:
            robot.arm()
        _require_armed(robot)
        policy = build_robot_policy(source, robot, args.key, launch.rows)
        guard = build_guard(robot.embodiment.action)
        with (
            stop_on_interrupt() as stop,
            dataset(args, robot.embodiment, source.name) as on_episode,
            shared_control(
                args,
                policy,
                robot.embodiment,
                robot.instruction,
                row_by_row=args.lockstep,
                look=robot.look,
                on_estop=lambda: robot.stop("the person who may take over pressed e-stop"),
            ) as (driver, seeing),
            LiveView(launch.episodes) as view,
        ):
            if args.lockstep:
                pace_hz = robot.embodiment.rate_hz if args.takeover else None  # a person needs the time of a clock
                drive: Drive = partial(run_episode, SynchronousEnv(robot), driver, rate_hz=pace_hz)
            else:
                drive = partial(run_live_episode, robot, driver)
                _warm_up(policy, robot, launch.seed, view, stop.is_set)
            drive = partial(drive, guard=guard, should_stop=stop.is_set)
            summary = run_episodes(
                drive,
                robot.embodiment,
                launch.seeds,
                info=_info(args, launch, robot, source.name, device),
                folder=folder,
                subscribers=[view, *seeing, *([_Shown(robot.embodiment.action.names)] if args.dry_run else [])],
                should_stop=stop.is_set,
                video=args.videos == "all",
                on_episode=on_episode,
                on_failure=partial(print_finished, folder=folder, file=args.json),
                notes=BridgeLogWatch(robot).notes,
            )
    Terminal().print(result_table(summary))
    print_if_never_asked(args, summary)
    print_notes(summary)
    if args.json:
        write_json(args.json, "run", **summary.to_dict())
    if summary.episodes:
        say(f"\nReport: {folder / REPORT}\nNext: repeat it with `--lockstep` to see the effect of inference time.")
    return exit_status(summary)


class BridgeLogWatch:
    """Counts failures of the bridge's log since this object was made. A bridge without a log, or gone, reports none."""

    def __init__(self, robot: ReportsStatus) -> None:
        self._robot = robot
        self._before, _ = self._failures()

    def notes(self) -> Sequence[str]:
        count, newest = self._failures()
        if count <= self._before:
            return ()
        now = f" The newest: {newest}" if newest else ""
        return (f"The bridge's log failed for {count - self._before} episodes; the arm continued.{now}",)

    def _failures(self) -> tuple[int, str]:
        with contextlib.suppress(VlaError):
            status = self._robot.status()
            return int(status.get("counts", {}).get("log_failures", 0)), str(status.get("log_failure", ""))
        return 0, ""


class _Shown:
    """Prints the policy's actions a few times per second."""

    EVERY = 6

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._steps = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StepDone):
            return
        if self._steps % self.EVERY == 0 and event.wanted is not None:
            wants = "  ".join(f"{n} {v:+.4f}" for n, v in zip(self._names, event.wanted, strict=True))
            say(f"step {event.result.observation.step:4d}  {wants}", flush=True)
        self._steps += 1


def _require_armed(robot: RemoteRobot) -> None:
    """Raise TransportError if the arm is stopped, before the policy loads, which may take minutes."""
    status = robot.status()
    if status.get("mode") == "stopped":
        raise ContractError(
            f"the arm is stopped: {status.get('reason')}. Find the cause, then `vla run --robot {robot.address} --arm`."
        )


def _warm_up(policy: Policy, robot: RemoteRobot, seed: int, view: LiveView, should_stop: Callable[[], bool]) -> None:
    """Run the policy before the arm moves: a first inference that compiles a model exceeds every watchdog.

    Raises:
        VlaError: the policy fails, or is too slow for this bridge.
    """
    view.say("warming up the policy; nothing moves, and its first answer may take minutes", lasting=False)
    try:
        warm = warm_up(
            policy, robot.look_idle, seed, robot.time_limits, robot.embodiment.rate_hz, should_stop=should_stop
        )
    except WorldError as error:
        view.say(f"the policy is not warmed up: no observation comes before the first episode. {error}", lasting=True)
        return
    first = f"; its first answer took {warm.first_s:.1f} s" if warm.first_s > SLOW_S else ""
    view.say(f"the policy answers in {warm.quick_s:.2f} s{first}", lasting=bool(first))


def _require_dry(robot: RemoteRobot) -> None:
    if not robot.status().get("dry_run"):
        raise RecipeError(
            f"the bridge at {robot.address} does not run dry: start it with `vla bridge ENV --dry-run`, or leave out "
            "--dry-run here."
        )


def _launch(args: RunArgs, address: str) -> LaunchRecipe:
    if args.launch is not None or args.env is not None:
        raise RecipeError("with --robot, the bridge has the world: leave out the launch file and --env.")
    if args.policy is None:
        raise RecipeError(f"name the policy for the robot at {address}: --policy NAME. `vla list policies` shows them.")
    chosen = {name: value for name in ("episodes", "seed", "rows") if (value := getattr(args, name)) is not None}
    return LaunchRecipe(env=address, policy=args.policy, **chosen)


def _info(args: RunArgs, launch: LaunchRecipe, robot: RemoteRobot, policy: str, device: str | None) -> RunInfo:
    more = rows_option(launch) + device_option(args.device) + (" --lockstep" if args.lockstep else "")
    return RunInfo(
        env=robot.embodiment.name,
        policy=policy,
        instruction=robot.instruction,
        command=(
            f"vla run --robot {robot.address} --policy {launch.policy} --episodes {launch.episodes} "
            f"--seed {launch.seed}{more}"
        ),
        device=device,
    )
