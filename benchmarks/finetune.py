"""`vla bench finetune`: samples per second of fine-tuning, next to a plain loop, in one run.

For all weights, and for LoRA, two contenders take turns, so that other load on the computer affects both alike:

- ours: `vla finetune`'s own steps
- plain: timm's towers, transformers' Llama with `labels`, peft and a DataLoader, on copies of the same weights

Both get the same frames in the same order, and the losses of their steps are compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.device_names import AUTO
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import Observation, StepResult
from vla_robot.recipe import find
from vla_robot.recipe.finetune import DemosFinetuneRecipe

if TYPE_CHECKING:
    from vla_robot.data.demonstration import Demonstration

INSTRUCTION = "lift the red cube"
EPISODES, EPISODE_STEPS = 8, 40
"""Number of episodes and of steps in each, made without a dataset."""

KEY = "bench"


@dataclass(frozen=True)
class FinetuneBenchArgs:
    """Measure samples per second of fine-tuning, of all weights and with LoRA, next to a plain loop."""

    policy: Annotated[str, option("NAME | FOLDER")] = "openvla_nano"
    """the policy to start from"""
    data: Annotated[Path | None, option("FOLDER")] = None
    """a dataset that fits it; without one, frames of coarse colours are made for the run"""
    lora_rank: Annotated[int, option("RANK")] = 32
    """rank of the runs with LoRA; 0 leaves them out"""
    batch_size: Annotated[int, option("N")] = 32
    """frames per step"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where to train:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    rounds: Annotated[int, option("N")] = 10
    """turns per contender"""
    steps: Annotated[int, option("N")] = 2
    """steps per turn"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.rounds, self.steps) < 1 or self.lora_rank < 0:
            raise RecipeError("--batch-size, --rounds and --steps take numbers from 1 on, --lora-rank from 0 on.")


@dataclass
class Contest:
    """The measurements of one way to fine-tune.

    Attributes:
        name: "full" or "lora32".
        learned: share of the parameters that are trained.
        step_s: contender -> seconds of each step.
        losses: contender -> loss of each step.
        loading_s: time until the batch is ready in each of plain's steps [s].
    """

    name: str
    learned: float
    step_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    losses: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    loading_s: list[float] = field(default_factory=list[float])

    def rate(self, contender: str, batch_size: int) -> float:
        """Return samples per second, by the median step."""
        return batch_size / float(np.median(self.step_s[contender]))

    @property
    def loading(self) -> float:
        """Share of plain's time that loading takes."""
        return float(np.sum(self.loading_s[-len(self.step_s[PLAIN]) :]) / np.sum(self.step_s[PLAIN]))

    @property
    def difference(self) -> float:
        """Largest difference between losses of the same step, relative to plain's."""
        ours, plain = np.array(self.losses[OURS]), np.array(self.losses[PLAIN])
        return float(np.max(np.abs(ours - plain) / plain))


OURS, PLAIN = "ours", "plain"


