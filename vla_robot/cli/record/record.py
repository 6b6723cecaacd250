"""`vla record`: records a scripted expert, with noise or correcting a learner that drives."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import tyro

from vla_robot.cli.build import build_policy, open_world_here
from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, shown_env
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import ProgressBar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.record import record_teleop as record_by_hand
from vla_robot.cli.record.args import RecordArgs
from vla_robot.cli.record.outcome import results
from vla_robot.cli.record.teleop_devices import is_teleoperator, refuse_misspelt_device
from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.host.device_names import device_problem
from vla_robot.core.host.provenance import available_cores
from vla_robot.core.ports import Policy
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe import find, read
from vla_robot.recipe.dataset import DatasetRecipe, Recording
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.env_source import EnvSource, find_env
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.record.collect import Collected, Collector, WithoutTruth, store
from vla_robot.record.workers import collect_in_processes

PLAIN_LINE_EVERY = 10
"""Episodes between progress lines without a terminal."""

MOST_WORKERS = 4
"""Largest default of --workers: each holds a simulator, and a learned driver its weights."""

IN_THE_RECIPE = ("source", "episodes", "seed", "driver", "noise", "image_size", "save")
"""Options of a recording without a recipe."""


def plan(args: RecordArgs) -> DatasetRecipe:
    """Return the dataset recipe of a command line.

    Raises:
        RecipeError: neither a recipe nor a world, or both, or a number outside its range.
    """
    if (args.recipe is None) == (args.env is None):
        raise RecipeError(
            "say what to record: a dataset recipe, as in `vla record datasets/mine.toml --out data/mine`, or a world, "
            "as in `vla record --env lift --out data/lift`."
        )
    if args.robot is not None or args.arm or args.key:
        raise RecipeError(
            "--robot, --arm and --key are for a person who drives the robot behind a bridge: add --source keyboard. "
            "A policy's own episodes are recorded with `vla run --robot ADDRESS --policy NAME --record FOLDER`."
        )
    if args.workers is not None and args.workers < 1:
        raise RecipeError(f"--workers is {args.workers}; at least 1 is needed.")
    if args.recipe is not None:
        if given := _given(args):
            raise RecipeError(
                f"{', '.join(given)}: with a dataset recipe these stand in the recipe. Change them in a copy of it, or "
                "leave the recipe out and give --env."
            )
        return read(DatasetRecipe, find("datasets", args.recipe))
    assert args.env is not None
    recording = Recording(args.source, args.driver, args.noise, args.episodes, args.seed, args.save)
    return DatasetRecipe(env=args.env, recordings=(recording,), image_size=args.image_size)


def _given(args: RecordArgs) -> list[str]:
    """Return the options of `IN_THE_RECIPE` that have another value than their default."""
    defaults = {f.name: f.default for f in fields(RecordArgs)}
    return [f"--{name.replace('_', '-')}" for name in IN_THE_RECIPE if getattr(args, name) != defaults[name]]


@dataclass(frozen=True)
class Build:
    """Builds the world and the policies of a recording; is sent to the worker processes.

    Attributes:
        env: the world.
        label: the policy that gives the label.
        driver: the policy that moves the arm; None for `label`.
        noise: strength of the driver's noise, 0 to 1.
        image_size: edge of the stored frames in pixels, or None.
        also_ask: further instructions that each frame gets a label for.
        device: device of weights; None for that of each policy's recipe.
    """

    env: EnvSource
    label: Path
    driver: Path | None
    noise: float
    image_size: int | None
    also_ask: tuple[str, ...] = ()
    device: str | None = None

    @property
    def driver_name(self) -> str:
        """Driver's name, as stored with each episode: the same on every computer."""
        path = self.driver or self.label
        is_checkpoint_of_a_run = path.is_dir() and path.parent.name != "policies"  # many have the name "final"
        name = "/".join(path.parts[-2:]) if is_checkpoint_of_a_run else path.name.removesuffix(".toml")
        return f"{name}, noise {self.noise:g}" if self.noise else name

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Collector]:
        recipe = self.env.recipe
        with open_world_here(recipe, privileged=True) as world:
            label = self._policy(self.label, recipe, world.embodiment)
            driver = label if self.driver is None else self._policy(self.driver, recipe, world.embodiment)
            driver = self._disturbed(driver, world.embodiment.action)
            yield Collector(world, label, driver, self.driver_name, self.image_size, None, self.also_ask, self.env.name)

    def _policy(self, path: Path, recipe: EnvRecipe, embodiment: Embodiment) -> Policy:
        source = find_policy(path)
        if isinstance(source.recipe, WeightsRecipe):
            source = source.on_device(self.device)
        policy = build_policy(source, recipe, embodiment)
        return policy if source.is_privileged else WithoutTruth(policy)

    def _disturbed(self, driver: Policy, space: ActionSpace) -> Policy:
        if not self.noise:
            return driver
        from vla_robot.policy.scripted.perturb import Perturbation, PerturbedPolicy

        full = Perturbation()
        strength = Perturbation(self.noise * full.jitter, self.noise * full.burst_probability)
        return PerturbedPolicy(driver, space, strength)


