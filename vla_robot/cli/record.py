"""`vla record`: demonstrations by a scripted expert, plain, disturbed, or of a learner that the expert corrects."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_robot.cli.build import build_policy, sees_the_truth
from vla_robot.cli.json_out import write_json
from vla_robot.cli.words import EXIT_INTERRUPTED, option, short_path
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import VlaError
from vla_robot.core.ports import Policy, World
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.record.collect import Collected, Collector, Keep, WithoutTruth, store
from vla_robot.record.lerobot_format import LeRobotWriter
from vla_robot.record.workers import collect_in_processes

PLAIN_LINE_EVERY = 10
"""Episodes between progress lines where there is no terminal to draw a bar on."""


@dataclass(frozen=True)
class RecordArgs:
    """Demonstrations, as a LeRobot v3 dataset. The same command again goes on where an interrupted one ended."""

    env: Annotated[str, option("ENV")]
    """the world, by name or path"""
    out: Annotated[Path, option("FOLDER")]
    """the dataset's folder; one that exists is continued"""
    by: Annotated[str, option("POLICY")] = "expert"
    """who says what should be done, by name or path"""
    episodes: Annotated[int, option("N")] = 50
    """how many episodes"""
    seed: Annotated[int, option("SEED")] = 0
    """the first episode's seed; the k-th has SEED + k"""
    driver: Annotated[str | None, option("POLICY")] = None
    """who moves the arm while --by says what should have been done (DAgger); by default --by itself"""
    noise: Annotated[float, option("0..1")] = 0.0
    """how strongly the driver is disturbed, so that demonstrations show how to get out of mistakes (DART)"""
    image_size: Annotated[int | None, option("PIXELS")] = None
    """store frames at this size; take the input size of the policy that will learn, or leave it out"""
    keep: Annotated[Keep | None, option("all|success")] = None
    """which episodes are stored; by default all with --driver, successful ones without"""
    workers: Annotated[int | None, option("N")] = None
    """processes, each with its own world; by default one per core, at most 4"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file, for machines"""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise VlaError(f"--episodes is {self.episodes}, must be at least 1.")
        if self.seed < 0:
            raise VlaError(f"--seed is {self.seed}, must not be negative.")
        if not 0 <= self.noise <= 1:
            raise VlaError(f"--noise is {self.noise:g}, must lie in 0..1.")
        if self.image_size is not None and not 16 <= self.image_size <= 640:
            raise VlaError(f"--image-size is {self.image_size}, must lie in 16..640 pixels.")
        if self.workers is not None and self.workers < 1:
            raise VlaError(f"--workers is {self.workers}, must be at least 1.")


@dataclass(frozen=True)
class Build:
    """Makes the world and the policies of one recording; crosses into the worker processes.

    Attributes:
        env: the world's recipe.
        label: the policy that says what should be done.
        driver: the policy that moves the arm; None lets the label do it.
        noise: how strongly the driver is disturbed, 0..1.
        image_size: edge of the stored frames in pixels, or None.
    """

    env: Path
    label: Path
    driver: Path | None
    noise: float
    image_size: int | None

    @property
    def driver_name(self) -> str:
        """As it is stored with each episode."""
        name = (self.driver or self.label).stem
        return f"{name} noise {self.noise:g}" if self.noise else name

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Collector]:
        recipe = read(EnvRecipe, self.env)
        with contextlib.closing(self.world(recipe)) as world:
            label = self._policy(self.label, recipe, world.embodiment)
            driver = label if self.driver is None else self._policy(self.driver, recipe, world.embodiment)
            yield Collector(world, label, self._disturbed(driver, world), self.driver_name, self.image_size)

    def world(self, recipe: EnvRecipe) -> World:
        from vla_robot.world.kinds import build_world

        return build_world(recipe, privileged=True)

    def _policy(self, path: Path, recipe: EnvRecipe, embodiment: Embodiment) -> Policy:
        policy = build_policy(path, recipe, embodiment)
        return policy if sees_the_truth(path) else WithoutTruth(policy)

    def _disturbed(self, driver: Policy, world: World) -> Policy:
        if not self.noise:
            return driver
        from vla_robot.policy.perturb import Perturbation, PerturbedPolicy

        usual = Perturbation()
        strength = Perturbation(
            jitter=self.noise * usual.jitter, burst_probability=self.noise * usual.burst_probability
        )
        return PerturbedPolicy(driver, world.embodiment.action, strength)


