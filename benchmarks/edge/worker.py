"""One contender of `vla bench edge` in a process of its own: `worker WAY POLICY EXPORTED STARTED`.

WAY is a key of WAYS, STARTED the parent's monotonic time [s] when it started this process. A line of JSON says what the
first answer took; then each line of input, "ROUND ROWS", is answered by a line with the time and the tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.models.turns import SCENES, scene
from vla_robot.core.messages import Observation
from vla_robot.recipe.policy_source import find_policy

type Answer = Callable[[list[Observation]], list[list[int]]]
"""Maps observations to the tokens of each."""


class Contender(NamedTuple):
    """One way to answer observations.

    Attributes:
        answer: answers a batch of observations.
        sees_all: whether it sees all that the policy sees; `generate` has no token for the arm's state.
    """

    answer: Answer
    sees_all: bool = True


def torch_way(policy: str, exported: str, compiled: bool = False) -> Contender:
    """The policy in torch, as `vla run` loads it."""
    from vla_robot.policy.families import family_of
    from vla_robot.policy.vla.loading import Loading
    from vla_robot.recipe.policy import CheckpointRecipe

    recipe = find_policy(policy).recipe
    assert isinstance(recipe, CheckpointRecipe)
    loaded = family_of(recipe.checkpoint).load(recipe.checkpoint, Loading.on_cpu(recipe, compiled=compiled))
    dims = len(loaded.action_stats())
    return Contender(lambda seen: loaded.generate(loaded.read(seen), dims).tolist())


def plain_way(policy: str, exported: str) -> Contender:
    """The same weights through timm and transformers' `generate`, one observation after another."""
    from benchmarks.models.inference_times import plain, plain_vlm
    from benchmarks.models.plain_inference import Baseline
    from benchmarks.models.plain_vlm import without_state
    from vla_robot.policy.families import family_of
    from vla_robot.policy.openvla.policy import OpenVLAPolicy
    from vla_robot.policy.vla.loading import Loading
    from vla_robot.recipe.policy import CheckpointRecipe

    recipe = find_policy(policy).recipe
    assert isinstance(recipe, CheckpointRecipe)
    loaded: Any = family_of(recipe.checkpoint).load(recipe.checkpoint, Loading.on_cpu(recipe))
    dims, scenes = len(loaded.action_stats()), scenes_of(exported)
    if isinstance(loaded, OpenVLAPolicy):
        baseline = Baseline(loaded.model, loaded.preprocessor)
        infer = plain(baseline, loaded, scenes, list(scenes[0].images), dims)
    else:
        infer = plain_vlm(without_state(loaded), scenes, dims)
    sees_all = isinstance(loaded, OpenVLAPolicy) or loaded.model.config.proprio_dim is None
    return Contender(lambda seen: [infer(o.step)[0][0].tolist() for o in seen], sees_all)


def onnx_way(policy: str, exported: str, provider: str = "cpu") -> Contender:
    """The exported folder."""
    from vla_robot.policy.onnx.policy import OnnxPolicy

    loaded = OnnxPolicy(Path(exported), provider)
    return Contender(lambda seen: loaded.answers(seen).tolist())


WAYS: Mapping[str, Callable[[str, str], Contender]] = {
    "transformers": plain_way,
    "torch": torch_way,
    "torch compiled": lambda policy, exported: torch_way(policy, exported, compiled=True),
    "onnxruntime": onnx_way,
    "openvino": lambda policy, exported: onnx_way(policy, exported, "openvino"),
}


def main(arguments: Sequence[str]) -> None:
    """Answer until the input ends."""
    way, policy, exported, started = arguments
    scenes = scenes_of(exported)
    answer, sees_all = WAYS[way](policy, exported)
    first = answer(scenes[:1])
    start_s = time.monotonic() - float(started)
    _say(
        start_s=start_s,
        tokens=first,
        torch="torch" in sys.modules,
        sees_all=sees_all,
    )
    for line in sys.stdin:
        number, rows = map(int, line.split())
        seen = [scenes[(number + row) % SCENES] for row in range(rows)]
        begin = time.perf_counter()
        tokens = answer(seen)
        _say(ms=(time.perf_counter() - begin) * 1e3, tokens=tokens, memory_mb=_memory_mb())


def scenes_of(exported: str) -> list[Observation]:
    """Return scenes of random coarse colours for the cameras of an exported folder."""
    from vla_robot.policy.onnx.record import read_record

    record = read_record(Path(exported))
    names = record.cameras or [f"camera_{n}" for n in range(record.inputs.num_images)]
    return [scene(names, record.inputs.proprio_dim or 0, number, number) for number in range(SCENES)]


def _memory_mb() -> float:
    """Return this process's resident memory [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
