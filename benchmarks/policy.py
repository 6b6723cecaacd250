"""`vla bench policy`: time of each stage of an inference, next to plain timm and transformers in the same run.

Contenders take turns, so that other load on the computer affects all alike:

- ours, for each batch size: frames to actions, a time for each stage
- ours in another precision, when asked for, with the share of action tokens that differ
- plain: the same weights as the model card would use them, through transformers' `generate`, one observation at a time

The machine's limits are measured beside them: bare matrix products at each stage's shapes, and memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from benchmarks.models.turns import INSTRUCTION, SCENES, Contender, Timing, scene, take_turns, without_stages
from vla_robot.cli.common.cli_common import on, option, short_path
from vla_robot.cli.common.json_out import write_figure, write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import Observation
from vla_robot.recipe.policy import OnnxRecipe, OpenVLARecipe, VLARecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.load import device_of

if TYPE_CHECKING:
    from vla_robot.policy.openvla.policy import OpenVLAPolicy
    from vla_robot.policy.roofline import Cost
    from vla_robot.policy.vla.policy import AnyVLAPolicy

PLAIN, COMPILED = "plain", "compiled"
COUNTED = ("towers", "projector", "prefill", "decode")
"""Stages whose operations are counted."""


@dataclass(frozen=True)
class PolicyArgs:
    """Measure a policy's latency by stage and batch size, next to plain timm and transformers on the same weights."""

    policy: Annotated[str, option("NAME | FOLDER")] = "openvla_nano"
    """a recipe of kind openvla or vla, or a checkpoint folder; another family than OpenVLA without the arm's state;
    or a folder of `vla export onnx`, which is measured as it is exported"""
    baseline: Annotated[str | None, option("NAME | FOLDER")] = None
    """of an exported policy: the policy that it was made of, whose weights plain timm and transformers run"""
    batch: Annotated[tuple[int, ...], option("N ...")] = (1, 4, 16)
    """batch sizes"""
    dtype: Annotated[tuple[str, ...], option("DTYPE ...")] = ("float32",)
    """precisions; the tokens of the others are compared with the first's"""
    compiled: bool = False
    """also measure the first precision as a compiled graph; compiling takes a minute per batch size"""
    quantise: Annotated[tuple[str, ...], option("WAY ...")] = ()
    """also measure the first precision with matrices of fewer bits: int8, int4"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where to run both contenders, instead of the recipe's device:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    rounds: Annotated[int, option("N")] = 30
    """inferences of each contender"""
    cpu_time: bool = False
    """count the processor's time instead of the clock's, without stages: on a computer that is busy with other work"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
    plot: Annotated[Path | None, option("FILE.png")] = None
    """also plot the stages to this file"""

    def __post_init__(self) -> None:
        if min(self.batch, default=0) < 1 or self.rounds < 1 or not self.dtype:
            raise RecipeError("--batch and --rounds take numbers from 1 on, --dtype at least one precision.")


@dataclass(frozen=True)
class Case:
    """One contender.

    Attributes:
        dtype: precision of ours, or of the weights that `plain` uses too.
        batch: observations per inference.
        plain: whether it is the baseline instead of ours.
        how: variant of ours: "compiled", or the way of quantising.
    """

    dtype: str
    batch: int
    plain: bool = False
    how: str = ""

    @property
    def name(self) -> str:
        return PLAIN if self.plain else f"{self.variant}/batch{self.batch}"

    @property
    def variant(self) -> str:
        """Weights and their variant, in words."""
        return f"{self.dtype}+{self.how}" if self.how else self.dtype


@dataclass(frozen=True)
class Report:
    """The measurements.

    Attributes:
        timings: contender -> its times.
        costs: batch size -> stage -> operations and bytes; empty for families whose operations are not counted.
        matmul: batch size -> stage -> operations per second of the bare matrix products.
        memory_bytes_per_s: rate of a large copy in the device's memory, read and written; None if not measured.
        weights_bytes: variant -> memory that the weights occupy.
        device: where the policies ran, in words.
        tokens_compare: whether plain sees all that the policy sees, so that its tokens are the policy's.
    """

    timings: Mapping[Case, Timing]
    costs: Mapping[int, Mapping[str, Cost]]
    matmul: Mapping[int, Mapping[str, float]]
    memory_bytes_per_s: float | None
    weights_bytes: Mapping[str, int]
    device: str
    tokens_compare: bool = True

    @property
    def plain(self) -> Timing | None:
        """The baseline's times; None if it was not measured."""
        return next((timing for case, timing in self.timings.items() if case.plain), None)

    def to_plain(self, case: Case) -> float | None:
        """Return how many times faster than the baseline a case answers one observation; None without it."""
        plain = self.plain
        return None if plain is None else case.batch * plain.percentile_ms(50) / self.timings[case].percentile_ms(50)


