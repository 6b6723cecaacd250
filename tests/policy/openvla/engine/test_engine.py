"""The engine beside plain timm and transformers: the same answers, the counted work, one core for little of it."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models.plain_inference import Baseline
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.roofline import costs_of
from vla_robot.policy.vla.engine import compiled as compiled_inference
from vla_robot.policy.vla.engine.compiled import CompiledInference
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.reason import cpu_threads as threads

DIMS = 7


def observations(policy: OpenVLAPolicy, instructions: list[str]) -> list[Observation]:
    rng = np.random.default_rng(5)
    assert policy.embodiment is not None
    names = [camera.name for camera in policy.embodiment.cameras]
    return [
        Observation(
            {name: rng.integers(0, 256, (40, 32, 3), dtype=np.uint8) for name in names}, rng.normal(size=2), text, 0, 0
        )
        for text in instructions
    ]


def test_plain_timm_and_transformers_give_the_same_tokens(tiny: OpenVLAPolicy) -> None:
    """The vocabulary of the tiny policy is all random, so its words are silenced; the reference's rows decide."""
    tiny.model.language_model.lm_head.weight.data[: tiny.codec.ids[0]] = 0
    tiny.model.language_model.lm_head.weight.data[tiny.model.config.action_vocab_end :] = 0
    seen = observations(tiny, ["lift the red cube"] * 3)
    batch = tiny.read(seen)
    assert batch.state is not None
    baseline = Baseline(tiny.model, tiny.preprocessor)
    plain = [
        baseline.tokens(list(o.images.values()), batch.prompts[i], batch.state[i : i + 1], DIMS).numpy()
        for i, o in enumerate(seen)
    ]
    np.testing.assert_array_equal(tiny.generate(batch, DIMS), plain)


def test_the_lengths_of_prompts_stay_where_reading_them_waits_for_no_device(tiny: OpenVLAPolicy) -> None:
    batch = tiny.read(observations(tiny, ["lift", "lift the red cube"]))
    prompt = deepcopy(tiny.model).to("meta").prompt(batch)
    assert prompt.embeds.is_meta
    inserted = prompt.embeds.shape[1] - len(batch.prompts[1])
    assert prompt.lengths.tolist() == [inserted + len(ids) for ids in batch.prompts]


def test_the_counted_operations_are_those_that_run(tiny: OpenVLAPolicy) -> None:
    batch = tiny.read(observations(tiny, ["lift the red cube"] * 2))
    # The fused attention of a CPU is not in torch's counter, its plain one is.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tiny.model.prompt(batch)
    counted = costs_of(tiny.outline, 2, len(batch.prompts[0]), DIMS)
    embedding = counted["towers"].flops + counted["projector"].flops
    assert counter.get_total_flops() == pytest.approx(embedding, rel=0.01)


def test_a_small_inference_runs_on_one_core_and_gives_the_others_back(
    tiny: OpenVLAPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    batch = tiny.read(observations(tiny, ["lift the red cube"]))
    with threads.threads_for(tiny.flops(batch), tiny.device):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    monkeypatch.setattr(threads, "WORTH_SHARING_FLOPS", 1.0)
    with threads.threads_for(tiny.flops(batch), tiny.device):
        assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_compiled_graph_gives_the_same_actions_and_leaves_ragged_batches_alone(folder_of_four: Path) -> None:
    eager, compiled = load(folder_of_four), load(folder_of_four, Loading(compiled=True))
    even = observations(eager, ["lift the red cube", "lift the red cube"])
    ragged = observations(eager, ["lift the red cube", "open the door and then the drawer"])
    # To try the compiler on each instruction set of this processor takes as long as to compile both graphs.
    with inductor.patch("cpp.vec_isa_ok", True):
        for seen, stage in ((even, "inference"), (ragged, "decode"), (even, "inference")):
            for ours, expected in zip(compiled.act(seen), eager.act(seen), strict=True):
                np.testing.assert_array_equal(ours.actions, expected.actions)
                assert ours.actions.shape == (4, DIMS)
                assert stage in ours.stages_ms


def test_more_shapes_than_are_compiled_run_uncompiled(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch's own limit, of all policies of a process together, is one shape here. Graphs are traced, not compiled."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda work, **others: compiler(work, dynamic=False, fullgraph=True, backend="eager")
    )
    monkeypatch.setattr(compiled_inference, "SHAPES", 2)
    eager, compiled = load(tiny_folder), load(tiny_folder, Loading(compiled=True))
    with torch._dynamo.config.patch(recompile_limit=1):  # pytest's own patch would leave the setting deleted
        for rows, stage in ((1, "inference"), (2, "inference"), (3, "decode"), (4, "decode"), (1, "inference")):
            seen = observations(eager, ["lift the red cube"] * rows)
            for ours, expected in zip(compiled.act(seen), eager.act(seen), strict=True):
                np.testing.assert_array_equal(ours.actions, expected.actions)
                assert stage in ours.stages_ms
    said = [record.getMessage() for record in caplog.records if record.name == compiled_inference.__name__]
    assert len(said) == 1 and said[0].startswith("2 shapes of batches are compiled; a batch of 3 prompts")


def test_compiling_without_a_compiler_names_the_fix(tiny: OpenVLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Exception, match="needs a C\\+\\+ compiler on a CPU: apt-get install g\\+\\+"):
        CompiledInference(tiny.model, tiny._generator)