def main(args: FinetuneBenchArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: the policy or the data cannot be read, or do not fit each other.
    """
    for name in ("torch", "peft"):
        require(name, "learn", "a benchmark of fine-tuning")
    console = Terminal()
    console.print(f"vla bench finetune: {args.policy}, {args.rounds} turns of {args.steps} steps")
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as bar:
        ranks = [0] if args.lora_rank == 0 else [0, args.lora_rank]
        task = bar.add_task("turns", total=2 * len(ranks) * args.rounds)
        contests = [contest(args, rank, Path(folder), lambda: bar.advance(task)) for rank in ranks]
    console.print(_table(contests, args.batch_size))
    console.print(_words(contests))
    if args.json:
        write_json(args.json, "bench finetune", rows(contests, args.batch_size))
    return 0


def contest(args: FinetuneBenchArgs, lora_rank: int, folder: Path, on_turn: Callable[[], object]) -> Contest:
    """Run both contenders in turns, from the same weights."""
    from benchmarks.models.plain_training import PlainFrames, PlainLoop, PlainModel, adapted
    from vla_robot.data.formats.lerobot.demo_dataset import open_demos
    from vla_robot.policy.openvla.policy import load
    from vla_robot.policy.vla.loading import Loading
    from vla_robot.train.checkpoint import learning
    from vla_robot.train.finetune import open_run
    from vla_robot.train.parallel.ddp import Ranks

    policy = find("policies", args.policy)
    data = args.data or _made(policy, folder / "frames")
    # Options that plain lacks are off, so that the losses are comparable (averages stay on; they cost little).
    recipe = DemosFinetuneRecipe(
        data=(data,), dataset_name=KEY, policy=policy, lora_rank=lora_rank, batch_size=args.batch_size,
        steps=args.rounds * args.steps + 1, learning_rate=1e-4, warmup_steps=0, final_rate=1.0, weight_decay=0.0,
        bin_smoothing=0.0, shift_px=0, held_out=0.0, device=args.device or AUTO,
    )  # fmt: skip
    run, prepared = open_run(recipe, folder / f"run_{lora_rank}", Ranks())
    fresh = load(prepared.start, Loading(device=args.device or AUTO, statistics_key=KEY, trainable=True))
    learned = learning(run.model)
    plain: Any = PlainModel(fresh.model).requires_grad_(True)
    if lora_rank:
        plain = adapted(plain, lora_rank, learned)
    loop = PlainLoop(plain, PlainFrames(open_demos(data), fresh, KEY), recipe, fresh.model.config.pad_token_id)
    total = sum(p.numel() for p in run.model.parameters())
    result = Contest(f"lora{lora_rank}" if lora_rank else "full", sum(p.numel() for p in learned.values()) / total)

    def plain_step() -> float:
        begun = time.perf_counter()
        batch = loop.load()
        result.loading_s.append(time.perf_counter() - begun)
        return loop.learn(batch)

    steps: dict[str, Callable[[], float]] = {OURS: lambda: run.advance()["loss"], PLAIN: plain_step}
    for name, step in steps.items():
        result.losses[name], result.step_s[name] = [step()], []  # the first step is not timed
    for _ in range(args.rounds):
        for name, step in steps.items():
            for _ in range(args.steps):
                begun = time.perf_counter()
                result.losses[name].append(step())
                result.step_s[name].append(time.perf_counter() - begun)
            on_turn()
    return result


def _made(policy: Path, folder: Path) -> Path:
    """Write a dataset of coarse colours for a policy; every frame differs, and time depends on nothing else."""
    from vla_robot.data.formats.lerobot.writer import LeRobotWriter
    from vla_robot.policy.openvla.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(policy)
    if checkpoint.embodiment is None:
        raise RecipeError(f"{policy} has no embodiment.json, so no frames can be made for it; give --data FOLDER.")
    if not folder.exists():
        with LeRobotWriter(folder) as writer:
            for seed in range(EPISODES):
                writer.write(_episode(checkpoint.embodiment, seed))
    return folder


def _episode(arm: Embodiment, seed: int) -> Demonstration:
    from vla_robot.data.demonstration import DemonstrationBuilder

    rng = np.random.default_rng(seed)
    builder = DemonstrationBuilder()
    for step in range(EPISODE_STEPS):
        images = {
            c.name: np.kron(rng.integers(0, 256, (7, 7, 3)), np.ones((c.height // 7, c.width // 7, 1))).astype(np.uint8)
            for c in arm.cameras
        }
        state = np.array([rng.uniform(max(dim.low, -1.0), min(dim.high, 1.0)) for dim in arm.state])
        seen = Observation(images, state, INSTRUCTION, stamp_ns=step, step=step)
        action = rng.uniform(arm.action.low, arm.action.high)
        last = step == EPISODE_STEPS - 1
        builder.add(seen, action, StepResult(seen, action, success=last, terminated=last, truncated=False))
    return builder.finish(arm, seed, "expert")


def rows(contests: list[Contest], batch_size: int) -> list[dict[str, Any]]:
    """Return the rates beside the plain loop's, and the difference of the losses."""
    found: list[dict[str, Any]] = []
    for c in contests:
        ours, plain = c.rate(OURS, batch_size), c.rate(PLAIN, batch_size)
        found += [
            row(f"{c.name}/rate", ours, "samples/s", plain, ours / plain),
            row(f"{c.name}/plain_loading", c.loading, "1"),
            row(f"{c.name}/loss_difference", c.difference, "1"),
            row(f"{c.name}/learned", c.learned, "1"),
        ]
    return found


def _table(contests: list[Contest], batch_size: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("samples/s", no_wrap=True)
    for column in ("plain", "of it loading", "ours", "to plain's", "numbers\nthat learn", "losses\ndiffer by"):
        table.add_column(column, justify="right", no_wrap=True)
    for c in contests:
        ours, plain = c.rate(OURS, batch_size), c.rate(PLAIN, batch_size)
        cells = [f"{plain:.1f}", f"{c.loading:.0%}", f"{ours:.1f}", f"{ours / plain:.2f}x"]
        table.add_row(c.name, *cells, f"{c.learned:.1%}", f"{c.difference:.1e}")
    return table


def _words(contests: list[Contest]) -> str:
    steps = len(contests[0].losses[OURS])
    ends = (f"{c.name} {c.losses[PLAIN][-1]:.4f} and {c.losses[OURS][-1]:.4f}" for c in contests)
    return f"\nLosses after {steps} steps, plain and ours: {'; '.join(ends)}."