def main(args: PolicyArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: the policy cannot be loaded, or is of another kind.
    """
    if args.plot:
        require("matplotlib", "report", "a plot")
    console = Terminal()
    source = find_policy(args.policy).on_device(args.device)
    of = ", the processor's time" if args.cpu_time else ""
    console.print(f"vla bench policy: {args.policy}{on(device_of(source))}, {args.rounds} rounds{of}")
    report = measure(args, console)
    console.print(_table(report))
    console.print(_words(report))
    if args.json:
        write_json(args.json, "bench policy", rows(report), device=report.device)
    if args.plot:
        _draw(report, args.plot)
        say(f"\nDrawn in {short_path(args.plot)}.")
    return 0


def measure(args: PolicyArgs, console: Terminal) -> Report:
    """Measure all contenders in turns.

    Raises:
        VlaError: as `main`.
    """
    if isinstance((source := find_policy(args.policy).on_device(args.device)).recipe, OnnxRecipe):
        from benchmarks.edge.exported import measure_exported

        return measure_exported(args, source, console)
    if args.baseline is not None:
        raise RecipeError(
            f"--baseline is for a folder of `vla export onnx`; '{source.name}' is compared with its own weights."
        )
    require("torch", "policy", "a policy's benchmark")
    from benchmarks.models.inference_times import memory_bytes_per_s
    from vla_robot.policy.device import device_in_words

    policies = {(dtype, ""): _load(source, dtype) for dtype in args.dtype}
    first = policies[args.dtype[0], ""]
    _require_equal_answers(first, source.name)
    if args.compiled:
        policies[args.dtype[0], COMPILED] = _load(source, args.dtype[0], compiled=True)
    for way in args.quantise:
        policies[args.dtype[0], way] = _load(source, args.dtype[0], quantise=way)
    scenes = [_scene(first, index) for index in range(SCENES)]
    contenders = _contenders(policies, scenes, args.batch)
    timed = timed_turns(contenders, args, console)
    openvla = _as_openvla(first)
    costs = {n: _costs(openvla, n) for n in args.batch} if openvla else {}
    matmul = {n: _matmul(openvla, n) for n in args.batch} if openvla else {}
    weights = {Case(dtype, 1, how=how).variant: policy.memory_bytes() for (dtype, how), policy in policies.items()}
    bandwidth, device = memory_bytes_per_s(first.device), device_in_words(first.device)
    return Report(timed, costs, matmul, bandwidth, weights, device)


def timed_turns(contenders: Mapping[Case, Contender], args: PolicyArgs, console: Terminal) -> dict[Case, Timing]:
    """Return the times of contenders that take turns."""
    works = {case.name: without_stages(work) if args.cpu_time else work for case, work in contenders.items()}
    clock = time.process_time if args.cpu_time else time.perf_counter
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("rounds", total=args.rounds + 1)
        timings = take_turns(works, args.rounds, lambda: bar.advance(task), clock)
    return {case: timings[case.name] for case in contenders}


def _load(source: PolicySource, dtype: str, compiled: bool = False, quantise: str | None = None) -> AnyVLAPolicy:
    from benchmarks.models.plain_vlm import without_state
    from vla_robot.policy.families import family_of
    from vla_robot.policy.openvla.policy import load
    from vla_robot.policy.vla.loading import Loading

    recipe = source.recipe
    if not isinstance(recipe, (VLARecipe, OpenVLARecipe)):
        raise RecipeError(
            f"'{source.name}' is of kind '{recipe.kind}'; `vla bench policy` measures the kinds 'openvla', 'vla' and "
            "'onnx'."
        )
    how = Loading(dtype=dtype, device=recipe.device, compiled=compiled, quantise=quantise)
    if isinstance(recipe, OpenVLARecipe):
        return load(recipe.checkpoint, replace(how, statistics_key=recipe.statistics_key))
    return without_state(family_of(recipe.checkpoint).load(recipe.checkpoint, how))


def _contenders(
    policies: Mapping[tuple[str, str], AnyVLAPolicy], scenes: Sequence[Observation], batches: Sequence[int]
) -> dict[Case, Contender]:
    from benchmarks.models.inference_times import ours

    (dtype, _), policy = next(iter(policies.items()))
    cases: dict[Case, Contender] = {Case(dtype, 1, plain=True): _plain(policy, scenes)}
    for (name, how), each in policies.items():
        cases |= {Case(name, n, how=how): ours(each, scenes, n) for n in batches}
    return cases


def _plain(policy: AnyVLAPolicy, scenes: Sequence[Observation]) -> Contender:
    from benchmarks.models.inference_times import answer_tokens, plain, plain_vlm
    from benchmarks.models.plain_inference import Baseline

    if (openvla := _as_openvla(policy)) is None:
        return plain_vlm(policy, scenes, answer_tokens(policy))
    baseline = Baseline(openvla.model, openvla.preprocessor)
    return plain(baseline, openvla, scenes, _cameras(policy), answer_tokens(policy))


def _require_equal_answers(policy: AnyVLAPolicy, name: str) -> None:
    """Raise RecipeError unless transformers' `generate` can be limited to the policy's answers: rows, as many each."""
    has_head = policy.model.action_head is not None
    if has_head or policy.codec.grammar is not None:
        by = "a head" if has_head else f"the codec '{policy.codec.kind}'"
        raise RecipeError(
            f"'{name}' gives its actions by {by}, which plain transformers cannot; "
            "`python -m benchmarks.models.closed_loop --policies ...` times it beside others."
        )


def _as_openvla(policy: AnyVLAPolicy) -> OpenVLAPolicy | None:
    from vla_robot.policy.openvla.policy import OpenVLAPolicy

    return policy if isinstance(policy, OpenVLAPolicy) else None


def _cameras(policy: AnyVLAPolicy) -> list[str]:
    if policy.embodiment is not None:
        return [camera.name for camera in policy.embodiment.cameras]
    return [f"camera_{i}" for i in range(policy.model.config.inputs.num_images)]


def _scene(policy: AnyVLAPolicy, seed: int) -> Observation:
    return scene(_cameras(policy), policy.model.config.inputs.proprio_dim or 0, seed)


def _text_tokens(policy: OpenVLAPolicy) -> int:
    return len(policy.tokenizer(INSTRUCTION))


def _costs(policy: OpenVLAPolicy, batch: int) -> dict[str, Cost]:
    from benchmarks.models.inference_times import action_dim
    from vla_robot.policy.roofline import costs_of

    bytes_each = policy.model.head.element_size()
    return costs_of(policy.outline, batch, _text_tokens(policy), action_dim(policy), bytes_each)


def _matmul(policy: OpenVLAPolicy, batch: int) -> dict[str, float]:
    from benchmarks.models.inference_times import action_dim, matmul_flops_per_s

    config = policy.model.config
    patches = policy.model.vision_backbone.featurizer.patch_embed.num_patches
    seen = batch * config.num_images * patches
    prompt = batch * (_text_tokens(policy) + config.num_images * patches + (config.proprio_dim is not None))
    guess = batch * (action_dim(policy) - 1)
    shapes = {"towers": seen, "projector": seen, "prefill": prompt + guess, "decode": guess}
    return matmul_flops_per_s(policy.model, shapes)


def rows(report: Report) -> list[dict[str, Any]]:
    """Return the rows for JSON. Ratios compare with `plain` per observation; above 1 is faster than plain."""
    plain = report.plain
    plain_ms = None if plain is None else plain.percentile_ms(50)
    result = [] if plain is None else [row(f"plain/p{p}", plain.percentile_ms(p), "ms") for p in (50, 99)]
    result += [row(f"{variant}/weights", size, "bytes") for variant, size in report.weights_bytes.items()]
    if report.memory_bytes_per_s is not None:
        result.append(row("memory_bandwidth", report.memory_bytes_per_s / 1e9, "GB/s"))
    for case, timing in report.timings.items():
        if case.plain:
            continue
        p50, ratio = timing.percentile_ms(50), report.to_plain(case)
        result += [
            row(f"{case.name}/p50", p50, "ms", plain_ms, ratio),
            row(f"{case.name}/p99", timing.percentile_ms(99), "ms"),
            row(f"{case.name}/inferences_per_s", 1e3 / p50, "1/s"),
            row(f"{case.name}/actions_per_s", case.batch * 1e3 / p50, "1/s", plain_ms and 1e3 / plain_ms, ratio),
            row(f"{case.name}/tokens_that_differ", _difference(report, case), "1"),
            row(f"{case.name}/passes", timing.passes, "1"),
        ]
        stages_ms = timing.stages_ms()
        for stage, ms in stages_ms.items():
            for percent in (50, 99):
                result.append(row(f"{case.name}/{stage}_p{percent}", float(np.percentile(ms, percent)), "ms"))
        counted = [stage for stage in COUNTED if stage in stages_ms and report.costs]
        result += [r for stage in counted for r in _stage_rows(report, case, stage)]
    return result


def _stage_rows(report: Report, case: Case, stage: str) -> list[dict[str, Any]]:
    cost = report.costs[case.batch][stage]
    reached, best = _flops_per_s(report, case, stage), report.matmul[case.batch][stage]
    return [
        row(f"{case.name}/{stage}_flops", cost.flops, "flop"),
        row(f"{case.name}/{stage}_weights", cost.weight_bytes, "bytes"),
        row(f"{case.name}/{stage}_rate", reached / 1e9, "Gflop/s", best / 1e9, reached / best),
    ]


def _flops_per_s(report: Report, case: Case, stage: str) -> float:
    timing = report.timings[case]
    passes = timing.passes if stage == "decode" else 1.0
    return passes * report.costs[case.batch][stage].flops / (float(np.mean(timing.stages_ms()[stage])) / 1e3)


def _difference(report: Report, case: Case) -> float | None:
    """Return the share of action tokens that differ from plain's, or, in another precision, from the first's.

    None without a baseline, or where it does not see what the policy sees.
    """
    first, mine = next(c for c in report.timings if not c.plain), report.timings[case].tokens
    if case.dtype == first.dtype and case.how in (first.how, COMPILED):
        if report.plain is None or not report.tokens_compare:
            return None
        other = report.plain.tokens
    else:
        other = report.timings[Case(first.dtype, case.batch)].tokens
    return float(np.mean([m[: len(o)] != o[: len(m)] for m, o in zip(mine, other, strict=True)]))


def _shares(report: Report) -> list[str]:
    found = [None if case.plain else _difference(report, case) for case in report.timings]
    return ["" if share is None else f"{share:.1%}" for share in found]


def _table(report: Report) -> Table:
    """Return a table with a column per contender: the stages, then their sum."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ms, median", no_wrap=True)
    for case in report.timings:
        table.add_column(case.name.replace("/", "\n").replace("+", "\n"), justify="right")
    for stage in _stages(report):
        cells = [t.stages_ms().get(stage) for t in report.timings.values()]
        table.add_row(f"  {stage}", *("" if ms is None else f"{np.median(ms):.1f}" for ms in cells))
    cases = report.timings.items()
    ratios = [report.to_plain(case) for case in report.timings]
    table.add_row("an inference", *(f"{t.percentile_ms(50):.1f}" for _, t in cases))
    table.add_row("  p99", *(f"{t.percentile_ms(99):.1f}" for _, t in cases))
    table.add_row("inferences/s", *(f"{1e3 / t.percentile_ms(50):.1f}" for _, t in cases))
    table.add_row("actions/s", *(f"{c.batch * 1e3 / t.percentile_ms(50):.1f}" for c, t in cases))
    table.add_row("  to plain's", *("" if ratio is None else f"{ratio:.2f}x" for ratio in ratios))
    table.add_row("passes over an answer", *("" if c.plain else f"{t.passes:.1f}" for c, t in cases))
    table.add_row("tokens that differ", *_shares(report))
    return table


