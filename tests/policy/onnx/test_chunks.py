"""OpenVLA-OFT in one graph: torch's numbers within rounding, in batches, with other bounds, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.onnx.export.write import Choices, export
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.record import ChunkAnswer, read_record
from vla_robot.policy.openvla.oft import load_oft
from vla_robot.recipe.policy import OFTRecipe, OpenVLAOFTRecipe
from vla_robot.recipe.policy_source import find_policy

from ..openvla.tiny_policies import ARM, OFT, create_policy, observation, publish

BOUNDED = replace(OFT, normalisation="bounds", clip=True)
SEEN = [observation(("lift the red cube", "go")[n % 2], seed=n) for n in range(5)]


def write(oft: OFTRecipe, policy: Path, folder: Path, rows: tuple[int, ...] = (1, 2)) -> Path:
    """The exported folder of a published one."""
    folder.mkdir()
    recipe = OpenVLAOFTRecipe(checkpoint=policy, oft=oft)
    export(folder, "oft", recipe, Choices(rows=rows, text=(32,)), lambda line: None)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(create_policy(tmp_path_factory.mktemp("tiny")), tmp_path_factory.mktemp("oft"))


@pytest.fixture(scope="module")
def made(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(OFT, published, tmp_path_factory.mktemp("exported") / "edge")


def test_the_folder_gives_torchs_chunks(published: Path, made: Path) -> None:
    recipe = find_policy(made).recipe
    check_policy(recipe)
    ours, theirs = load_policy(recipe, ARM), load_oft(published, OFT)
    for count in (1, 2, 5):
        for chunk, other in zip(ours.act(SEEN[:count]), theirs.act(SEEN[:count]), strict=True):
            assert chunk.actions.shape == (3, 7) and (chunk.step, chunk.conditioned) == (other.step, False)
            np.testing.assert_allclose(chunk.actions, other.actions, atol=1e-4)


def test_each_size_is_one_graph(made: Path) -> None:
    assert sorted(path.name for path in made.glob("*.onnx")) == ["answer_1x32.onnx", "answer_2x32.onnx"]
    record = read_record(made)
    assert isinstance(record.answer, ChunkAnswer) and record.cameras == OFT.cameras
    assert {path.rpartition(".")[2] for path in record.source} == {"pt", "safetensors"}
    parity = record.parity
    assert parity is not None and parity.differ == 0 and parity.compared == 2 * parity.observations * 3 * 7


def test_bounds_are_those_of_the_recipe(published: Path, tmp_path: Path) -> None:
    bounded = write(BOUNDED, published, tmp_path / "edge", rows=(2,))
    ours, theirs = OnnxPolicy(bounded), load_oft(published, BOUNDED)
    np.testing.assert_allclose(ours.act(SEEN[:1])[0].actions, theirs.act(SEEN[:1])[0].actions, atol=1e-4)
    assert np.abs(ours.answers(SEEN)).max() == 1, "some actions are cut"


def test_statistics_of_another_arm_and_an_unknown_head_are_refused(made: Path) -> None:
    path = made / "dataset_statistics.json"
    (toy,) = json.loads(path.read_text()).values()
    short = {**toy, "action": {name: values[:3] for name, values in toy["action"].items()}}
    before = path.read_text()
    path.write_text(json.dumps({"short": short}))
    try:
        with pytest.raises(ContractError, match="graphs give 7 numbers per action, but the statistics have 3"):
            OnnxPolicy(made).act(SEEN[:1])
    finally:
        path.write_text(before)
    record = json.loads((made / "onnx.json").read_text())
    for change, says in (
        ({"head": "diffusion"}, "unknown head 'diffusion'"),
        ({"answer": {**record["answer"], "normalisation": "mean"}}, "unknown normalisation 'mean'"),
    ):
        (made / "onnx.json").write_text(json.dumps(record | change))
        with pytest.raises(CheckpointError, match=says):
            read_record(made)
    (made / "onnx.json").write_text(json.dumps(record))
