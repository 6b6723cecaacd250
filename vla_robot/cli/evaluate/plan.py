"""The options of `vla eval`, and what they ask for with every name resolved."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from vla_robot.cli.build import require_cluster_name
from vla_robot.cli.common.cli_common import option, shown
from vla_robot.core.errors import RecipeError
from vla_robot.core.ports import TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.core.seeds import seed_problem
from vla_robot.evaluate.evaluation import Evaluation
from vla_robot.evaluate.instruction_variants import Language, Words, words_for
from vla_robot.evaluate.runner import new_run_folder
from vla_robot.evaluate.trial_log import TrialLog
from vla_robot.evaluate.video_selection import Videos
from vla_robot.recipe import dump, find, read
from vla_robot.recipe.env import EnvRecipe, SimulationRecipe, SuiteRecipe
from vla_robot.recipe.env_source import MOVED, EnvSource, find_env
from vla_robot.recipe.environment import EnvironmentRecipe
from vla_robot.recipe.policy import WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.load import device_of, model_needs

MOST_WORKERS = 8
"""Largest default of --workers."""

WORLD_MB = 1000
"""Main memory of a world in this environment [MB], its policy's share included."""

FIRST_SEED = 10_000
"""First seed of a world, unless the command gives one: training data has others."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Score policies in closed loop on the same seeds. The same command with the same --out continues.

    One or more worlds by --env, a row each; or whole suites of a benchmark by --suite, with a row for the suite and one
    for each of its tasks: vla eval --suite libero_spatial --policy POLICY --episodes-per-task 50
    """

    env: Annotated[tuple[str, ...], option("ENV ...")] = ()
    """the world, by name or path; several get a row each"""
    suite: Annotated[tuple[str, ...], option("SUITE ...")] = ()
    """all tasks of a benchmark's suite, e.g. libero_spatial; a suite that perturbs another one, such as
    libero_spatial_swap, is compared with it if both are named"""
    policy: Annotated[tuple[str, ...], option("POLICY ...")]
    """policy by name or path; several are compared on the same seeds, with the first as the baseline"""
    move_objects: Annotated[float | None, option("METRES")] = None
    """with --suite, score each suite a second time with its loose objects moved by this distance, e.g. 0.03: it tells a
    policy that sees from one that remembers"""
    episodes: Annotated[int, option("N", aliases=("--episodes-per-task",))] = 50
    """episodes of each policy in each language in each world or task"""
    seed: Annotated[int | None, option("SEED")] = None
    """the first episode's seed; the k-th has SEED + k. By default 10000, which training data should not use; with
    --suite 0, since a benchmark's seeds are its initial states"""
    language: Annotated[tuple[Language, ...], option("LANGUAGE ...")] = ("plain",)
    """wording of the task: plain, none, paraphrase, synonym, wrong-object; docs/evaluate.md explains them"""
    rows: Annotated[int | None, option("N")] = None
    """execution horizon: how many actions of an answer are used before a policy is asked again"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where the policies' weights are, instead of their recipes' devices:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    workers: Annotated[int | None, option("N")] = None
    """number of worlds in parallel, each in its own process; by default one per core, at most 8, and as many as
    fit into four fifths of the main memory"""
    cluster: Annotated[str | None, option("local|auto|ray://HOST:10001")] = None
    """run the worlds on a Ray cluster (extra [cluster]; docs/cluster.md): one made on this computer for this command,
    the one that this computer is a node of, or another; by default without Ray, in processes of this computer"""
    replicas: Annotated[int, option("N")] = 1
    """with --cluster, copies of each policy with weights, on a GPU each if the cluster has some"""
    videos: Videos = "failures"
    """which episodes get a video; "failures" also gives three successes of each world; with "none", worlds render
    only what the policy is shown: one step of a chunk, and nothing for expert, hold and random"""
    out: Annotated[Path | None, option("FOLDER")] = None
    """folder of report, videos and finished episodes; by default a new one, runs/eval-<time>"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if bool(self.env) == bool(self.suite):
            raise RecipeError("name worlds with --env, or suites with --suite: one of the two.")
        if self.move_objects is not None and (self.env or not self.move_objects > 0):
            raise RecipeError(f"--move-objects {self.move_objects:g}: a distance above 0, with --suite.")
        if self.episodes < 1:
            raise RecipeError(f"--episodes {self.episodes}: at least 1.")
        if problem := seed_problem(self.first_seed, self.episodes):
            raise RecipeError(f"--seed {self.first_seed}: {problem}.")
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"--rows {self.rows}: at least 1.")
        if not self.policy:
            raise RecipeError("--policy names no policy. `vla list policies` shows them.")
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"--workers is {self.workers}; at least 1 is needed.")
        if self.replicas < 1 or (self.replicas > 1 and self.cluster is None):
            raise RecipeError(f"--replicas {self.replicas}: at least 1, and more than one with --cluster.")
        if self.cluster is not None:
            require_cluster_name(self.cluster)
        lists = {"--env": self.env, "--suite": self.suite, "--policy": self.policy, "--language": self.language}
        for name, values in lists.items():
            if len(set(values)) != len(values) or (name == "--language" and not values):
                raise RecipeError(f"{name} {' '.join(values)}: each once, and at least one.")

    @property
    def first_seed(self) -> int:
        if self.seed is not None:
            return self.seed
        return 0 if self.suite else FIRST_SEED

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)