def _words(report: Report) -> str:
    """Return each stage's share of the machine's limit, for the first precision."""
    timed = report.costs and any(timing.stages_ms() for timing in report.timings.values())
    lines = ["", "Of what bare matrix products reach here at the same shapes (Gflop/s):"] if timed else [""]
    for case in report.timings if timed else ():
        if COUNTED[0] in report.timings[case].stages_ms() and case.dtype == next(iter(report.timings)).dtype:
            shares = [
                f"{stage} {_flops_per_s(report, case, stage) / 1e9:.0f} of {report.matmul[case.batch][stage] / 1e9:.0f}"
                for stage in COUNTED
            ]
            lines.append(f"  {case.name}: " + ", ".join(shares))
    sizes = (f"{variant} {size / 1e6:.1f} MB" for variant, size in report.weights_bytes.items())
    lines.append("Weights: " + ", ".join(sizes) + ".")
    if report.memory_bytes_per_s is not None:
        lines.append(f"Memory: {report.memory_bytes_per_s / 1e9:.1f} GB/s.")
    if report.plain is None:
        lines.append("Nothing to compare with: --baseline POLICY adds the policy that this one was made of.")
    elif report.tokens_compare:
        lines.append("Tokens that differ: from plain's in the first precision, from the first precision's in another.")
    else:
        lines.append("Tokens are not compared: transformers has no token for the arm's state, which the graphs read.")
    return "\n".join(lines)


def _stages(report: Report) -> list[str]:
    """Return all stages of any contender, in order."""
    return list(dict.fromkeys(stage for timing in report.timings.values() for stage in timing.stages_ms()))


def _draw(report: Report, path: Path) -> None:
    """Plot a bar per contender, its stages stacked, in ms per observation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    names = [case.name for case in report.timings]
    left = np.zeros(len(names))
    for stage in _stages(report):
        widths = [float(np.median(t.stages_ms().get(stage, [0.0]))) / c.batch for c, t in report.timings.items()]
        axes.barh(names, widths, left=left, label=stage)
        left += widths
    if report.plain is not None:
        index = next(i for i, case in enumerate(report.timings) if case.plain)
        axes.barh(names[index], report.plain.percentile_ms(50), color="0.7", label="plain timm + transformers")
    axes.invert_yaxis()
    axes.set_xlabel("ms an observation (median)")
    axes.legend(fontsize=8)
    write_figure(path, figure)