def main(args: RecordArgs) -> int:
    """Record; status 0 when all episodes were made.

    Raises:
        VlaError: something is wrong with a recipe, a policy, the world or the folder. Finished episodes are kept.
    """
    build = Build(
        env=find("envs", args.env),
        label=find("policies", args.by),
        driver=None if args.driver is None else find("policies", args.driver),
        noise=args.noise,
        image_size=args.image_size,
    )
    console = Console(highlight=False)
    console.print(f"vla record: {short_path(build.env)}, driven by {build.driver_name} → {args.out}")
    started_s = time.monotonic()
    with LeRobotWriter(args.out) as writer:
        seeds = _missing(args, writer, build.driver_name)
        made, interrupted = _record(args, build, seeds, writer, console)
        totals = writer.num_episodes, writer.num_frames
    elapsed_s = time.monotonic() - started_s
    if args.json:
        write_json(args.json, "record", **_results(made, elapsed_s))
    print(_closing(args, made, totals, elapsed_s))
    return EXIT_INTERRUPTED if interrupted else 0


def _missing(args: RecordArgs, writer: LeRobotWriter, driver_name: str) -> list[int]:
    """The seeds that this command asks for and that the dataset does not hold yet."""
    wanted = range(args.seed, args.seed + args.episodes)
    return [seed for seed in wanted if (seed, driver_name) not in writer.recorded]


def _record(
    args: RecordArgs, build: Build, seeds: Sequence[int], writer: LeRobotWriter, console: Console
) -> tuple[list[Collected], bool]:
    """Every episode that was made, and whether Ctrl-C cut the recording short."""
    keep: Keep = args.keep or ("success" if args.driver is None else "all")
    made: list[Collected] = []
    workers = args.workers or min(4, os.cpu_count() or 1)
    with _Bar(args.episodes, args.episodes - len(seeds), console) as bar:

        def note(event: Collected) -> None:
            made.append(event)
            bar(event)

        try:
            with contextlib.closing(collect_in_processes(build, seeds, workers)) as demonstrations:
                store(demonstrations, writer, keep, note)
        except KeyboardInterrupt:
            return made, True
    return made, False


class _Bar:
    """A progress bar with the time left; a pipe gets a plain line now and then."""

    def __init__(self, total: int, done: int, console: Console) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._successes = 0
        self._steps = 0
        self._made = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting the simulator", total=total, completed=done)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Collected) -> None:
        self._done += 1
        self._made += 1
        self._successes += event.success
        self._steps += event.steps
        facts = f"{self._successes} of {self._made} succeeded, {self._steps / self._made:.0f} steps on average"
        self._progress.update(self._task, description=facts, completed=self._done)
        if not self._console.is_terminal and (self._done % PLAIN_LINE_EVERY == 0 or self._done == self._total):
            self._console.print(f"  {self._done}/{self._total}  {facts}")


def _results(made: Sequence[Collected], elapsed_s: float) -> dict[str, Any]:
    numbers = [
        ("episodes", len(made), "1"),
        ("kept", sum(event.kept for event in made), "1"),
        ("frames", sum(event.steps for event in made if event.kept), "1"),
        ("time", elapsed_s, "s"),
    ]
    return {
        "rows": [{"name": n, "value": v, "unit": u, "baseline": None, "ratio": None} for n, v, u in numbers],
        "episodes": [{"seed": e.seed, "success": e.success, "steps": e.steps, "kept": e.kept} for e in made],
        "successes": sum(event.success for event in made),
        "success_rate": sum(event.success for event in made) / len(made) if made else None,
    }


def _closing(args: RecordArgs, made: Sequence[Collected], totals: tuple[int, int], elapsed_s: float) -> str:
    """What there is now, and one thing to try next."""
    left_out = len(made) - sum(event.kept for event in made)
    news = f"{len(made)} episodes in {elapsed_s:.0f} s" if made else "Nothing to do: every episode asked for is there"
    dropped = f", {left_out} without success left out" if left_out else ""
    have = f"{args.out} holds {totals[0]} episodes, {totals[1]} frames"
    more = f"more: --seed {args.seed + args.episodes}, or a larger --episodes"
    return f"{news}{dropped}. {have}.\nNext: name the folder under `data` in a launch file for `vla finetune`; {more}."


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(RecordArgs, prog="python -m vla_robot.cli.record")))