@dataclass(frozen=True)
class Plan:
    """An evaluation, with every name resolved.

    Attributes:
        suites: name of a row's worlds -> the worlds, in order; one world of --env is a suite of its own.
        policies: name in the report -> the policy.
        devices: name in the report -> device of its weights, in words, where it has weights here or on the cluster.
        words: world -> language -> the task's wording.
        seeds: seeds of each policy in each language in each world.
        rows: execution horizon of every policy; None for each recipe's.
        films: whether videos are made.
        folder: the evaluation's folder.
    """

    suites: dict[str, tuple[EnvSource, ...]]
    policies: dict[str, PolicySource]
    devices: dict[str, str]
    words: dict[str, dict[Language, Words]]
    seeds: range
    rows: int | None
    films: bool
    folder: Path

    def world_for(self, world: str, policy: str) -> EnvRecipe:
        """Return the recipe of a world, without cameras if neither the policy nor a video needs frames."""
        recipe = self.worlds[world].recipe
        return recipe if self.films or self.policies[policy].recipe.sees else replace(recipe, cameras=())

    @property
    def worlds(self) -> dict[str, EnvSource]:
        """Name of a world -> the world, in the order of the suites."""
        return {world.name: world for worlds in self.suites.values() for world in worlds}

    @property
    def languages(self) -> tuple[Language, ...]:
        return tuple(next(iter(self.words.values())))

    def header(self) -> dict[str, Any]:
        """Return the values that a command must share with the one that it continues."""
        versions = self.versions()
        hashes = {w.name: _hash(w, versions.get(suite, {})) for suite, worlds in self.suites.items() for w in worlds}
        return {
            "world": hashes,
            "policies": {name: source.fingerprint() for name, source in self.policies.items()},
            "languages": list(self.languages),
            "seed": self.seeds.start,
            "episodes": len(self.seeds),
            **({} if self.rows is None else {"rows": self.rows}),
            **({"devices": self.devices} if set(self.devices.values()) - {"cpu"} else {}),
        }

    def evaluation(self, log: TrialLog) -> Evaluation:
        """Return the results so far."""
        benchmarks = {name: worlds[0].recipe for name, worlds in self.suites.items()}
        suites = {name: recipe for name, recipe in benchmarks.items() if isinstance(recipe, SuiteRecipe)}
        return Evaluation(
            {name: tuple(world.name for world in worlds) for name, worlds in self.suites.items()},
            tuple(self.policies),
            self.languages,
            self.seeds,
            tuple(log.trials.values()),
            log.started_at,
            perturbed={name: base for name, recipe in suites.items() if (base := _base_of(name, recipe))},
            protocols={name: recipe.protocol(self.seeds) for name, recipe in suites.items()},
            packages=self.versions(),
            devices=self.devices,
            settings={name: words for name in self.policies if (words := self._settings_of(name))},
        )

    def _settings_of(self, policy: str) -> str:
        """Return what a policy's recipe says that belongs to a protocol, in words."""
        recipe = self.policies[policy].recipe
        rows = self.rows or recipe.rows
        parts = [f"frames {recipe.preparation}"] if recipe.preparation else []
        return "; ".join(parts + ([f"{rows} actions of an answer are used"] if rows else []))

    def environments(self) -> dict[str, EnvironmentRecipe]:
        """Return the environments of their own that the worlds run in, by name.

        Raises:
            RecipeError: there is no such environment, or its recipe is not valid.
        """
        names = {name for world in self.worlds.values() if (name := _environment_of(world))}
        return {name: read(EnvironmentRecipe, find("environments", name)) for name in sorted(names)}

    def versions(self) -> dict[str, dict[str, str]]:
        """Return, for each suite in an environment of its own, package -> version of those that decide its score.

        Raises:
            RecipeError: as `environments`, or its list lacks such a package.
        """
        found = {name: environment.score_versions() for name, environment in self.environments().items()}
        named = {suite: _environment_of(worlds[0]) for suite, worlds in self.suites.items()}
        return {suite: found[name] for suite, name in named.items() if name and found[name]}

    @property
    def rates_hz(self) -> dict[str, float]:
        """World -> control steps per second of its own time."""
        return {name: world.recipe.rate_hz for name, world in self.worlds.items()}

    def needs(self) -> Resources:
        """Return what the largest of the worlds takes of its computer."""
        environments = self.environments().values()
        memory_mb = max((environment.world_mb for environment in environments), default=WORLD_MB)
        return Resources(max((environment.world_cpus for environment in environments), default=1.0), memory_mb)

    def places_of_models(self, replicas: int) -> int:
        """Return how many worlds' places the copies of the largest policy with weights take on a cluster."""
        world = self.needs()
        sources = [source for source in self.policies.values() if isinstance(source.recipe, WeightsRecipe)]
        models = [model_needs(source, has_gpu=False) for source in sources]
        return max((replicas * max(1, math.ceil(m.memory_mb / max(world.memory_mb, 1))) for m in models), default=0)


