"""Contenders that take turns, and their times; without torch, so that a thin environment can measure too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.messages import Observation
from vla_robot.policy.vla.reason.stage_timer import StageTimer

INSTRUCTION = "lift the red cube"
FRAME_PX = 224
SCENES = 32
"""Number of scenes, one per round: the number of passes over an answer depends on the scene."""


@dataclass
class Timing:
    """Times of one contender at one batch size.

    Attributes:
        total_ms: one number per inference [ms].
        stages: one per inference; without any stage for a contender other than this package.
        tokens: (B, action_dim), one answer per inference; (B, K, D) numbers of a policy that says none.
    """

    total_ms: list[float] = field(default_factory=list[float])
    stages: list[StageTimer] = field(default_factory=list[StageTimer])
    tokens: list[NDArray[Any]] = field(default_factory=list[NDArray[Any]])

    def stages_ms(self) -> dict[str, list[float]]:
        """Return one number per inference by stage [ms]; empty for a contender other than this package."""
        names = dict.fromkeys(name for stages in self.stages for name in stages.ms)
        return {name: [stages.ms[name] for stages in self.stages] for name in names}

    @property
    def passes(self) -> float:
        """Mean number of passes over an answer, without the one that read the prompt."""
        return float(np.mean([stages.passes for stages in self.stages]))

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the whole inference [ms]."""
        return float(np.percentile(self.total_ms, percent))

    def book(self, total_ms: float, stages: StageTimer, tokens: NDArray[Any]) -> None:
        """Add one inference."""
        self.total_ms.append(total_ms)
        self.stages.append(stages)
        self.tokens.append(tokens)


Contender = Callable[[int], tuple[NDArray[Any], StageTimer]]
"""Maps a round's number to (B, action_dim) tokens and the times of its stages."""


def scene(cameras: Sequence[str], state: int, seed: int, step: int = 0) -> Observation:
    """Return a scene of random coarse colours. The shipped policy needs as many passes for it as in its own world.

    Args:
        cameras: names.
        state: numbers of the arm's state, all 0.
        seed: seed of the colours.
        step: number of the observation.
    """
    rng = np.random.default_rng(seed)
    coarse = {name: rng.integers(0, 256, (7, 7, 3)) for name in cameras}
    cell = np.ones((FRAME_PX // 7, FRAME_PX // 7, 1))
    images = {name: np.kron(colours, cell).astype(np.uint8) for name, colours in coarse.items()}
    return Observation(images, np.zeros(state), INSTRUCTION, stamp_ns=0, step=step)


def window(scenes: Sequence[Observation], number: int, size: int) -> list[Observation]:
    """Return the scenes of a round; the first one is the same for every size."""
    return [scenes[(number + row) % len(scenes)] for row in range(size)]


def without_stages(contender: Contender) -> Contender:
    """Return the contender without the times of its stages, which a wall clock measures."""

    def infer(number: int) -> tuple[NDArray[Any], StageTimer]:
        tokens, stages = contender(number)
        bare = StageTimer()
        bare.passes = stages.passes
        return tokens, bare

    return infer


def take_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    on_round: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contender once per round, so that other load hits all alike; the first round is not counted.

    Their order is shuffled each round, since the one after a large batch finds its weights evicted from the caches.

    Args:
        contenders: name -> contender.
        rounds: counted rounds.
        on_round: called after each round.
        clock: gives the time [s]; `time.process_time` counts what this process's threads ran, not what they waited.
    """
    timings = {name: Timing() for name in contenders}
    order, rng = list(contenders), np.random.default_rng(0)
    for number in range(-1, rounds):
        rng.shuffle(order)
        for name in order:
            start = clock()
            tokens, stages = contenders[name](max(number, 0))
            elapsed_ms = (clock() - start) * 1e3
            if number >= 0:
                timings[name].book(elapsed_ms, stages, tokens)
        on_round()
    return timings