def main(args: RecordArgs) -> int:
    """Record; status 0 if every episode was made.

    Raises:
        VlaError: a recipe, a policy, the world or the folder cannot be used. Finished episodes are kept.
    """
    if is_teleoperator(args.source):
        return record_by_hand.main(args)
    refuse_misspelt_device(args.source)
    recipe = plan(args)
    worlds = find_env(recipe.env)
    builds = [(recording, _builds(worlds, recipe, recording, args.device)) for recording in recipe.recordings]
    console = Terminal()
    source = args.recipe or shown_env(worlds)
    console.print(f"vla record: {source} → {args.out}", soft_wrap=True)
    started_s = time.monotonic()
    with LeRobotWriter(args.out) as writer:
        session = Session(writer, args.workers or min(MOST_WORKERS, available_cores()), console)
        try:
            for recording, of_tasks in builds:
                for build in of_tasks:
                    session.record(recording, build)
        finally:
            say(_news(args.out, session, writer, time.monotonic() - started_s), flush=True)
    elapsed_s = time.monotonic() - started_s
    goes_on = "the same command continues" if session.interrupted else "another --seed adds more"
    say(f"Next: name it under `data` in a launch file for `vla finetune`; {goes_on}.")
    if args.json:
        write_json(args.json, "record", **results(session.made, elapsed_s))
    return EXIT_INTERRUPTED if session.interrupted else 0


class Session:
    """The recording of one command.

    Attributes:
        made: every episode, in order.
        interrupted: Ctrl-C was pressed; nothing more is recorded.
    """

    def __init__(self, writer: LeRobotWriter, num_workers: int, console: Terminal) -> None:
        self.made: list[Collected] = []
        self.interrupted = False
        self._writer = writer
        self._num_workers = num_workers
        self._console = console

    def record(self, recording: Recording, build: Build) -> None:
        """Make the episodes of a recording that the dataset does not have yet."""
        if self.interrupted:
            return
        world, driver = build.env.name, build.driver_name
        seeds = [seed for seed in recording.seeds if not self._writer.has(seed, driver, world)]
        there = recording.episodes - len(seeds)
        self._console.print(
            f"  {world}: {recording.episodes} episodes from seed {recording.seed}, driven by {driver}"
            + (f"; {there} of them are recorded" if there else ""),
            soft_wrap=True,
        )
        if not seeds:
            return
        try:
            with (
                _Bar(recording.episodes, there, self._console) as bar,
                contextlib.closing(collect_in_processes(build, seeds, self._num_workers)) as demonstrations,
            ):
                store(demonstrations, self._writer, recording.kept, lambda event: self._note(event, bar))
        except KeyboardInterrupt:
            self.interrupted = True

    def _note(self, event: Collected, bar: _Bar) -> None:
        self.made.append(event)
        bar.add(event)


class _Bar(ProgressBar):
    """A progress bar with the time left; in a pipe, plain lines."""

    def __init__(self, total: int, done: int, console: Terminal) -> None:
        super().__init__(console)
        self._total = total
        self._before = done
        self._events: list[Collected] = []
        self._task = self._progress.add_task("starting the simulator", total=total, completed=done)

    def add(self, event: Collected) -> None:
        """Count one more episode."""
        self._events.append(event)
        made, done = len(self._events), self._before + len(self._events)
        steps = sum(e.steps for e in self._events) / made
        facts = f"{sum(e.success for e in self._events)} of {made} succeeded, {steps:.0f} steps on average"
        self._progress.update(self._task, description=facts, completed=done)
        if not self._console.is_terminal and (done % PLAIN_LINE_EVERY == 0 or done == self._total):
            self._console.print(f"  {done}/{self._total}  {facts}", soft_wrap=True)


def _builds(worlds: EnvSource, recipe: DatasetRecipe, recording: Recording, device: str | None) -> list[Build]:
    """Return what makes a recording, for each task of a suite; resolve every name before any process starts."""
    if device is not None and (problem := device_problem(device)):
        raise RecipeError(f"--device {device}: {problem}.")
    build = Build(
        env=worlds,
        label=find("policies", recording.source),
        driver=None if recording.driver is None else find("policies", recording.driver),
        noise=recording.noise,
        image_size=recipe.image_size,
        also_ask=recording.also_ask,
        device=device,
    )
    return [replace(build, env=task) for task in _tasks(worlds, recording)]


def _tasks(worlds: EnvSource, recording: Recording) -> list[EnvSource]:
    """Return the tasks that a recording names, in the suite's order; all of them if it names none."""
    known = worlds.tasks()
    names = [task.chosen for task in known if task.chosen]
    for task in recording.tasks:
        if task not in names:
            raise RecipeError(f"tasks: {unknown(f"task of '{worlds.name}'", task, names)}")
    return [task for task in known if not recording.tasks or task.chosen in recording.tasks]


def _news(out: Path, session: Session, writer: LeRobotWriter, elapsed_s: float) -> str:
    """Return how many episodes were made, and how many there are now."""
    made = session.made
    left_out = len(made) - sum(event.kept for event in made)
    news = f"{len(made)} episodes in {elapsed_s:.0f} s" if made else "No new episode"
    news += f", {left_out} without success left out" if left_out else ""
    return f"\n{news}. {out} holds {writer.num_episodes} episodes, {writer.num_frames} frames."


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(RecordArgs, prog="python -m vla_robot.cli.record.record")))
