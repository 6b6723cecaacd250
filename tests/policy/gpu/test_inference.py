"""Inference on a fake GPU: one device, few reads, known copies, no more kernels than today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.counts import SHIPPED, Drive, infer, moved, observations, row_of, rows_of_families, seven_billion
from benchmarks.gpu.fake_cuda import FakeCuda, Tally
from vla_robot.policy.openvla import policy as openvla_policy
from vla_robot.policy.openvla.engine.chunk_regression import ChunkRegression
from vla_robot.policy.openvla.engine.quantise import quantise
from vla_robot.policy.openvla.network import reason
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla import policy as vla_policy
from vla_robot.policy.vla.engine.fp8 import EightBitMatrix
from vla_robot.policy.vla.engine.quantise import linears
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy

from ..vlm import tiny_vlms
from .conftest import OTHERS

SETTLED = "policy/vla/reason/generate.py is_settled"
KERNELS = {"towers": 104, "projector": 10, "prefill": 57, "decode": 80}
"""Kernels that the stages of the shipped policy start for one row, without padding; one correction."""
GRAPHS = {"see": 101, "begin": 80, "correct": 74, "advance": 78}
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


def test_an_act_waits_once_more_for_the_times_of_its_stages(
    shipped: OpenVLAPolicy, mode: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[mock.Mock] = []

    def event(**_: Any) -> mock.Mock:
        events.append(mock.Mock())
        events[-1].elapsed_time.return_value = 1.0
        return events[-1]

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(vla_policy, "decoded", lambda codec, row, n: np.zeros((1, n)))  # fake ids are none of its rows
    with FakeCuda(Drive(2).answers(in_blocks=True), mode=mode) as gpu:
        for seen in (observations(shipped, Drive(2)), [shipped.prepare(o) for o in observations(shipped, Drive(2))]):
            gpu.lap("before")
            gpu.stages.clear()
            events.clear()
            (chunk, _) = shipped.act(seen)
            gpu.lap("act")
            assert reads(gpu.stages) == {SETTLED: 1}
            assert sum(each.synchronize.call_count for each in events) == 1 and len(events) == 1 + len(chunk.stages_ms)


def test_of_prepared_observations_only_numbers_are_left_for_the_batch(
    shipped: OpenVLAPolicy, mode: FakeTensorMode
) -> None:
    """Their frames are on the device when the batch begins; ids, lengths and state travel with it."""
    drive = Drive(16, ragged=True)
    assert shipped.prepares_ahead
    with FakeCuda(drive.answers(in_blocks=True), mode=mode) as gpu:
        ready = [shipped.prepare(each) for each in observations(shipped, drive)]
        gpu.lap("ahead")
        ahead = row_of(gpu)
        infer(gpu, shipped, ready)
    assert (ahead["copies up"], ahead["reads"], ahead["kernels"]) == (drive.rows, 0, drive.rows)
    left = row_of(gpu)
    assert reads(gpu.stages) == {SETTLED: 1}
    assert left["copies up"] == 3 and left["bytes up"] < drive.rows * 1000
    assert ahead["bytes up"] == drive.rows * 2 * 84 * 84 * 3


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
        "see": 552, "begin": 385, "correct": 410, "advance": 414,
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


def test_plain_matrices_that_get_fewer_bits_never_fill_the_device(
    nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that holds the model in fp8 loads it, though it would not hold it in bfloat16."""
    before: list[Counter[str]] = []

    def look(model: Any, *others: Any) -> None:
        layers = linears(model.vision_backbone) + linears(model.language_model.model.layers)
        before.append(Counter(layer.weight.device.type for layer in layers))
        quantise(model, *others)

    monkeypatch.setattr(openvla_policy, "quantise", look)
    with FakeCuda(Drive().answers()) as gpu:
        policy = openvla_policy.load(
            nano_folder, Loading(dtype="bfloat16", device="cuda", statistics_key="lift", quantise="fp8", fuse=False)
        )
        infer(gpu, policy, observations(policy, Drive()))
    assert before[0].keys() == {"cpu"}
    assert {p.device.type for p in policy.model.parameters()} == {"cuda", "meta"}
    assert all(matrix.device.type == "cuda" for matrix in policy._decoder.matrices())


@pytest.mark.parametrize("name", ["paligemma", "gemma4"])
def test_the_other_families_matrices_neither(loaded: Callable[[str], AnyVLAPolicy], name: str) -> None:
    model: Any = loaded(name).model
    sizes: list[int] = []
    with FakeCuda() as gpu:
        in_main_memory(gpu, model)
        with mock.patch.object(EightBitMatrix, "pack", lambda matrix, rounds: sizes.append(matrix.numel()) or matrix):
            gpu.lap("before")
            model.fix(torch.device("cuda", 0), "fp8")
            gpu.lap("fix")
    assert len(sizes) > 20
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert model.vlm.get_input_embeddings().weight is model.vlm.lm_head.weight, "tied parameters stay one"


def in_main_memory(gpu: FakeCuda, model: Any) -> None:
    """Make a real model's parameters and buffers fake ones of main memory, tied ones one."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = made.setdefault(id(tensor), gpu.mode.from_tensor(tensor))  # type: ignore[assignment]


UNRECORDED = {"qwen3_vl": {"policy/vla/reason/text_reasoner.py _run": 4}}
"""Reads of a language model that cannot be recorded: Qwen3-VL's, once a pass, and once more while a block is made."""


@pytest.mark.parametrize("name", OTHERS)
def test_every_family_stays_on_the_device(loaded: Callable[[str], AnyVLAPolicy], name: str) -> None:
    real = loaded(name)
    with FakeCuda(Drive(ragged=True).answers()) as gpu:
        infer(gpu, moved(gpu, real), [tiny_vlms.observation(row) for row in range(2)])
    assert reads(gpu.stages) == {SETTLED: 2} | UNRECORDED.get(name, {})
    assert ("see" in gpu.graphs) == (name == "paligemma")
    assert ("correct" in gpu.graphs) == (name not in UNRECORDED)


LAYER = {"paligemma": (2, 1), "gemma4": (7, 1)}
"""Norms and gates of a layer of the language model; one norm follows the last layer."""


@pytest.mark.parametrize("name", LAYER)
def test_fused_norms_and_gates_are_one_kernel_each(loaded: Callable[[str], AnyVLAPolicy], name: str) -> None:
    counted: list[Counter[str]] = []
    for fuse in (False, True):
        real = loaded(name)
        with FakeCuda(Drive().answers()) as gpu:
            infer(gpu, moved(gpu, real, fuse), [tiny_vlms.observation(0)])
        counted.append(gpu.graphs["correct"].kernels)
    plain, joined = counted
    norms, gates = LAYER[name]
    layers = 3
    assert joined["fused"] == layers * (norms + gates) + 1
    assert plain.total() - joined.total() >= layers * (4 * norms + gates)
    assert joined["mean"] == 0 < plain["mean"]


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


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_policy_has_a_row_of_the_table(name: str, repository: Path) -> None:
    rows = rows_of_families(repository / "policies", [name], [False])
    assert rows.keys() == {name} and rows[name]["begin"] > rows[name]["correct"] > 100
