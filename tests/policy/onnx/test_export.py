"""`vla export onnx`: torch's tokens from graphs, for batches, chunks and told beginnings, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor

from vla_robot.cli.export import ExportArgs, main
from vla_robot.core.errors import PolicyError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.families import FAMILIES
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.onnx.export import write
from vla_robot.policy.onnx.export.steps import See
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.record import read_record
from vla_robot.policy.vla.codecs.bins import BinCodec
from vla_robot.policy.vla.codecs.fast import FastCodec
from vla_robot.policy.vla.codecs.fast_files import train_fast
from vla_robot.policy.vla.codecs.number_words import WordCodec
from vla_robot.recipe.policy import HoldRecipe, OnnxRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.testing import check_policy as check_contract

from ..openvla import tiny_policies
from ..vlm import tiny_vlms
from . import exported
from .conftest import Exported

SEEN = [tiny_policies.observation(("lift the red cube", "open the door")[n % 2], seed=n) for n in range(5)]


def test_the_folder_is_a_policy_that_acts_as_torch_does(source: Path, made: Path) -> None:
    recipe = find_policy(made).recipe
    assert isinstance(recipe, OnnxRecipe)
    check_policy(recipe)
    policy = load_policy(recipe, tiny_policies.ARM)
    theirs = exported.load(source)
    for count in (1, 2, 5):
        for chunk, other in zip(policy.act(SEEN[:count]), theirs.act(SEEN[:count]), strict=True):
            np.testing.assert_array_equal(chunk.actions, other.actions)
            assert (chunk.stamp_ns, chunk.step, chunk.conditioned) == (other.stamp_ns, other.step, other.conditioned)
            assert chunk.entropy == pytest.approx(other.entropy, abs=1e-4) and other.entropy
    assert len(np.unique(np.concatenate([chunk.actions for chunk in policy.act(SEEN)]))) > 10


def test_it_keeps_the_contract_of_a_policy(made: Path) -> None:
    check_contract(lambda: OnnxPolicy(made), tiny_policies.ARM, SEEN[:3])


def test_other_statistics_are_taken_row_by_row(source: Path, made: Path) -> None:
    keys = ["toy", None]
    ours, theirs = OnnxPolicy(made).act(SEEN[:2], keys), exported.load(source).act(SEEN[:2], keys)
    np.testing.assert_array_equal([c.actions for c in ours], [c.actions for c in theirs])


def test_the_record_says_who_wrote_it_and_how_near_it_came(source: Path, made: Path) -> None:
    record = read_record(made)
    assert (record.policy, record.family, record.precision) == ("openvla", "openvla", "float32")
    assert {"torch", "onnx", "onnxruntime"} <= record.versions.keys()
    assert [(bucket.rows, bucket.text) for bucket in record.buckets] == [(2, 32), (2, 64)]
    assert list(record.source) == ["model.safetensors"]
    assert record.parity is not None and record.parity.differ == 0 and 0 < record.parity.outputs < 1e-3
    assert record.parity.observations == write.COMPARED


def test_the_graphs_share_one_file_of_weights_and_another_reader_takes_them(source: Path, made: Path) -> None:
    """onnx's own checker reads the folder, with the weights where the graphs say."""
    assert (made / "weights.bin").stat().st_size < 1.3 * (source / "model.safetensors").stat().st_size
    graphs = sorted(made.glob("*.onnx"))
    assert len(graphs) == 1 + 2 * 2
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        for side in (*graph.input, *graph.output):
            assert all(dim.dim_value > 0 for dim in side.type.tensor_type.shape.dim), "a size that is not fixed"
        used = {name for node in graph.node for name in node.input}
        assert {side.name for side in graph.input} <= used, "an input that nothing reads"


def test_answers_of_several_actions_begin_as_they_are_told(tmp_path: Path) -> None:
    source = exported.create(tmp_path, chunk=3)
    exported.write(source, tmp_path / "edge", write.Choices(rows=(2,), text=(32,)))
    ours, theirs = OnnxPolicy(tmp_path / "edge"), exported.load(source)
    committed = [None, np.full((1, 7), 0.3), np.full((2, 7), -0.2), np.full((9, 7), 0.1)]
    seen = [replace(o, committed=rows) for o, rows in zip(SEEN, committed, strict=False)]
    for some in ([seen[0]], [seen[2]], seen):
        for chunk, other in zip(ours.act(some), theirs.act(some), strict=True):
            assert chunk.actions.shape == (3, 7) and chunk.conditioned == other.conditioned
            assert chunk.entropy == pytest.approx(other.entropy, abs=1e-4)
            np.testing.assert_array_equal(chunk.actions, other.actions)


