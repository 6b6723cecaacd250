"""Inference on a fake GPU: one device, few reads, known copies, no more kernels than today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.counts import Drive, infer, observations, row_of, seven_billion
from benchmarks.gpu.fake_cuda import FakeCuda, Tally
from vla_robot.policy.families import FAMILIES
from vla_robot.policy.openvla.engine.chunk_regression import ChunkRegression
from vla_robot.policy.openvla.network import reason
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.policy import AnyVLAPolicy

from ..vlm import tiny_vlms
from .conftest import moved

SETTLED = "policy/vla/reason/generate.py is_settled"
KERNELS = {"towers": 104, "projector": 10, "prefill": 57, "decode": 73}
"""Kernels that the stages of the shipped policy start for one row, without padding; one correction."""
GRAPHS = {"see": 101, "begin": 80, "correct": 73, "advance": 77}
"""Kernels of the shipped policy's graphs."""


def reads(stages: Mapping[str, Tally]) -> Counter[str]:
    return sum((tally.reads for tally in stages.values()), start=Counter[str]())


@pytest.fixture
def run(shipped: OpenVLAPolicy, mode: FakeTensorMode) -> Iterator[Callable[..., FakeCuda]]:
    def infer_on_it(drive: Drive, in_blocks: bool) -> FakeCuda:
        shipped.in_blocks = in_blocks
        with FakeCuda(drive.answers(in_blocks), mode=mode) as gpu:
            infer(gpu, shipped, observations(shipped, drive))
        return gpu

    yield infer_on_it
    shipped.in_blocks = True


@pytest.mark.parametrize("drive", [Drive(), Drive(64, corrections=3), Drive(16, ragged=True)], ids=str)
def test_blocks_stay_on_the_device_and_read_one_number_a_correction(run: Callable[..., FakeCuda], drive: Drive) -> None:
    """The first pass is not asked. Besides the others' numbers, the answer travels down."""
    gpu = run(drive, True)
    total = row_of(gpu)
    assert reads(gpu.stages) == {SETTLED: drive.corrections}
    assert (total["copies up"], total["copies down"]) == (4, 1)
    cameras, size = 2, 84
    assert total["bytes up"] < drive.rows * (cameras * size * size * 3 + 1000)  # frames travel once, as uint8
    if drive == Drive():
        assert {name: graph.kernels.total() for name, graph in gpu.graphs.items()} == GRAPHS
        assert gpu.graphs["begin"].masks == {"none": 3, "bool": 1}  # only the last layer, of which a part is wanted
        assert [stage.kernels["graph"] for stage in gpu.stages.values()] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("drive", [Drive(), Drive(16, ragged=True)], ids=str)
def test_without_blocks_there_are_as_few_reads(run: Callable[..., FakeCuda], drive: Drive) -> None:
    gpu = run(drive, False)
    assert reads(gpu.stages) == {SETTLED: 1 + drive.corrections}
    assert row_of(gpu)["copies up"] == 3 + drive.ragged
    if drive == Drive():
        assert {name: gpu.stages[name].kernels.total() for name in KERNELS} == KERNELS


def test_seven_billion_parameters_in_a_ragged_batch(shipped: OpenVLAPolicy) -> None:
    drive = Drive(16, ragged=True)
    with FakeCuda(drive.answers(in_blocks=True)) as gpu:
        policy = seven_billion(gpu, shipped.tokenizer)
        infer(gpu, policy, observations(policy, drive))
    assert reads(gpu.stages) == {SETTLED: 1}
    assert {name: graph.kernels.total() for name, graph in gpu.graphs.items()} == {
        "see": 552, "begin": 385, "correct": 409, "advance": 413,
    }  # fmt: skip