def plan(args: EvaluateArgs) -> Plan:
    """Resolve a command line, before any process starts.

    Raises:
        RecipeError: a name is unknown, or a world has no words for a language.
        ContractError: there is no such device on this computer.
    """
    suites = _worlds_of(args)
    policies = _named(_on_device([find_policy(name) for name in args.policy], args.device))
    words: dict[str, dict[Language, Words]] = {
        world.name: {language: words_for(world.recipe, language) for language in args.language}
        for worlds in suites.values()
        for world in worlds
    }
    devices = {} if args.cluster else _devices(policies)
    folder = args.out or new_run_folder(Path("runs"), "eval-")
    return Plan(suites, policies, devices, words, args.seeds, args.rows, args.videos != "none", folder)


def _devices(policies: Mapping[str, PolicySource]) -> dict[str, str]:
    return {name: device for name, source in policies.items() if (device := device_of(source)) is not None}


def with_devices_of(runner: TaskRunner, what: Plan) -> Plan:
    """Return a plan with the devices that policies get where a runner's tasks run.

    Raises:
        ContractError: there is no such device there.
    """
    if runner.is_here:
        return what
    devices: dict[str, str] = {}
    for name, source in what.policies.items():
        if isinstance(source.recipe, WeightsRecipe):
            with runner.workers(nullcontext, 1, model_needs(source, has_gpu=runner.has_gpu())) as workers:
                devices.update(workers.run(_device_there, [(name, source)]))
    return replace(what, devices=devices)


def _device_there(state: None, named: tuple[str, PolicySource], should_stop: ShouldStop) -> tuple[str, str]:
    name, source = named
    return name, device_of(source) or ""


def _on_device(policies: Sequence[PolicySource], device: str | None) -> list[PolicySource]:
    """Return policies with the device of the command line; those without weights stay as they are, unless all are."""
    with_weights = [source for source in policies if isinstance(source.recipe, WeightsRecipe)] or policies
    return [source.on_device(device) if source in with_weights else source for source in policies]


def _worlds_of(args: EvaluateArgs) -> dict[str, tuple[EnvSource, ...]]:
    """Return the worlds of each row. Raises RecipeError for a name of the other option, and for two of one name."""
    found = [find_env(name) for name in (*args.env, *args.suite)]
    for source in found:
        is_suite = len(source.tasks()) > 1
        if is_suite and args.env:
            raise RecipeError(
                f"--env {source.name}: it is a suite of {len(source.tasks())} tasks; say --suite {source.name}."
            )
        if not is_suite and args.suite:
            raise RecipeError(f"--suite {source.name}: it is one world and no suite; say --env {source.name}.")
    if args.move_objects is not None:
        found = [each for source in found for each in (source, source.moved(args.move_objects))]
    suites = {source.name: source.tasks() for source in found}
    if len(suites) < len(found):
        raise RecipeError(
            f"{', '.join(source.name for source in found)}: two worlds have the same name; rename a recipe."
        )
    return suites


def _named(sources: Sequence[PolicySource]) -> dict[str, PolicySource]:
    """Return the policies by name, or by path if names repeat: every training ends in a folder 'final'."""
    counts = Counter(source.name for source in sources)
    return {source.name if counts[source.name] == 1 else shown(source): source for source in sources}


def _base_of(name: str, recipe: SuiteRecipe) -> str | None:
    """Return the name of the suite that another one is compared with."""
    return name.removesuffix(MOVED) if recipe.move_objects_m else recipe.perturbs


def _environment_of(world: EnvSource) -> str | None:
    return world.recipe.environment if isinstance(world.recipe, SimulationRecipe) else None


def _hash(world: EnvSource, versions: Mapping[str, str]) -> str:
    """Return a hash of a world's recipe and of the versions of packages that decide its score."""
    pinned = "".join(f"{name}=={version}\n" for name, version in versions.items())
    return hashlib.sha256(f"{dump(world.recipe)}{pinned}".encode()).hexdigest()[:16]