def codecs() -> list[ActionCodec]:
    """One of each kind that config.json alone does not say, for two actions of seven numbers."""
    rng, ids = np.random.default_rng(0), np.arange(100, 300)
    chunks = np.clip(rng.normal(0, 0.4, (200, 2, 7)), -1, 1)
    fast = train_fast(chunks, 60, scale=3.0)
    spelled = [[ids[tens], ids[10 + ones]] for tens in range(2) for ones in range(10)]
    return [
        FastCodec(fast, ids[: len(fast.tokens)], 2),
        WordCodec([[int(id) for id in each] for each in spelled], int(ids[40]), 2, 7),
        BinCodec(ids[: 7 * 16], 2, "equal", 7),
    ]


FAST, WORDS, BINS = codecs()


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(FAST, id="fast"),
        pytest.param(WORDS, id="words", marks=pytest.mark.slow),  # a grammar, as "fast"
        pytest.param(BINS, id="bins of each dimension", marks=pytest.mark.slow),
    ],
)
def test_answers_with_a_grammar_are_torchs(codec: ActionCodec, tmp_path: Path) -> None:
    source = exported.create(tmp_path, chunk=2, codec=codec)
    exported.write(source, tmp_path / "edge", write.Choices(rows=(2,), text=(32,)))
    ours, theirs = OnnxPolicy(tmp_path / "edge"), exported.load(source)
    seen = [replace(o, committed=np.full((1, 7), 0.3) if n % 2 else None) for n, o in enumerate(SEEN[:3])]
    for some in (seen[:1], seen[1:2], seen):
        for chunk, other in zip(ours.act(some), theirs.act(some), strict=True):
            assert chunk.conditioned == other.conditioned
            np.testing.assert_array_equal(chunk.actions, other.actions)
    spoken = ours.answers(SEEN[:3])
    assert len(np.unique(spoken)) > 3 and spoken.shape == (3, codec.tokens(7))


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "openvla"])
def test_each_family_gives_torchs_tokens(family: str, tmp_path: Path) -> None:
    source = exported.create(tmp_path, family)
    exported.write(source, tmp_path / "edge", write.Choices(rows=(2,), text=(64,)))
    ours, theirs = OnnxPolicy(tmp_path / "edge"), exported.load(source)
    seen = [tiny_vlms.observation(number) for number in range(3)]
    for some in (seen[:1], seen):
        np.testing.assert_array_equal([c.actions for c in ours.act(some)], [c.actions for c in theirs.act(some)])


def test_int8_is_measured(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = write.Choices(rows=(1,), text=(32,), int8=True)
    monkeypatch.setattr(write, "MOST_INT8_ACTIONS", 2.0)  # random weights are no policy
    record = exported.write(source, tmp_path / "edge", choices)
    assert record.precision == "int8" and record.parity is not None and record.parity.outputs > 1e-3
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(tmp_path / "edge" / "see_1.onnx").graph.node)
    assert OnnxPolicy(tmp_path / "edge").act(SEEN[:1])[0].actions.shape == (1, 7)
    monkeypatch.setattr(write, "MOST_INT8_ACTIONS", 0.0)
    with pytest.raises(PolicyError, match=r"in int8 the actions differ by .* export it without --int8"):
        write.require_parity(record)


def test_graphs_that_say_something_else_are_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = See.step

    def wrong(self: See, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (step(self, given)[0].flip(1),)

    monkeypatch.setattr(See, "step", wrong)
    with pytest.raises(PolicyError, match=r"give other answers than torch.*No folder was written"):
        main(ExportArgs("onnx", str(source), tmp_path / "edge", rows=(1,), text=(32,)))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_measured(by_command: Exported) -> None:
    said = by_command.said
    assert "5 graphs" in said and "0.00% of" in said and f"--policy {by_command.folder}" in said
    assert by_command.json["record"]["parity"]["differ"] == 0


def test_a_policy_without_graphs_says_why(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="kind 'hold' is not exported: graphs are made of the kinds 'openvla', "):
        write.export(tmp_path, "hold", HoldRecipe(), write.Choices(), print)