def test_committed_actions_and_words(shipped: OpenVLAPolicy, mode: FakeTensorMode) -> None:
    policy = shipped
    with FakeCuda(Drive(2, ragged=True).answers(in_blocks=True) | {"generate_text": 0}, mode=mode) as gpu:
        seen = observations(policy, Drive(2))
        prefixes = [np.full(count, policy.codec.ids[0]) for count in (2, 0)]
        assert policy.generate(policy.read(seen), 7, gpu.timer(), prefixes).shape == (2, 7)
        gpu.lap("continued")
        policy.answer(seen[0].images, "what is red?", max_tokens=3)
        gpu.lap("answer")
    assert reads({n: t for n, t in gpu.stages.items() if n in ("prefill", "decode")}) == {SETTLED: 1}
    assert gpu.stages["answer"].reads == {
        "policy/vla/reason/generate.py generate_text": 2,
        "policy/vla/reason/generate.py require_finite": 3,
    }


@pytest.mark.parametrize("in_blocks", [True, False])
def test_a_chunk_by_regression_reads_nothing(shipped: OpenVLAPolicy, mode: FakeTensorMode, in_blocks: bool) -> None:
    policy = shipped
    with FakeCuda(mode=mode) as gpu:
        head = gpu.move(L1Head(policy.model.language_model.config.hidden_size, 7), torch.bfloat16)
        generator = ParallelGenerator(policy._decoder, head, 8, 7, policy.tokenizer.eos)
        regression = ChunkRegression(policy.model, generator)
        assert regression.in_blocks
        regression.in_blocks = in_blocks
        batch = policy.read(observations(policy, Drive(3, ragged=True)))
        gpu.lap("before")
        assert regression(batch, gpu.timer()).shape == (3, 8, 7)
    assert not reads(gpu.stages)
    assert set(gpu.graphs) == ({"see", "answer"} if in_blocks else set())
    assert row_of(gpu)["copies down"] == 0


def test_seven_billion_parameters_in_fp8(shipped: OpenVLAPolicy) -> None:
    """Every product of towers, projector and decoder is one of fp8, after one kernel that rounds its activations."""
    drive = Drive(2)
    with FakeCuda(drive.answers(in_blocks=True)) as gpu:
        policy = seven_billion(gpu, shipped.tokenizer)
        policy.quantise("fp8")
        infer(gpu, policy, observations(policy, drive))
    assert reads(gpu.stages) == {SETTLED: 1}
    products = {name: graph.kernels["_scaled_mm"] for name, graph in gpu.graphs.items()}
    assert products == {"see": 4 * (23 + 26), "begin": 4 * 32 + 3, "correct": 4 * 32, "advance": 4 * 32}
    assert gpu.graphs["correct"].kernels["fused"] == (4 + 4) * 32 + 1


UNRECORDED = {"qwen3_vl": {"policy/vla/reason/text_reasoner.py _run": 4}}
"""Reads of a language model that cannot be recorded: Qwen3-VL's, once a pass, and once more while a block is made."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "openvla"])
def test_every_family_stays_on_the_device(loaded: Callable[[str], AnyVLAPolicy], name: str) -> None:
    real = loaded(name)
    with FakeCuda(Drive(ragged=True).answers()) as gpu:
        infer(gpu, moved(gpu, real), [tiny_vlms.observation(row) for row in range(2)])
    assert reads(gpu.stages) == {SETTLED: 2} | UNRECORDED.get(name, {})
    assert ("see" in gpu.graphs) == (name == "paligemma")
    assert ("correct" in gpu.graphs) == (name not in UNRECORDED)


def test_a_mask_in_main_memory_is_caught(run: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reason, "_visible", lambda slots, padding, device: torch.ones(slots, slots, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="attention of a tensor on cuda:0 with one on cpu"):
        run(Drive(), False)


def test_a_new_read_is_caught(run: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = reason.Decoder._attend

    def careful(self: reason.Decoder, q: Tensor, *others: Any, **options: Any) -> Tensor:
        assert bool(torch.isfinite(q).all())
        return plain(self, q, *others, **options)

    monkeypatch.setattr(reason.Decoder, "_attend", careful)
    assert reads(run(Drive(), False).stages).total() > 3
    with pytest.raises(RuntimeError, match="'begin' cannot be recorded: it reads"):
        run(Drive(rows=7), True)
